"""Decoding against Pillow, and records that cannot be read."""

import contextlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from records import Numbered, encode, labels_of, take, train, write_images

from resnest_jax.data.decode import decode
from resnest_jax.data.images import Images
from resnest_jax.data.loader import HostShard, eval_batches
from resnest_jax.data.sources import open_dataset
from resnest_jax.errors import InputError
from resnest_jax.tasks.classification.transforms import EvalTransform, TrainTransform

_GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


_RGB = np.stack([_GREY, _GREY // 2, 255 - _GREY], axis=-1)


_GREY_AS_RGB = np.repeat(_GREY[..., None], 3, axis=-1)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (encode(_GREY), _GREY_AS_RGB),
        (encode(_RGB), _RGB),
        (encode(np.dstack([_RGB, _GREY])), _RGB),
        (encode(np.dstack([_GREY, _GREY])), _GREY_AS_RGB),
        (encode(_GREY, mode="P"), _GREY_AS_RGB),
        (encode(_GREY.astype(np.uint16) * 256 + 255), _GREY_AS_RGB),
    ],
    ids=["grey", "rgb", "rgba", "grey-alpha", "palette", "grey16"],
)
def test_decode_png(encoded, expected):
    image = decode({"image": encoded, "key": "k"})
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


def test_decode_jpeg_is_rgb_and_upright():
    red = np.zeros((16, 32, 3), np.uint8)
    red[..., 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    image = decode({"image": encode(red, file_format="JPEG", exif=exif), "key": "k"})
    assert image.shape == (32, 16, 3)
    np.testing.assert_allclose(image.mean((0, 1)), [200, 0, 0], atol=3)


@pytest.mark.parametrize(
    "encoded",
    [b"", b"no image", encode(_RGB)[:50], encode(np.zeros((64, 64), np.uint8))[:-30]],
    ids=["empty", "text", "header", "truncated"],
)
def test_decode_names_the_record_it_cannot_decode(encoded):
    with pytest.raises(InputError, match=r"some/file\.png"):
        decode({"image": encoded, "key": "some/file.png"})


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.99])
def test_jpeg_that_is_cut_off_is_unreadable(kept):
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    encoded = encode(photo, file_format="JPEG")
    assert decode({"image": encoded, "key": "k"}).shape == (64, 64, 3)
    for extra in (16, 5000):
        assert decode({"image": encoded + b"\0" * extra, "key": "k"}).shape == (64, 64, 3)
    with pytest.raises(InputError, match="cannot decode the image k"):
        decode({"image": encoded[: int(kept * len(encoded))], "key": "k"})


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_by_the_next_and_listed(workers, tmp_path):
    log = tmp_path / "log.txt"
    images = Images(Numbered(20, broken=[4, 5, 19]), max_unreadable=3, log=log)
    plain = TrainTransform(8)
    with_broken = labels_of(take(train(images, plain, HostShard(4), seed=0, workers=workers), 15))
    whole = labels_of(take(train(Images(Numbered(20)), plain, HostShard(4), seed=0), 15))
    instead = {4: 6, 5: 6, 19: 0}
    assert with_broken == [instead.get(label, label) for label in whole]
    assert sorted(log.read_text().split()) == ["numbered#19", "numbered#4", "numbered#5"]


def test_unreadable_images_do_not_count_in_evaluation(tmp_path):
    images = Images(Numbered(10, broken=[0, 7]), max_unreadable=2, log=tmp_path / "log.txt")
    images_of_zeros = list(eval_batches(images, EvalTransform(8), HostShard(4)))
    mask = np.concatenate([batch["valid"] for batch in images_of_zeros])
    np.testing.assert_array_equal(np.flatnonzero(mask), [1, 2, 3, 4, 5, 6, 8, 9])


def test_too_many_unreadable_images_are_an_error(tmp_path):
    log = tmp_path / "log.txt"
    images = Images(Numbered(20, broken=[2, 3, 4]), max_unreadable=2, log=log)
    with pytest.raises(InputError, match=r"3 images cannot be read, more than loader\.max_unread"):
        take(train(images, TrainTransform(8), HostShard(4), seed=0), 10)
    with pytest.raises(InputError, match="3 images cannot be read"):  # again after a restart
        Images(Numbered(20, broken=[4]), max_unreadable=2, log=log)[4]
    again = Images(Numbered(20, broken=[5]), max_unreadable=2, log=log)
    with pytest.raises(InputError, match=f"4 images cannot be read.*{log}.*numbered#5"):
        again[5]  # images found before a restart count


def test_vanished_directory_is_an_error_soon(tmp_path):
    write_images(tmp_path / "images" / "cat", 10)
    records = open_dataset(f"folder:{tmp_path}/images").train
    images = Images(records, max_unreadable=3, log=tmp_path / "log.txt")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"\d+ images cannot be read.*No such file"):
        take(train(images, TrainTransform(8), HostShard(4), seed=0), 1)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_header_of_a_huge_image_is_an_unreadable_record(tmp_path):
    """40,000 x 40,000 pixels declared, next to none there."""
    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    record = {"image": b"\x89PNG\r\n\x1a\n" + body, "key": "huge.png"}
    with pytest.raises(InputError, match=r"cannot decode the image huge\.png: .*decompression"):
        decode(record)


def test_png_without_its_last_chunk_is_whole():
    encoded = encode(_RGB)
    np.testing.assert_array_equal(decode({"image": encoded[:-12], "key": "k"}), _RGB)


@pytest.mark.parametrize("file_format", ["BMP", "GIF", "PPM", "TGA", "TIFF", "WEBP", "ICO"])
def test_every_format_of_pillow_is_decoded(file_format):
    grey = np.repeat(np.arange(0, 256, 4, np.uint8).reshape(8, 8)[..., None], 3, -1)
    options = {"lossless": True} if file_format == "WEBP" else {}
    options |= {"sizes": [(8, 8)]} if file_format == "ICO" else {}
    encoded = encode(grey, file_format=file_format, **options)
    np.testing.assert_array_equal(decode({"image": encoded, "key": "k"}), grey)


def test_any_error_of_a_decoder_is_an_unreadable_record():
    """Bytes of files of many formats, cut and flipped at random: an image or an InputError."""
    rng = np.random.default_rng(0)
    for file_format in ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"):
        whole = encode(rng.integers(0, 256, (24, 31, 3), np.uint8), file_format=file_format)
        for _ in range(60):
            damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
            for position in rng.integers(0, len(damaged), 3):
                damaged[position] ^= 1 << rng.integers(8)
            with contextlib.suppress(InputError):
                image = decode({"image": bytes(damaged), "key": "damaged"})
                assert image.dtype == np.uint8
                assert image.shape[2] == 3
