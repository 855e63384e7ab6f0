"""Keys of detection without the common ones, and their defaults, which never change."""

from typing import Any


def detection_keys() -> dict[str, Any]:
    """Return the keys of detection with their defaults."""
    return {
        "data": {
            # The shorter side of a training image: "range", an integer from the least to the
            # largest of short_sides; "choice", one of them. The longer side is at most long_side.
            "short_sides": (640, 800),
            "short_side_sampling": "range",
            "long_side": 1333,
            # Images are padded to the smallest canvas that holds them, a batch to one. Pairs
            # (height, width), of multiples of 32; (): one for the images wider than high and one
            # for the others, as small as the data set allows.
            "canvases": (),
            "max_objects": 100,  # per training image; of more, some are chosen at random
            "flip": True,  # mirror half of the images
        },
        "evaluation": {
            "short_side": 800,  # of the images; the longer one is at most data.long_side
        },
    }
