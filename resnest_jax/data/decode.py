"""Decode image files of every format that Pillow reads, in training as in prediction."""

import functools
import io
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from resnest_jax.errors import InputError, one_line

JPEG_SCAN, JPEG_END, PNG_END = b"\xff\xda", b"\xff\xd9", b"IEND"
ORIENTATION = 0x0112  # EXIF tag
# Formats and modes that OpenCV decodes to the same pixels, in less time.
FAST = {("JPEG", "L"), ("JPEG", "RGB"), ("MPO", "RGB"), ("PNG", "L"), ("PNG", "RGB")}


def decode(record: dict[str, Any]) -> np.ndarray:
    """Decode a record's image to uint8 (H, W, 3), RGB, upright.

    Grey, palette and CMYK images become RGB, the EXIF orientation is applied, alpha is dropped, 16
    bits keep the upper 8; an animation gives its first frame.

    Raises:
      InputError: if the bytes are not a whole image, or have floating-point pixels, whose range is
        unknown; the message names ``record["key"]``.
    """
    try:
        return _decode(record["image"])
    except UnidentifiedImageError:
        reason = "not an image"
    except Exception as error:  # decoders raise many kinds for broken files
        reason = one_line(error)
    raise InputError(f"cannot decode the image {record['key']}: {reason}")


def decode_image(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its image decoded."""
    return {**record, "image": decode(record)}


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the files that ``decode`` reads, in lower case, with the dot."""
    formats = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in formats.items() if kind in Image.OPEN)


def _decode(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        if (image.format, image.mode) in FAST and "transparency" not in image.info:
            fast = _decode_fast(encoded, image.format == "PNG")
            if fast is not None:
                return _upright(fast, image.getexif().get(ORIENTATION, 1))
        return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))


def _decode_fast(encoded: bytes, is_png: bool) -> np.ndarray | None:
    """Decode with OpenCV; None where it cannot tell whether the file is whole."""
    # OpenCV fills the rest of a JPEG that is cut off with grey, without an error, and writes about
    # a PNG that is cut off to the terminal.
    if PNG_END not in encoded if is_png else encoded.rfind(JPEG_END) < encoded.rfind(JPEG_SCAN):
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror (H, W, 3) as EXIF says (``ImageOps.exif_transpose``)."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels; expected 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip instead of scaling
        upper = np.clip(np.asarray(image, np.int64) >> 8, 0, 255)
        image = Image.fromarray(upper.astype(np.uint8))
    if "transparency" in image.info:  # of a palette, else Pillow warns
        image = image.convert("RGBA")
    return image.convert("RGB")
