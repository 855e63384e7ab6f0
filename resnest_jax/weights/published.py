"""Published ImageNet weights: where they are, download, hash check."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from resnest_jax.errors import InputError, import_package, one_line

HUB_FILE = "model.safetensors"
RELEASE = "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1"


class Source(NamedTuple):
    """Places of a model's ImageNet weights.

    Attributes:
      hub: repository on the Hugging Face hub.
      sha256: first digits of the hash, in the name of the authors' file.
    """

    hub: str | None = None
    sha256: str | None = None

    def urls(self, name: str) -> list[str]:
        """Return the addresses of files that ``load_pretrained`` reads."""
        hub = [f"https://huggingface.co/{self.hub}/resolve/main/{HUB_FILE}"] if self.hub else []
        return hub + ([f"{RELEASE}/{name}-{self.sha256}.pth"] if self.sha256 else [])


SOURCES: dict[str, Source] = {
    "resnest14": Source("timm/resnest14d.gluon_in1k"),
    "resnest26": Source("timm/resnest26d.gluon_in1k"),
    "resnest50": Source("timm/resnest50d.in1k", "528c19ca"),
    "resnest101": Source("timm/resnest101e.in1k", "22405ba7"),
    "resnest200": Source("timm/resnest200e.in1k", "75117900"),
    "resnest269": Source("timm/resnest269e.in1k", "0cc87c48"),
    "resnest50_fast_1s1x64d": Source(sha256="d8fbf808"),
    "resnest50_fast_2s1x64d": Source(sha256="44938639"),
    "resnest50_fast_4s1x64d": Source(sha256="f74f3fc3"),
    "resnest50_fast_1s2x40d": Source(sha256="32830b84"),
    "resnest50_fast_2s2x40d": Source(sha256="9d126481"),
    "resnest50_fast_4s2x40d": Source("timm/resnest50d_4s2x40d.in1k", "41d14ed0"),
    "resnest50_fast_1s4x24d": Source("timm/resnest50d_1s4x24d.in1k", "d4a4f76f"),
}


# The authors' segmentation models: first digits of the SHA-1 in the names of their files.
SEGMENTERS = {
    "fcn_resnest50_ade": "4aba491a",
    "deeplab_resnest50_ade": "2225f09d",
    "deeplab_resnest101_ade": "06ca799c",
    "deeplab_resnest200_ade": "7b9e7d3e",
    "deeplab_resnest269_ade": "0074dd10",
    "fcn_resnest50_pcontext": "77a2161d",
    "deeplab_resnest50_pcontext": "08dccbc4",
    "deeplab_resnest101_pcontext": "faf58418",
    "deeplab_resnest200_pcontext": "fe76a265",
    "deeplab_resnest269_pcontext": "b661fd26",
}
# The authors' detectors for COCO. Nothing says of what the digits in the names are.
DETECTORS = (
    "faster_rcnn_ResNeSt_50_FPN_syncbn_range-scale_1x-ad123c0b",
    "faster_rcnn_ResNeSt_101_FPN_syncbn_range-scale_1x-d8f284b6",
    "faster_cascade_rcnn_ResNeSt_50_FPN_syncbn_range-scale-1x-e9955232",
    "faster_cascade_rcnn_ResNeSt_101_FPN_syncbn_range-scale_1x-3627ef78",
    "faster_cascade_rcnn_ResNeSt_200_FPN_syncbn_range-scale_1x-1be2a87e",
    "mask_rcnn_ResNeSt_50_FPN_syncBN_1x-f442d863",
    "mask_rcnn_ResNeSt_101_FPN_syncBN_1x-528502c6",
    "mask_cascade_rcnn_ResNeSt_50_FPN_syncBN_1x-c58bd325",
    "mask_cascade_rcnn_ResNeSt_101_FPN_syncBN_1x-62448b9c",
    "mask_cascade_rcnn_ResNeSt_200_FPN_syncBN_all_tricks_3x",
)
DATASETS = {"ade": "ade20k", "pcontext": "pascal_context"}


def fetch(name: str | None) -> Path:
    """Download a model's weights from the hub, or find them in its cache.

    Raises:
      InputError: if there are none or they cannot be fetched; the message says which file to
        fetch by hand.
    """
    if name not in SOURCES:
        raise InputError(
            f"no weights are published for {name!r}; there are for {', '.join(SOURCES)}; for "
            "another model pass a file or directory as the source"
        )
    source = SOURCES[name]
    by_hand = f"fetch {' or '.join(source.urls(name))} and pass its path as the source"
    if source.hub is None:
        raise InputError(f"the weights of {name} are not on the hub: {by_hand}")
    huggingface_hub = import_package("huggingface_hub", "huggingface_hub")
    try:
        if huggingface_hub.try_to_load_from_cache(source.hub, HUB_FILE) is None:
            # Fails at once without a network, where a download tries for half a minute.
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(source.hub, HUB_FILE))
        return Path(huggingface_hub.hf_hub_download(source.hub, HUB_FILE))
    except Exception as error:  # the hub's own, its HTTP library's, the cache's
        raise InputError(
            f"the weights of {name} could not be fetched: {by_hand} ({one_line(error)})"
        ) from error


def check_published(name: str, path: Path) -> bool:
    """Check a file that is named as the authors published it; accept any other name.

    Returns:
      Whether it is what the authors published.

    Raises:
      InputError: if it is the file of another model, or its hash is not that in its name.
    """
    hashes = [(owner, source.sha256) for owner, source in SOURCES.items() if source.sha256]
    files = {f"{owner}-{sha256}.pth": (owner, sha256) for owner, sha256 in hashes}
    if path.name not in files:
        return False
    owner, expected = files[path.name]
    if owner != name:  # shapes may be equal, pooling differs
        raise InputError(f"weights {path} are those of {owner}, not of {name}")
    _check_digest(path, "sha256", expected)
    return True


def published_dataset(path: Path) -> str | None:
    """Return the data set of a file named as the authors published a segmentation model, or None.

    Raises:
      InputError: if its hash is not that in its name.
    """
    name, _, sha1 = path.stem.partition("-")
    if path.suffix != ".pth" or not sha1 or SEGMENTERS.get(name) != sha1:
        return None
    _check_digest(path, "sha1", sha1)
    return DATASETS[name.rpartition("_")[2]]


def _check_digest(path: Path, algorithm: str, expected: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm).hexdigest()
    if not digest.startswith(expected):
        raise InputError(
            f"weights {path} are not what was published: their {algorithm} is {digest}, not "
            f"{expected}... as the name says; fetch the file again"
        )
