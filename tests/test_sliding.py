"""Multi-scale evaluation against the authors' results."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import segmentation_golden as golden

import resnest_jax
from resnest_jax.config import complete
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import MEAN, STD
from resnest_jax.models.layers.resize import interpolation
from resnest_jax.tasks.segmentation.evaluate import make_evaluator
from resnest_jax.tasks.segmentation.sliding import MultiScale
from resnest_jax.training.mesh import batch_sharding, make_mesh
from resnest_jax.weights.card import Card
from resnest_jax.weights.segmentation import Segmenter

MULTI = golden.cases("multi")
TINY = {"backbone": "resnest14", "planes": (8, 8, 8, 8), "stem_width": 4}


def network(classes: int, crop: int):
    """Return the goldens' function from windows to logits."""
    random = np.random.RandomState(77)
    weight = 0.3 * random.standard_normal((classes, 3))
    bias = 0.2 * random.standard_normal(classes)
    down, right = 0.5 * random.standard_normal(classes), 0.5 * random.standard_normal(classes)
    at = np.arange(crop) / crop
    place = bias + down * at[:, None, None] + right * (at**2)[None, :, None]

    def logits(images):
        return jnp.asarray(np.asarray(images, np.float64) @ weight.T + place, jnp.float32)

    return logits


def evaluator(case: dict, **fields) -> MultiScale:
    settings = {
        "logits": network(case["nclass"], case["crop"]),
        "base_size": case["base"],
        "crop_size": case["crop"],
        "scales": tuple(case["scales"]),
        "flip": case["flip"],
    }
    return MultiScale(**(settings | fields))


def image(case: dict) -> np.ndarray:
    return golden.images(case | {"n": 1})[0]


@pytest.mark.parametrize("name", MULTI)
def test_scores_are_the_authors(name):
    case = MULTI[name]
    expected = golden.ARRAYS[f"{name}/scores"]
    scores = evaluator(case).scores(image(case))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5 * expected.max())


def test_images_share_batches_of_one_shape():
    """Images of several sizes; their windows are no multiple of a batch."""
    names = [name for name in MULTI if MULTI[name]["scales"] == MULTI["ms_small"]["scales"]]
    names = [name for name in names if MULTI[name]["flip"]]
    first = MULTI[names[0]]
    shapes = []

    def logits(images):
        shapes.append(images.shape)
        return network(first["nclass"], first["crop"])(images)

    shared = evaluator(first, logits=logits, batch_size=7)
    predictions = list(shared.predict(image(MULTI[name]) for name in names))
    assert len(predictions) == len(names) == 4
    for name, prediction in zip(names, predictions, strict=True):
        assert prediction.labels.dtype == np.uint8
        np.testing.assert_array_equal(prediction.labels, golden.ARRAYS[f"{name}/argmax"])
        assert prediction.passes == golden.ARRAYS[f"{name}/calls"]
    windows = sum(prediction.passes for prediction in predictions) // 2
    assert shapes == [(7, 24, 24, 3)] * (2 * -(-windows // 7))


def test_predictions_come_before_all_images_are_read():
    case = MULTI["ms_one_scale"]
    predictions = evaluator(case).predict(itertools.repeat(image(case)))
    for prediction in itertools.islice(predictions, 3):
        np.testing.assert_array_equal(prediction.labels, golden.ARRAYS["ms_one_scale/argmax"])


def test_windows_at_real_sizes():
    grid = json.loads((golden.FOLDER / "tables.json").read_text())["grid"]
    assert len(grid) == 50
    for row in grid:
        scales = (row["scale"],)
        settings = MultiScale(abs, row["base"], row["crop"], scales)
        ((size, rows, cols),) = settings.plan(row["h"], row["w"])
        assert size == (row["height"], row["width"])
        assert len(rows) * len(cols) == row["windows"]
        if row["whole"]:
            assert (rows, cols) == ([(0, size[0])], [(0, size[1])])
        else:  # the table counts rows of padding below the image too
            padded = [(start, max(end, row["crop"])) for start, end in rows]
            assert [list(span) for span in padded] == row["rows"]
            padded = [(start, max(end, row["crop"])) for start, end in cols]
            assert [list(span) for span in padded] == row["cols"]


def plain_scores(logits, image: np.ndarray, settings: MultiScale) -> np.ndarray:
    """Return the scores in float64, step by step."""
    crop = settings.crop_size
    scores = 0.0
    height, width, _ = image.shape
    for size, rows, cols in settings.plan(height, width):
        to_rows, to_cols = interpolation(height, size[0]), interpolation(width, size[1])
        resized = np.einsum("yh,xw,hwc->yxc", to_rows, to_cols, image)
        total, count = 0.0, 0.0
        for (top, bottom), (left, end) in itertools.product(rows, cols):
            window = np.tile(-MEAN / STD, (1, crop, crop, 1))
            window[0, : bottom - top, : end - left] = resized[top:bottom, left:end]
            both = logits(window) + logits(window[:, :, ::-1])[:, :, ::-1]
            kept = np.exp(np.asarray(both, np.float64))[0, : bottom - top, : end - left]
            beside = [(top, size[0] - bottom), (left, size[1] - end), (0, 0)]
            total = total + np.pad(kept, beside)
            count = count + np.pad(np.ones(kept.shape), beside)
        to_rows, to_cols = interpolation(size[0], height), interpolation(size[1], width)
        scores = scores + np.einsum("hy,wx,yxc->hwc", to_rows, to_cols, total / count)
    return scores


@pytest.mark.parametrize("factor", [1, 40])
def test_large_logits_overflow_nowhere(factor):
    """The best score of a pixel is exact, others that are e88 times smaller may become 0."""
    case = MULTI["ms_wide"]
    small = network(case["nclass"], case["crop"])

    def logits(images):
        return small(images) * factor

    settings = evaluator(case, logits=logits)
    picture = image(case)
    expected = plain_scores(logits, picture, settings)
    assert (expected.max() > np.exp(88)) == (factor == 40)
    scores = settings.scores(picture)
    best = expected.max(-1, keepdims=True)
    np.testing.assert_allclose(scores / best, expected / best, rtol=0, atol=1e-5 * factor)
    (prediction,) = settings.predict([picture])
    np.testing.assert_array_equal(prediction.labels, expected.argmax(-1))


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1), (3, 200)])
def test_thin_images(shape):
    case = MULTI["ms_one_scale"]
    picture = np.random.RandomState(5).standard_normal((*shape, 3)).astype(np.float32)
    settings = evaluator(case, scales=(0.5, 1.5))
    expected = plain_scores(settings.logits, picture, settings)
    np.testing.assert_allclose(settings.scores(picture), expected, rtol=1e-5)


