"""Label tables against the authors', and label maps of every format against Pillow and SciPy."""

import io
import json

import numpy as np
import pytest
import scipy.io
import segmentation_golden as golden
from PIL import Image
from records import encode

from resnest_jax.data.label_maps import MaskDecoder, decode_label_map
from resnest_jax.data.label_tables import IGNORED, LabelTable, published_table, voc_color
from resnest_jax.errors import InputError

TABLES = json.loads((golden.FOLDER / "tables.json").read_text())["datasets"]
NAMES = {
    "ade20k": "ade20k",
    "cityscapes": "citys",
    "pascal_context": "pcontext",
    "voc": "pascal_voc",
    "voc_aug": "pascal_aug",
}
MAP = np.array([[0, 1, 2, 255], [7, 20, 1, 0]], np.uint8)


def mat(array):
    """Encode as the augmented VOC does."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"GTcls": {"Segmentation": array, "Boundaries": [0]}})
    return buffer.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_published_tables_are_the_authors(name):
    table, stored = published_table(name), TABLES[NAMES[name]]
    assert len(table.names) == len(set(table.names)) == stored["classes"]
    assert table.padding == (IGNORED if stored["padding_becomes"] == -1 else 0)
    for value, label in stored["lookup"].items():
        label_map = np.array([[int(value)]])
        if label < stored["classes"]:
            expected = IGNORED if label == -1 else label
            assert table.labels(label_map, "a file") == expected
        else:
            with pytest.raises(InputError, match=f"a file has the value {value} in 1 of its 1"):
                table.labels(label_map, "a file")
    if isinstance(stored.get("prediction_to_file"), list):
        assert list(table.values) == stored["prediction_to_file"]
    elif "prediction_to_file" in stored:
        offset = int(stored["prediction_to_file"].rpartition(" ")[2])
        assert [value - offset for value in table.values] == list(range(stored["classes"]))


def test_palettes_are_the_authors():
    palettes = TABLES["palettes"]
    assert [list(color) for color in published_table("ade20k").palette] == palettes["ade20k"][1:]
    city = published_table("cityscapes").palette
    assert [list(color) for color in city] == palettes["citys_first_20"][:19]
    voc = [list(color) for color in published_table("voc").palette]
    assert voc == palettes["voc_first_22"][:21]
    assert list(voc_color(255)) == palettes["voc_255"]


@pytest.mark.parametrize(
    "encoded",
    [
        encode(MAP),
        encode(MAP, mode="P"),
        encode(MAP.astype(np.uint16)),
        encode(MAP, file_format="BMP"),
        encode(MAP, file_format="TIFF"),
        mat(MAP),
        mat(MAP.astype(float)),
    ],
    ids=["grey", "palette", "grey16", "bmp", "tiff", "mat", "mat of floats"],
)
def test_formats(encoded):
    np.testing.assert_array_equal(decode_label_map(encoded, "k"), MAP)


def test_palette_gives_indices_and_not_colours():
    image = Image.frombytes("P", MAP.shape[::-1], MAP.tobytes())
    image.putpalette([200, 3, 90] * 256)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    np.testing.assert_array_equal(decode_label_map(buffer.getvalue(), "k"), MAP)


def test_sixteen_bits_are_kept_and_a_bit_is_a_class():
    wide = np.array([[0, 256, 65535]], np.uint16)
    np.testing.assert_array_equal(decode_label_map(encode(wide), "k"), wide)
    bits = np.array([[True, False, True]])
    np.testing.assert_array_equal(decode_label_map(encode(bits), "k"), bits.astype(np.uint8))


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (encode(np.dstack([MAP] * 3)), "pixels are RGB; expected one number per pixel"),
        (encode(np.zeros((8, 8), np.uint8), file_format="JPEG"), "JPEG changes the values"),
        (b"text", "cannot identify"),
        (encode(np.zeros((64, 64), np.uint8))[:-30], "truncated"),
        (mat(MAP)[:200], ""),
    ],
    ids=["rgb", "jpeg", "text", "cut off", "mat"],
)
def test_what_is_not_a_label_map_is_named(encoded, message):
    with pytest.raises(
        InputError, match=f"cannot decode the label map a/file: .*{message}"
    ) as error:
        decode_label_map(encoded, "a/file")
    assert "\n" not in str(error.value)


def test_value_outside_the_classes():
    table = LabelTable(("sky", "road"), (3, 9), ignored=(0, 4, 5, 6, 255))
    raw = np.array([[0, 3, 9, 255]], np.uint16)
    assert table.labels(raw, "k").tolist() == [[255, 0, 1, 255]]
    for value in (1, 10, 70000, -1):
        with pytest.raises(InputError) as error:
            table.labels(np.array([[0, value, value, 3]], np.int32), "a/b.png")
        assert str(error.value) == (
            f"the label map a/b.png has the value {value} in 2 of its 4 pixels; expected 3, 9 for "
            "the 2 classes or 0, 4 to 6, 255 for ignored pixels"
        )


def test_decoder_gives_labels_and_compares_the_sizes():
    decoder = MaskDecoder(published_table("voc"))
    picture = np.full((2, 4, 3), 100, np.uint8)
    record = {"image": encode(picture), "labels": encode(MAP), "key": "i", "labels_key": "m"}
    found = decoder(record)
    np.testing.assert_array_equal(found["image"], picture)
    np.testing.assert_array_equal(found["labels"], MAP)  # 255 stays, the rest is unchanged
    assert found["labels"].dtype == np.uint8
    with pytest.raises(InputError, match="image i is 4x2 pixels, its label map m 2x4"):
        decoder({**record, "labels": encode(np.ascontiguousarray(MAP.T))})
    with pytest.raises(InputError, match=r"label map m has the value 21 .*expected 0 to 20"):
        decoder({**record, "labels": encode(MAP + (MAP == 20).astype(np.uint8))})
