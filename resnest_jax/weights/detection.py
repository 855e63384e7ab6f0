"""A detector with what it takes to use it: its classes, and the sizes of test images."""

from typing import cast

from resnest_jax.errors import InputError
from resnest_jax.models.detection.faster_rcnn import FasterRCNN
from resnest_jax.weights.network import Network, existing, read_directory


class Detector(Network):
    """A detector and what is known of it, see ``Network``."""

    @property
    def num_classes(self) -> int:
        """Number of classes without the background."""
        return len(self.variables["params"]["box_predictor"]["cls_score"]["bias"]) - 1

    @property
    def model(self) -> FasterRCNN:
        """The network."""
        return cast(FasterRCNN, super().model)


def load_weights(
    name: str | None,
    weights: str | None,
    checkpoint: str = "last",
    *,
    backbone: str | None = None,
) -> Detector:
    """Load the detector of a run or of a directory of weights.

    Args:
      name: ``faster_rcnn`` or None.
      weights: the directory.
      checkpoint: of a run, ``last``, ``best`` or a step.
      backbone: name of the backbone; None: what the weights say.

    Raises:
      InputError: if there is none, or it is damaged or of another model.
    """
    if weights is None or weights == "published":
        raise InputError(f"weights of {name} cannot be fetched: give the run, --weights=DIRECTORY")
    path = existing(weights)
    if not path.is_dir():
        raise InputError(
            f"weights {path}: a file of a detector is only for pretrained.weights of a run; give "
            "the directory of a run"
        )
    stored = read_directory(path, "detection", name, checkpoint, backbone)
    return Detector(path, *stored).checked()
