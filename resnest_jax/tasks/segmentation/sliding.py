"""Evaluate images at several scales in sliding windows, as the authors of ResNeSt do."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from resnest_jax.errors import InputError
from resnest_jax.models.inputs import MEAN, STD
from resnest_jax.tasks.segmentation.windows import Scale, Taps, Window, on_canvas, plan, windows

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

BLACK = -MEAN / STD  # the padding: a black pixel, normalised
NEVER = -1e30  # logarithm of 0, finite: the difference of two infinities is NaN

Size = tuple[int, int]  # height, width
Result = TypeVar("Result")


class Prediction(NamedTuple):
    """Result for one image.

    Attributes:
      labels: uint8 (h, w), the best class of each pixel.
      passes: windows that the network processed for it, mirrored ones included.
    """

    labels: np.ndarray
    passes: int


class Scores(NamedTuple):
    """Positive scores ``value * exp(log_scale)``, which may be too large for float32.

    Attributes:
      value: (..., C).
      log_scale: (...), the same for all classes of a pixel: ``value`` shows the best class.
    """

    value: jax.Array
    log_scale: jax.Array


class _Part(NamedTuple):
    """A window of an image.

    Attributes:
      pixels: the image minus ``BLACK``, on the device, with zeros below and on the right.
      size: height and width of the image.
      is_last: whether it is the last window of the image.
    """

    pixels: jax.Array
    size: Size
    window: Window
    is_last: bool


@dataclasses.dataclass(frozen=True)
class MultiScale:
    """The authors' multi-scale evaluator, for images of any size.

    At each scale the image is resized and cut into overlapping windows. The scores of a window are
    ``exp(logits)``; with ``flip``, ``exp`` of the sum of its logits and of those of its mirror
    image. They are averaged where windows overlap, resized to the image, and summed over the
    scales. All of it happens on the device, in batches of windows that images share. ``logits`` may
    shard its result over several devices; the first of them pastes the windows.

    Attributes:
      logits: compiled function from normalised images (batch_size, crop_size, crop_size, 3) to
        logits (batch_size, crop_size, crop_size, C), both float32.
      base_size: longer side of the image at scale 1, in pixels.
      crop_size: side of the windows; two thirds of it are between their starts.
      scales: factors of ``base_size``.
      flip: whether mirrored windows count too.
      batch_size: windows in a batch.

    Raises:
      InputError: if a field is out of range.
    """

    logits: Callable[[jax.Array], jax.Array]
    base_size: int = 520
    crop_size: int = 480
    scales: tuple[float, ...] = SCALES
    flip: bool = True
    batch_size: int = 4

    def __post_init__(self):
        for field, least in (("base_size", 1), ("crop_size", 2), ("batch_size", 1)):
            value = getattr(self, field)
            if value < least:
                raise InputError(f"multi-scale {field} must be at least {least}; got {value}")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise InputError(f"multi-scale scales must be positive numbers; got {self.scales}")

    def plan(self, height: int, width: int) -> list[Scale]:
        """Return the windows of an image at each scale."""
        return [plan(height, width, self.base_size, self.crop_size, scale) for scale in self.scales]

    def predict(self, images: Iterable[np.ndarray]) -> Iterator[Prediction]:
        """Yield the prediction of each image, in order.

        Args:
          images: normalised images (h, w, 3), float32; read shortly before they are needed.
        """
        for (height, width), labels in self._results(images, _best_classes):
            scales = self.plan(height, width)
            count = sum(len(scale.rows) * len(scale.cols) for scale in scales)
            labels = jax.device_get(labels)[:height, :width]
            yield Prediction(labels, count * (2 if self.flip else 1))

    def scores(self, image: np.ndarray) -> np.ndarray:
        """Return the scores of a normalised image (h, w, 3), float32: float64 (h, w, C)."""
        (((height, width), total),) = self._results([image], lambda total: total)
        value, log_scale = (array[:height, :width] for array in jax.device_get(total))
        return value * np.exp(log_scale[..., None], dtype=np.float64)

    def _results(
        self, images: Iterable[np.ndarray], read: Callable[[Scores], Result]
    ) -> Iterator[tuple[Size, Result]]:
        """Yield the size of each image, and what ``read`` makes of its scores.

        Results come one batch late: while the caller waits for one, the device has the next batch.
        """
        results, previous, total = [], None, None
        parts = self._parts(images)
        while batch := list(itertools.islice(parts, self.batch_size)):
            scores = self._window_scores(batch)
            ready, results = results, []
            for i, part in enumerate(batch):
                if total is None:
                    total = _blank(part.pixels.shape[:2], scores.value.shape[-1])
                total = _paste(total, scores, i, *part.window.paste)
                if part.is_last:
                    results.append((part.size, read(total)))
                    total = None
            yield from ready
            jax.block_until_ready(previous)  # at most two batches take memory
            previous = scores
        yield from results

    def _parts(self, images: Iterable[np.ndarray]) -> Iterator[_Part]:
        """Yield all windows of all images."""
        for image in images:
            height, width = size = image.shape[:2]
            beyond = [(0, on_canvas(length) - length) for length in size]
            pixels = jax.device_put(np.pad(image - BLACK, [*beyond, (0, 0)]))
            plans = self.plan(height, width)
            each = [w for scale in plans for w in windows(size, self.crop_size, scale)]
            for window in each:
                yield _Part(pixels, size, window, window is each[-1])

    def _window_scores(self, batch: list[_Part]) -> Scores:
        """Return the scores (batch_size, crop_size, crop_size, C) of the windows."""
        cut = [_cut(part.pixels, *part.window.cut) for part in batch]
        images = jnp.stack(cut + cut[-1:] * (self.batch_size - len(cut)))
        mirrored = self.logits(images[:, :, ::-1]) if self.flip else None
        scores = _exponentiate(self.logits(images), mirrored)
        return jax.device_put(scores, jax.local_devices()[0])


@jax.jit
def _cut(pixels: jax.Array, rows: Taps, cols: Taps) -> jax.Array:
    """Return a window of an image, (crop_size, crop_size, 3), from its resized form."""
    low, high = (pixels[rows.index[i]] * rows.weight[i, :, None, None] for i in range(2))
    x = low + high
    low, high = (x[:, cols.index[i]] * cols.weight[i, None, :, None] for i in range(2))
    return low + high + BLACK[None, None]


@jax.jit
def _exponentiate(logits: jax.Array, mirrored: jax.Array | None = None) -> Scores:
    if mirrored is not None:
        logits += mirrored[:, :, ::-1]
    top = logits.max(-1)
    return Scores(jnp.exp(logits - top[..., None]), top)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _blank(size: Size, num_classes: int) -> Scores:
    return Scores(jnp.zeros((*size, num_classes)), jnp.full(size, NEVER))


@functools.partial(jax.jit, donate_argnums=0)
def _paste(total: Scores, windows: Scores, i: jax.Array, rows: Taps, cols: Taps) -> Scores:
    """Add window i of a batch, resized, to the scores of its image."""
    window = Scores(windows.value[i], windows.log_scale[i])
    parts = [(total.value, total.log_scale)]
    for a, b in itertools.product(range(2), repeat=2):
        at = rows.index[a, :, None], cols.index[b, None, :]
        weight = rows.weight[a, :, None] * cols.weight[b, None, :]
        log_weight = jnp.where(weight > 0, jnp.log(weight), NEVER)
        parts.append((window.value[at], window.log_scale[at] + log_weight))
    # The scale of the largest part: the others get smaller, and nothing overflows.
    top = functools.reduce(jnp.maximum, [log_scale for _, log_scale in parts])
    scaled = [value * jnp.exp(log_scale - top)[..., None] for value, log_scale in parts]
    return Scores(functools.reduce(jnp.add, scaled), top)


@jax.jit
def _best_classes(scores: Scores) -> jax.Array:
    return jnp.argmax(scores.value, -1).astype(jnp.uint8)
