"""What the recipes of all networks on a backbone share."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from resnest_jax.errors import InputError
from resnest_jax.models.zoo import create_model
from resnest_jax.tasks.checks import check_model, check_parallel_and_pretrained, network_fields
from resnest_jax.training.distributed import is_main
from resnest_jax.training.task import Variables

# Regexes of the parameters of each layer of the backbone, from the first to the last.
LAYERS = ("^backbone/stem/", *(f"^backbone/stage{stage}_" for stage in range(1, 5)))
WHOLE = "^backbone/"  # freezes everything but the heads


def check_network(config: ConfigDict, groups: int) -> None:
    """Raise InputError for a key of the model or of its initial weights that is out of range."""
    check_parallel_and_pretrained(config, config.model.backbone)
    check_model(config)
    images = config.batch_size // config.parallel.accumulate // groups
    if config.model.norm == "batch" and images < 2:
        raise InputError(
            f"batch_size {config.batch_size} gives {images} image to each of the {groups} groups "
            "of batch statistics; training needs at least 2, or model.norm 'frozen'"
        )


def make_network(config: ConfigDict, num_classes: int, groups: int) -> Any:
    """Return the model of a config for a number of classes and of groups of batch statistics.

    Raises:
      InputError: if the config has another number.
    """
    return create_model(**network_fields(config, num_classes), norm_groups=groups)


def initial_weights(
    config: ConfigDict,
    load: Callable[[str | None], dict[str, Any]],
    missing: Callable[[dict[str, Any]], tuple[str, ...]],
) -> Callable[[], Variables] | None:
    """Return a function that loads the initial weights and says which; None for new ones.

    Args:
      load: loads them from a path, or for None the published ones.
      missing: returns the heads that they lack.
    """
    weights = config.pretrained.weights
    if weights == "none":
        return None

    def load_and_tell() -> Mapping[str, Any]:
        loaded = load(None if weights == "published" else weights)
        if is_main():
            kept, new = ", ".join(sorted(loaded["params"])), ", ".join(missing(loaded))
            print(f"pretrained.weights {weights}: {kept}; new: {new or 'none'}")
        return loaded

    return load_and_tell


def frozen(config: ConfigDict) -> str:
    """Return the regex of the parameters that the config freezes; empty: none."""
    if config.pretrained.train == "head":
        return WHOLE
    stages = config.model.frozen_stages
    return f"^backbone/(stem|stage[1-{stages}]_block\\d+)/" if stages else ""
