"""From image files to class names and explanations."""

import json
from functools import partial
from pathlib import Path

import commands
import golden
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import resnest_jax
from resnest_jax.data import crops
from resnest_jax.data.imagenet import imagenet_classes
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import MEAN, STD
from resnest_jax.tasks import photos
from resnest_jax.tasks.classification import predict
from resnest_jax.tasks.classification.explain import draw, explain
from resnest_jax.weights import classifier

EXIF_ORIENTATION = 274
HUB = Path("hub/model.safetensors")
TINY = {"planes": (8, 8, 8, 8), "stem_width": 4, "stage_sizes": (1, 2, 1, 1)}


def photo(height=60, width=90):
    """Return a smooth colour image without symmetry."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    channels = (255 * x, 255 * y, 127 + 127 * np.sin(9 * x * y + 4 * x))
    return np.stack(channels, -1).astype(np.uint8)


def tiny(name="resnest50", **fields):
    """Return a small model with random weights and statistics."""
    model = resnest_jax.create_model(name, **TINY, **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    rng = np.random.default_rng(0)

    def draw_leaf(path, leaf):
        values = rng.standard_normal(leaf.shape, np.float32)
        if path[-1].key in ("scale", "var"):
            return 1 + 0.1 * np.abs(values)
        return values * (0.3 if path[-1].key == "kernel" else 0.1)

    return model, jax.tree.map_with_path(draw_leaf, shapes)


@pytest.fixture
def load_calls(monkeypatch):
    """Take weights from ``tiny``; record the calls. A run has a checkpoint of step 3."""
    calls = []

    def load_pretrained(name, source, *, checkpoint, **fields):
        calls.append((name, source, checkpoint))
        return tiny(name, num_classes=1000 if source == HUB else 10, **fields)

    monkeypatch.setattr(classifier, "load_pretrained", load_pretrained)
    monkeypatch.setattr(classifier, "fetch", lambda name: HUB)
    monkeypatch.setattr(classifier, "find_checkpoint", lambda path, which: 3)
    return calls


@pytest.mark.parametrize(
    ("shape", "size", "box"),  # left, top, right, bottom
    [
        ((256, 256), 224, (16, 16, 240, 240)),
        ((256, 512), 224, (144, 16, 368, 240)),
        ((427, 640), 224, (133, 27, 507, 401)),  # a side of 373.6
        ((500, 375), 256, (21, 83, 354, 416)),
        ((90, 60), 416, (2, 17, 58, 73)),
    ],
)
def test_center_crop_is_pillow_by_hand(shape, size, box):
    image = photo(*shape)
    expected = Image.fromarray(image).crop(box).resize((size, size), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(crops.test_crop(image, size, "authors"), np.asarray(expected))


def test_center_crop_keeps_and_averages():
    image = photo(256, 300)
    kept = crops.test_crop(image, 224, "authors")  # the side is 224: nothing is resized
    np.testing.assert_array_equal(kept, image[16:240, 38:262])
    checkers = (255 * (np.indices((1024, 1024)).sum(0) % 2)).astype(np.uint8)
    shrunk = crops.test_crop(np.stack([checkers] * 3, -1), 224, "authors")
    assert np.abs(shrunk[4:-4, 4:-4].astype(int) - 127).max() < 8  # no aliasing: plain grey
    np.testing.assert_array_equal(
        crops.test_crop(np.full((40, 70, 3), 9, np.uint8), 64, "authors"), 9
    )


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (2, 3), (33, 35)])
@pytest.mark.parametrize("size", [32, 33, 224])
def test_center_crop_takes_any_size(height, width, size):
    assert crops.test_crop(photo(height, width), size, "authors").shape == (size, size, 3)


def test_every_kind_of_file(tmp_path):
    upright = Image.fromarray(photo())
    grey = upright.convert("L")
    files = {
        "rgb.png": (upright, upright),
        "grey.png": (grey, grey.convert("RGB")),
        "black.png": (grey.convert("1"), grey.convert("1").convert("RGB")),
        "rgba.png": (upright.convert("RGBA"), upright),
        "grey_alpha.png": (grey.convert("LA"), grey.convert("RGB")),
        "palette.png": (upright.quantize(64), upright.quantize(64).convert("RGB")),
        "animation.gif": (grey, grey.convert("RGB")),
        "lossless.webp": (upright, upright),
    }
    for name, (saved, expected) in files.items():
        options = {"lossless": True} if name.endswith("webp") else {}
        saved.save(tmp_path / name, **options)
        pixels = photos.read_image(tmp_path / name)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, np.asarray(expected), err_msg=name)


def test_transparent_palette_does_not_warn(tmp_path, recwarn):
    upright = Image.fromarray(photo()).quantize(64)
    upright.save(tmp_path / "clear.png", transparency=bytes(range(64)))
    pixels = photos.read_image(tmp_path / "clear.png")
    np.testing.assert_array_equal(pixels, np.asarray(upright.convert("RGB")))
    assert not recwarn.list


def test_cmyk_jpeg(tmp_path):
    image = Image.fromarray(photo())
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    difference = photos.read_image(tmp_path / "cmyk.jpg").astype(int) - np.asarray(image)
    assert np.abs(difference).mean() < 4


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_keep_the_upper_eight(kind, tmp_path):
    values = np.arange(0, 65536, 16, np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / f"deep.{kind}")
    pixels = photos.read_image(tmp_path / f"deep.{kind}")
    np.testing.assert_array_equal(pixels, np.stack([values // 256] * 3, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_equals_upright(orientation, tmp_path):
    upright = photo()
    stored = {  # as a camera held that way stores it
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(photos.read_image(tmp_path / "a.png"), upright)
    options = {"quality": 98, "subsampling": 0}
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.jpg", exif=exif, **options)
    read = photos.read_image(tmp_path / "a.jpg")
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright).mean() < 2


def test_broken_files_are_input_errors(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "whole.png")
    Image.fromarray(photo()).save(tmp_path / "whole.jpg")
    Image.fromarray(photo()[..., 0].astype(np.float32)).save(tmp_path / "float.tiff")
    contents = {"empty.png": b"", "text.txt": b"no image", "header.png": b"\x89PNG\r\n\x1a\n"}
    for kind in ("png", "jpg"):
        whole = (tmp_path / f"whole.{kind}").read_bytes()
        contents |= {f"half.{kind}": whole[: len(whole) // 2], f"cut.{kind}": whole[:40]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in [*contents, "float.tiff", "missing.jpg"]:
        with pytest.raises(InputError, match=name):
            photos.read_image(tmp_path / name)


def test_folders_are_sorted_and_flat(tmp_path):
    for name in ("b.png", "a.png", ".hidden.png", "inner/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = photos.find_images([f"{tmp_path}/b.png", str(tmp_path), "z.png"])
    assert [path.name for path in found] == ["b.png", "a.png", "z.png"]
    for files in ([], [str(tmp_path / "none")]):
        (tmp_path / "none").mkdir(exist_ok=True)
        with pytest.raises(InputError):
            photos.find_images(files)


def test_class_names():
    names = imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    assert all(name == name.strip() and name for name in names)
    known = {
        0: "tench",
        1: "goldfish",
        207: "golden retriever",
        281: "tabby",
        388: "giant panda",
        817: "sports car",
        985: "daisy",
        999: "toilet tissue",
    }
    assert {i: names[i] for i in known} == known


@pytest.mark.parametrize("case", ["resnest14@64", "resnet50@64"])
def test_probabilities_are_the_softmax_of_the_authors_logits(case):
    name, fields, shape, seed = golden.CASES[case]
    model, variables = golden.build(name, fields)
    images = golden.images(shape, seed) * STD + MEAN
    logits = golden.golden(case, "logits").astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    explanation = explain(model, variables, images)
    batch = {"image": images}
    for probabilities in (predict.predict(model, variables, batch), explanation.probabilities):
        np.testing.assert_allclose(probabilities, expected, rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert (explanation.attention is None) == (model.radix == 0)


def test_map_is_grad_cam():
    """The closed form against the gradient of the top logit by automatic differentiation."""
    model, variables = tiny()
    images = np.stack([photo(96, 64), photo(96, 64)[::-1]])
    normalized = (images - MEAN) / STD
    c5 = jax.jit(partial(model.apply, method="features"))(variables, normalized)["c5"]

    def logits_of(c5):
        head = variables["params"]["head"]
        return c5.mean((1, 2)) @ head["kernel"] + head["bias"][None]

    top = np.argmax(jax.jit(model.apply)(variables, normalized), -1)
    gradient = jax.grad(lambda c5: logits_of(c5)[np.arange(2), top].sum())(c5)
    weights = gradient.mean((1, 2), keepdims=True)
    expected = np.maximum((weights * c5).sum(-1), 0)
    assert expected.shape == (2, 3, 2)
    assert expected.max() > 0
    np.testing.assert_allclose(explain(model, variables, images).cam, expected, rtol=1e-4)


@pytest.mark.parametrize("radix", [1, 2, 4])
def test_attention_of_a_stage(radix):
    model, variables = tiny(f"resnest50_fast_{radix}s1x64d")
    images = photo(64, 64)[None]
    explanation = explain(model, variables, images)
    assert explanation.attention.shape == explanation.spread.shape == (1, 4, radix)
    if radix > 1:
        np.testing.assert_allclose(explanation.attention.sum(-1), 1, rtol=1e-5)
    normalized = (images - MEAN) / STD
    apply = jax.jit(partial(model.apply, mutable=["intermediates"]))
    _, sown = apply(variables, normalized)
    blocks = [sown["intermediates"][f"stage2_block{i}"]["conv2"]["attention"][0] for i in (1, 2)]
    for values, function in ((explanation.attention, np.mean), (explanation.spread, np.std)):
        expected = function(np.stack(blocks), axis=(0, 3))
        np.testing.assert_allclose(values[:, 1], expected, rtol=1e-4, atol=1e-6)


def test_run_prints_tables_and_skips(tmp_path, capsys, load_calls):
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(9):  # more than one batch
        Image.fromarray(photo(50 + i, 60)).save(folder / f"{i}.png")
    assert predict.run([str(folder)], name="resnest50", sizes=(32,)) == 0
    clean = capsys.readouterr()
    assert clean.err == ""
    blocks = [clean.out.splitlines()[i : i + 6] for i in range(0, 54, 6)]
    names = imagenet_classes()
    for i, (path, *lines) in enumerate(blocks):
        assert path == str(folder / f"{i}.png")
        shares = [float(line.split("%")[0]) for line in lines]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 100
        assert {line.split("%")[1].strip() for line in lines} <= set(names)
    (folder / "notes.txt").write_text("no image")
    assert predict.run([str(folder)], name="resnest50", sizes=(32,)) == 1
    skipped = capsys.readouterr()
    assert skipped.out == clean.out
    assert skipped.err.count("\n") == 1
    assert "notes.txt" in skipped.err
    assert load_calls == [("resnest50", HUB, "last")] * 2


def test_run_without_a_model_says_so(tmp_path, load_calls):
    with pytest.raises(InputError, match="--model=resnest50"):
        predict.run([str(tmp_path / "a.png")])
    with pytest.raises(InputError, match="at most 100; got 101"):
        predict.run([f"{i}.png" for i in range(101)], outputs=predict.Outputs(Path("a.png")))


@pytest.mark.parametrize(
    ("name", "size"), [("resnest50", 224), ("resnest101", 256), ("resnest50_fast_8s1x64d", 224)]
)
def test_published_models_are_tested_at_their_size(name, size, load_calls):
    predictor = predict.load(name, None)
    element = {"image": photo(), "label": 0}
    assert predictor.transform.map(element)["image"].shape == (size, size, 3)
    assert predictor.class_names[0] == "tench"
    smaller = predict.load(name, None, sizes=(64,))
    assert smaller.transform.map(element)["image"].shape == (64, 64, 3)


@pytest.mark.parametrize("names", [["cat", "dog"], [f"c{i}" for i in range(10)]])
def test_an_old_run_has_the_classes_of_its_data(names, tmp_path, load_calls):
    for name in names:
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(photo(16, 24)).save(tmp_path / "data" / name / f"{i}.png")
    config = helpers.tiny_config(
        dataset=f"folder:{tmp_path}/data", image_size=48, eval_image_size=48
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    predictor = predict.load(None, str(tmp_path))
    assert load_calls == [(config.model.name, tmp_path, "3")]
    element = predictor.transform.map({"image": photo(48, 48), "label": 0})
    assert element["image"].tolist() == photo(48, 48).tolist()  # no margin
    # The model has ten classes and was not trained on the folder of two.
    expected = names if len(names) == 10 else [f"class {i}" for i in range(10)]
    assert list(predictor.class_names) == expected


@pytest.mark.parametrize("name", ["resnest50_fast_4s1x64d", "resnet50"])
def test_explain_writes_a_picture(name, tmp_path, capsys, load_calls):
    for i in range(2):
        Image.fromarray(photo(50 + i, 60)).save(tmp_path / f"cost_$_{i}.png")
    (tmp_path / "c.txt").write_text("no image")
    out = tmp_path / "out.png"
    outputs = predict.Outputs(explain=out)
    code = predict.run([str(tmp_path)], name=name, sizes=(64,), outputs=outputs)
    assert code == 1
    assert capsys.readouterr().out.count("%") == 10
    with Image.open(out) as picture:
        width, height = picture.size
    assert 400 < width < 1200
    assert height == 480
    with pytest.raises(InputError, match="cannot be written"):
        predict.run(
            [f"{tmp_path}/cost_$_0.png"],
            name=name,
            sizes=(64,),
            outputs=predict.Outputs(explain=Path("/dev/null/a.png")),
        )


def test_map_without_evidence_is_drawn(tmp_path):
    model, variables = tiny()
    explanation = jax.tree.map(lambda x: x[0], explain(model, variables, photo(64, 64)[None]))
    explanation = explanation._replace(cam=np.zeros((2, 2), np.float32))
    names = imagenet_classes()
    draw(tmp_path / "a.png", ["a"], [photo(64, 64)], [explanation], names)
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model=resnest50"], ["IMAGE_OR_FOLDER"]),
        (["a.png", "--image_size=5"], ["image_size", "32"]),
        (["a.png", "--no_such_flag"], ["no_such_flag"]),
    ],
)
def test_bad_command_is_one_line(arguments, words):
    commands.assert_one_line(commands.run("resnest_jax.predict", *arguments), *words)
