"""Decoded images, and what becomes of records that cannot be read."""

import os
from pathlib import Path

import cv2
import numpy as np

from resnest_jax.data.sources.records import Records
from resnest_jax.errors import InputError

# Grain already runs one image per core; OpenCV's own threads would only contend with it.
cv2.setNumThreads(1)

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"


def decode(record) -> np.ndarray:
    """Decodes a record's image to uint8 (H, W, 3), RGB.

    Grey and palette images become RGB, alpha is dropped, 16 bits keep the upper 8. The EXIF
    orientation is ignored, as the usual ImageNet pipelines do.

    Raises:
      InputError: The bytes are no whole image; the message names record["key"].
    """
    encoded = np.frombuffer(record["image"], np.uint8)
    image = None
    if encoded.size and not _is_cut_off(record["image"]):  # OpenCV raises on an empty buffer
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise InputError(f"cannot decode the image {record['key']}: expected a whole JPEG or PNG")
    return image


def _is_cut_off(encoded: bytes) -> bool:
    """Whether a JPEG lacks its end, of which OpenCV would make grey without an error."""
    return encoded.startswith(JPEG_START) and JPEG_END not in encoded[-1024:]


class Images:
    """Random access to {"image": uint8 (H, W, 3), "label": int, "key": str}.

    In place of a record that cannot be read there is the next one that can: the choice depends
    on the index alone. Its key goes into the log, once, a line each, whatever worker finds it.

    Args:
      records: the encoded images.
      max_unreadable: how many different ones may turn out to be unreadable, in this process of
        the run and its workers.
      log: a file that these append to; None is none, and none may be unreadable.
    """

    def __init__(self, records: Records, max_unreadable: int = 0, log: Path | None = None):
        if max_unreadable < 0:
            raise InputError(f"loader.max_unreadable must not be negative; got {max_unreadable}")
        self._records, self._log = records, log
        self._max_unreadable = max_unreadable if log else 0

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        for offset in range(len(self)):
            found = self.read((index + offset) % len(self))
            if found:
                return found
        raise InputError(f"none of the {len(self)} images can be read")

    def read(self, index: int) -> dict | None:
        """The image of a record, None if it cannot be read.

        Raises:
          InputError: if that is one too many.
        """
        try:
            record = self._records[index]
            return {**record, "image": decode(record)}
        except (InputError, OSError) as error:
            if not self._max_unreadable:
                raise
            self._note(self._records.key(index), error)
            return None

    def _note(self, key: str, error: Exception) -> None:
        """Write the key down unless it is there; raise when there are too many."""
        known = set(self._log.read_text().splitlines()) if self._log.exists() else set()
        if key not in known:
            # One small write in append mode: lines of several workers do not mix.
            descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, f"{key}\n".encode())
            finally:
                os.close(descriptor)
        count = len(known | {key})
        if count > self._max_unreadable:
            raise InputError(
                f"{count} images cannot be read, more than loader.max_unreadable "
                f"{self._max_unreadable}: {self._log} lists them (delete it to count anew); "
                f"the last: {error}"
            )
