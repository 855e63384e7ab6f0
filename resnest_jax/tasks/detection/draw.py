"""Draw boxes with their names, and masks, on pictures."""

import collections
import colorsys
import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import matplotlib.figure
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from resnest_jax.data.geometry import Size
from resnest_jax.files import writing
from resnest_jax.tasks.loading import read_batch
from resnest_jax.training.run import Run

LEAST_SIDE = 640  # longer side of a picture in pixels: smaller ones are enlarged
COLUMNS = 4  # images in a row of a batch
OPACITY = 0.5  # of the colours of masks
PALETTE = 12  # colours of masks; any two differ clearly
GOLDEN = (math.sqrt(5) - 1) / 2
Colour = tuple[int, int, int]
Area = tuple[float, float, float, float]


def colour(index: int) -> Colour:
    """Return a strong colour, RGB from 0 to 255; those of neighbouring numbers are far apart."""
    hue = (0.08 + index * GOLDEN) % 1  # the golden ratio spreads any number of hues evenly
    lightness = (0.5, 0.62, 0.4)[index % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, texts: Sequence[str], colours: Sequence[Colour]
) -> np.ndarray:
    """Return a picture of an image with boxes and their texts; a small image is enlarged.

    A text is next to its box, on its colour, where no other text is; if there is no such place it
    is left out. Those of the first boxes come first.

    Args:
      image: uint8 (H, W, 3).
      boxes: left, top, right and bottom in pixels of the image, (N, 4).
      texts, colours: of each box.

    Returns:
      uint8 (H', W', 3), of the same shape as the image or a multiple of it.
    """
    scale = math.ceil(LEAST_SIDE / max(image.shape[:2]))
    height, width = (scale * side for side in image.shape[:2])
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    line = max(2, round(max(height, width) / 400))
    font = _font(max(12, round(max(height, width) / 55)))
    areas = [tuple(box) for box in (scale * np.asarray(boxes, float)).tolist()]
    for area, own in reversed([*zip(areas, colours, strict=True)]):
        # Pillow draws the last pixel too.
        x0, y0, x1, y1 = area
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=own, width=line)
    taken: list[Area] = []
    for area, text, own in zip(areas, texts, colours, strict=True):
        place = _place(area, draw.textbbox((0, 0), text, font), (width, height), taken)
        if place:
            taken.append(place)
            draw.rectangle(place, fill=own)
            draw.text(place[:2], text, _contrast(own), font)
    return np.asarray(picture)


def class_colours(classes: np.ndarray, num_classes: int) -> list[Colour]:
    """Return the colour of each object: that of its class, or its own if there is one class."""
    return [colour(number) for number in _numbers(classes, num_classes)]


def mask_colours(boxes: np.ndarray, classes: np.ndarray, num_classes: int) -> list[Colour]:
    """Return the colour of each object, another than those near it have if there are enough.

    One of the first ``PALETTE``: that of its class, the next if a near object before it has that.

    Args:
      boxes: left, top, right and bottom, (N, 4); one less than half a side away is near.
      classes: (N,).
      num_classes: of the model.
    """
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    chosen: list[int] = []
    for i, number in enumerate(_numbers(classes, num_classes)):
        reach = sides[i] + sides[:i] / 2  # from the centre
        near = np.all(np.abs(centres[:i] - centres[i]) <= reach, 1)
        taken = collections.Counter(chosen[j] for j in np.flatnonzero(near))
        order = [(number + k) % PALETTE for k in range(PALETTE)]
        chosen.append(min(order, key=lambda index: taken[index]))
    return [colour(index) for index in chosen]


def label_map(masks: Iterable[np.ndarray], size: Size) -> np.ndarray:
    """Return the number of the object of each pixel, uint16 (H, W), from 1; 0 where there is none.

    Args:
      masks: bool (H, W) of each object; where they overlap, the first has the pixel.
      size: of the image.
    """
    labels = np.zeros(size, np.uint16, order="F")  # as pasted masks, which is quick
    for number, mask in enumerate(masks, start=1):
        labels[mask & (labels == 0)] = number
    return labels


