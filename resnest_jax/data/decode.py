"""Decode image files of every format that Pillow reads, in training as in prediction."""

import functools
import io
import os
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from resnest_jax.errors import InputError, one_line

JPEG_SCAN, JPEG_END, PNG_END = b"\xff\xda", b"\xff\xd9", b"IEND"
ORIENTATION = 0x0112  # EXIF tag
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by the number of channels
# Formats and modes that OpenCV decodes to the same pixels, in less time.
FAST = {("JPEG", "L"), ("JPEG", "RGB"), ("MPO", "RGB"), ("PNG", "L"), ("PNG", "RGB")}


def decode(record: dict[str, Any], channels: int = 3) -> np.ndarray:
    """Decode a record's image to uint8 (H, W, channels), upright.

    Images of other modes, palettes and CMYK among them, become grey (1 channel, the luma of ITU-R
    601), RGB (3) or RGBA (4, opaque where there is no alpha). The EXIF orientation is applied, 16
    bits keep the upper 8; an animation gives its first frame.

    Raises:
      InputError: if the bytes are not a whole image, or have floating-point pixels, whose range is
        unknown; the message names ``record["key"]``.
    """
    try:
        return _decode(record["image"], channels)
    except UnidentifiedImageError:
        reason = "not an image"
    except Exception as error:  # decoders raise many kinds for broken files
        reason = one_line(error)
    raise InputError(f"cannot decode the image {record['key']}: {reason}")


def decode_image(record: dict[str, Any], channels: int = 3) -> dict[str, Any]:
    """The record with its image decoded."""
    return {**record, "image": decode(record, channels)}


def decode_sized(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its image decoded to RGB; its ``size`` is (height, width).

    Raises:
      InputError: as ``decode``, or if the image has another size.
    """
    decoded = decode_image(record)
    check_listed_size(record["key"], decoded["image"].shape[:2], record["size"])
    return decoded


def check_listed_size(path: str, size: tuple[int, ...], listed: tuple[int, int]) -> None:
    """Raise InputError if an image, of (height, width), is listed with another size."""
    if size != listed:
        shown = [f"{width}x{height}" for height, width in (size, listed)]
        raise InputError(
            f"the image {path} is {shown[0]} pixels, upright; its annotation file says {shown[1]}"
        )


def upright_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return width and height as decoding gives them: upright. Reads only the header."""
    with Image.open(path) as image:
        width, height = image.size
        # Other formats have the orientation behind the pixels, or none.
        turned = image.format == "JPEG" and image.getexif().get(ORIENTATION, 1) >= 5
    return (height, width) if turned else (width, height)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the files that ``decode`` reads, in lower case, with the dot."""
    formats = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in formats.items() if kind in Image.OPEN)


def _decode(encoded: bytes, channels: int) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        plain = (image.format, image.mode) in FAST and "transparency" not in image.info
        if plain and channels == 3:
            fast = _decode_fast(encoded, image.format == "PNG")
            if fast is not None:
                return _upright(fast, image.getexif().get(ORIENTATION, 1))
        converted = np.asarray(_convert(ImageOps.exif_transpose(image), MODES[channels]))
        return converted.reshape(*converted.shape[:2], channels)


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


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels; expected 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip instead of scaling
        upper = np.clip(np.asarray(image, np.int64) >> 8, 0, 255)
        image = Image.fromarray(upper.astype(np.uint8))
    if "transparency" in image.info:  # of a palette, else Pillow warns
        image = image.convert("RGBA")
    return image.convert(mode)
