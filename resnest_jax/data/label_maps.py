"""Decode label maps, one class per pixel, of every format that data sets use."""

import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image

from resnest_jax.data.decode import decode
from resnest_jax.data.label_tables import LabelTable
from resnest_jax.errors import InputError, import_package, one_line

_MAT_MAGIC = b"MATLAB"
# Pillow's modes of one integer per pixel; "P" are indices of a palette.
_MODES = ("1", "L", "P", "I", "I;16", "I;16B")


@dataclasses.dataclass(frozen=True)
class MaskDecoder:
    """Decode records of ``sources.masks``: the argument ``decode`` of ``images.Images``.

    ``{"image": bytes, "labels": bytes, "key", "labels_key"}`` ->
    ``{"image": uint8 (H, W, 3), "labels": uint8 (H, W), "key", "labels_key"}``

    Raises:
      InputError: if a file cannot be decoded, if the sizes differ, or if a value of the label map
        is not in the table.
    """

    table: LabelTable

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        image, path = decode(record), record["labels_key"]
        labels = self.table.labels(decode_label_map(record["labels"], path), path)
        check_size((record["key"], path), image.shape[1::-1], labels.shape[::-1])
        return {**record, "image": image, "labels": labels}


def check_size(
    paths: tuple[str, str], image_size: tuple[int, ...], labels_size: tuple[int, ...]
) -> None:
    """Raise InputError if the sizes, (width, height), of an image and its label map differ."""
    if image_size != labels_size:
        first, second = ("x".join(map(str, size)) for size in (image_size, labels_size))
        raise InputError(
            f"the image {paths[0]} is {first} pixels, its label map {paths[1]} {second}"
        )


def decode_label_map(encoded: bytes, path: str) -> np.ndarray:
    """Decode a label map to the integers (H, W) that it stores.

    Reads images of one channel (of a palette the indices, not the colours) and the MATLAB files of
    the augmented VOC.

    Raises:
      InputError: if the bytes are not a whole label map; names the path.
    """
    try:
        return _decode(encoded)
    except Exception as error:  # decoders raise many kinds for broken files
        reason = one_line(error)
    raise InputError(f"cannot decode the label map {path}: {reason}")


def _decode(encoded: bytes) -> np.ndarray:
    if encoded.startswith(_MAT_MAGIC):
        return _decode_mat(encoded)
    with Image.open(io.BytesIO(encoded)) as image:
        if image.mode not in _MODES:
            raise ValueError(
                f"its pixels are {image.mode}; expected one number per pixel, the class, as in a "
                "grey or palette PNG"
            )
        if image.format == "JPEG":
            raise ValueError("JPEG changes the values of pixels; expected PNG")
        label_map = np.asarray(image)
    return label_map.astype(np.uint8) if label_map.dtype == bool else label_map


def _decode_mat(encoded: bytes) -> np.ndarray:
    scipy_io = import_package("scipy.io", "resnest_jax[train]")
    content = scipy_io.loadmat(io.BytesIO(encoded), squeeze_me=True, struct_as_record=False)
    return np.asarray(content["GTcls"].Segmentation, np.int64)  # MATLAB may store numbers as floats