def draw_masks(image: np.ndarray, labels: np.ndarray, colours: Sequence[Colour]) -> np.ndarray:
    """Return an image with its objects in their colours, and with lines along their borders.

    Args:
      image: uint8 (H, W, 3).
      labels: see ``label_map``.
      colours: of each object.
    """
    labels, table = np.ascontiguousarray(labels), np.array([(0, 0, 0), *colours], np.float32)
    inside = labels > 0
    picture = image.copy()
    picture[inside] = (1 - OPACITY) * image[inside] + OPACITY * table[labels[inside]]
    border = inside & _differs_from_a_neighbour(labels)
    picture[border] = table[labels[border]]
    return picture


def save_label_map(labels: np.ndarray, colours: Sequence[Colour], path: Path) -> None:
    """Write a label map as a PNG of the same values, whose palette has the colours.

    With more than 255 objects it is a grey PNG of 16 bits.

    Args:
      labels: see ``label_map``.
      colours: of each object.
      path: PNG to write.

    Raises:
      InputError: if it cannot be written.
    """
    if len(colours) < 256:
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(np.array([(0, 0, 0), *colours], np.uint8).tobytes())
    else:
        image = Image.fromarray(labels)
    with writing("output", path):
        image.save(path, format="PNG")


def draw_batch(run: Run, path: Path, split: str, batch_index: int = 0) -> None:
    """Draw a batch with its boxes, and its masks if it has some, as a PNG.

    Args:
      run: a run of detection.
      path: PNG to write.
      split: ``train``: augmented; ``eval``: the first batch.
      batch_index: training batch of the run, from 0.

    Raises:
      InputError: if the picture cannot be written.
    """
    names = run.batches.class_names
    batch = read_batch(run.batches, split, batch_index)
    title = "Training images after augmentation"
    if split == "eval":
        title = "Evaluation images as the network sees them"
    images = batch["image"]
    columns = min(COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    height = 4 * images.shape[1] / images.shape[2]
    figure = matplotlib.figure.Figure((4 * columns, height * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for i, axes in enumerate(panels[: len(images)]):
        axes.imshow(_draw_objects({name: value[i] for name, value in batch.items()}, names))
    figure.suptitle(f"{title}, with their boxes{' and masks' if 'masks' in batch else ''}")
    with writing("output", path):
        figure.savefig(path, dpi=160, format="png")


def _numbers(classes: np.ndarray, num_classes: int) -> list[int]:
    """Return the number of each object's colour: its class, or its own if there is one class."""
    return classes.tolist() if num_classes > 1 else [*range(len(classes))]


def _draw_objects(element: dict[str, np.ndarray], class_names: Sequence[str]) -> np.ndarray:
    """Return the image of an element with its objects."""
    chosen = element["object_valid"]
    image, boxes, classes = element["image"], element["boxes"][chosen], element["classes"][chosen]
    colours = class_colours(classes, len(class_names))
    if "masks" in element:
        colours = mask_colours(boxes, classes, len(class_names))
        masks = (np.unpackbits(bits, axis=-1).astype(bool) for bits in element["masks"][chosen])
        image = draw_masks(image, label_map(masks, image.shape[:2]), colours)
    return draw_boxes(image, boxes, [class_names[int(i)] for i in classes], colours)


def _differs_from_a_neighbour(labels: np.ndarray) -> np.ndarray:
    border = np.zeros(labels.shape, bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= right
    border[:, :-1] |= right
    return border


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of Matplotlib, which has the letters of many languages."""
    folder = Path(matplotlib.get_data_path())
    return ImageFont.truetype(str(folder / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _place(box: Area, text: Area, size: tuple[int, int], taken: Sequence[Area]) -> Area | None:
    """Return where the text of a box may be: above it, in it, below it; None if nowhere."""
    width, height = text[2] + 1, text[3] + 1
    x0, y0, x1, y1 = box
    places = [(x, y) for y in (y0 - height, y0, y1, y1 - height) for x in (x0, x1 - width)]
    for x, y in places:
        x = min(max(0, x), max(0, size[0] - width))
        place = (x, y, x + width, y + height)
        if 0 <= y <= size[1] - height and not any(_overlap(place, other) for other in taken):
            return place
    return None


def _overlap(a: Area, b: Area) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _contrast(background: Colour) -> Colour:
    """Return black or white, whichever can be read on a colour."""
    red, green, blue = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
