"""Canvases: the few sizes to which images are padded, since every shape compiles a program."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from resnest_jax.data.geometry import Size, largest_sides
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import MULTIPLE, padded

LONG = 1.6  # ratio of the sides of long images: most photographs have 4:3 or 3:2


@dataclasses.dataclass(frozen=True)
class Canvases:
    """The canvas of each image.

    Attributes:
      sizes: (height, width) of each canvas.
      short, longest: size of the images, see ``geometry.short_side``; none is larger.
      crop: least fraction of each side of an image that is resized in place of the image.
    """

    sizes: tuple[Size, ...]
    short: int
    longest: int
    crop: float = 1.0

    def index(self, size: Size) -> int:
        """Return the smallest canvas that holds an image of a size before resizing.

        Of two as large as each other the wide one is for the images wider than high, as detectron2
        groups them.

        Raises:
          InputError: if there is none.
        """
        resized = largest_sides(size, self.short, self.longest, self.crop)
        fitting = [i for i, canvas in enumerate(self.sizes) if _holds(canvas, resized)]
        if not fitting:
            raise InputError(
                f"data.canvases {self.sizes}: none holds an image of (height, width) {size}, which "
                f"becomes {resized}"
            )
        wide = size[1] > size[0]

        def cost(i: int) -> tuple[int, bool]:
            height, width = self.sizes[i]
            return height * width, (width > height) != wide

        return min(fitting, key=cost)

    def groups(self, sizes: np.ndarray) -> np.ndarray:
        """Return the canvas of each image, int32 (N,).

        Args:
          sizes: heights and widths before resizing, int (N, 2).
        """
        distinct, inverse = np.unique(sizes, axis=0, return_inverse=True)
        of_each = [self.index((height, width)) for height, width in distinct.tolist()]
        return np.array(of_each, np.int32)[inverse.ravel()]


def make_canvases(
    sizes: np.ndarray,
    short: int,
    longest: int,
    given: tuple[Size, ...] = (),
    crop: float = 1.0,
    *,
    wide_apart: bool = True,
    long_apart: bool = False,
) -> Canvases:
    """Return the given canvases, or the smallest that hold all images.

    Those are one for the images wider than high and one for the others, as batches are made in
    detectron2, or one for all if there are only such.

    Args:
      sizes: heights and widths of all images before resizing, int (N, 2).
      short, longest, crop: see ``Canvases``.
      wide_apart: False: one canvas for wide and high images.
      long_apart: one canvas more for the long images of each kind, so that the others, mostly
        many more, are padded less.

    Raises:
      InputError: if an image does not fit, or a side is not a multiple of 32.
    """
    if given:
        for canvas in given:
            check_canvas(canvas)
    else:
        kinds = (wide_apart & (sizes[:, 1] > sizes[:, 0])).astype(int)
        if long_apart:
            kinds += 2 * (sizes.max(1) > LONG * sizes.min(1))
        given = tuple(
            _smallest(sizes[kinds == kind], short, longest, crop) for kind in np.unique(kinds)[::-1]
        )
    canvases = Canvases(tuple(dict.fromkeys(given)), short, longest, crop)
    canvases.groups(sizes)  # raises
    return canvases


def view_canvases(
    sizes: np.ndarray, short_sides: Sequence[int], longest: int
) -> tuple[Canvases, ...]:
    """Return the canvases of images, see ``make_canvases``, with each of the short sides."""
    return tuple(make_canvases(sizes, short, longest, long_apart=True) for short in short_sides)


def check_canvas(canvas: object) -> None:
    """Raise InputError if it is not a pair of positive multiples of 32."""
    match canvas:
        case (int() as height, int() as width) if (
            min(height, width) > 0 and height % MULTIPLE == width % MULTIPLE == 0
        ):
            return
    raise InputError(
        f"data.canvases must be pairs (height, width) of multiples of {MULTIPLE}, such as "
        f"((800, 1344), (1344, 800)); got {canvas!r}"
    )


def _smallest(sizes: np.ndarray, short: int, longest: int, crop: float) -> Size:
    distinct = np.unique(sizes, axis=0).tolist()
    resized = [largest_sides((height, width), short, longest, crop) for height, width in distinct]
    height, width = map(max, zip(*resized, strict=True))
    return padded((height, width))


def _holds(canvas: Size, size: Size) -> bool:
    return canvas[0] >= size[0] and canvas[1] >= size[1]