def test_windows_sharded_over_devices():
    case = MULTI["ms_small"]
    mesh = make_mesh()
    apply = network(case["nclass"], case["crop"])

    def logits(images):
        return jax.device_put(apply(images), batch_sharding(mesh))

    sharded, one = evaluator(case, logits=logits, batch_size=8), evaluator(case, batch_size=8)
    expected = one.scores(image(case))
    difference = np.abs(sharded.scores(image(case)) - expected).max()
    assert difference <= 1e-6 * expected.max()
    (prediction,) = sharded.predict([image(case)])
    np.testing.assert_array_equal(prediction.labels, golden.ARRAYS["ms_small/argmax"])


def test_the_evaluator_of_a_model_uses_all_devices():
    """Its logits lie on all of them, and its scores are those of one."""
    model = resnest_jax.create_model("fcn", num_classes=3, **TINY)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 48, 48, 3)))
    values = {"crop_size": 48, "augment.base_size": 64, "evaluation.scales": (0.75, 1.5)}
    config = complete({"task": "segmentation", "model": {"name": "fcn", **TINY}, **values})
    shared = make_evaluator(Segmenter(Path("weights"), config, variables, Card()), batch_size=7)
    assert shared.batch_size == 8 == jax.local_device_count()
    windows = jnp.zeros((8, 48, 48, 3))
    assert len(shared.logits(windows).sharding.device_set) == 8
    one = dataclasses.replace(shared, logits=lambda images: jax.jit(model.apply)(variables, images))
    picture = np.random.RandomState(5).standard_normal((60, 70, 3)).astype(np.float32)
    expected = one.scores(picture)
    np.testing.assert_allclose(shared.scores(picture), expected, rtol=0, atol=1e-6 * expected.max())


@pytest.mark.parametrize(
    ("field", "value"), [("base_size", 0), ("crop_size", 1), ("batch_size", 0), ("scales", ())]
)
def test_bad_settings(field, value):
    with pytest.raises(InputError, match=field):
        MultiScale(abs, **{field: value})
