"""Grey and RGBA images, from the file to the network."""

import helpers
import jax
import numpy as np
import pytest
from PIL import Image
from records import encode
from small_net import SmallNet

import resnest_jax
from resnest_jax import recipe
from resnest_jax.data.decode import decode
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import denormalize, input_channels, normalize
from resnest_jax.tasks.classification.task import Classification
from resnest_jax.tasks.classification.transforms import EvalTransform, TrainTransform
from resnest_jax.training.state import initial_state

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)


def read(encoded, channels):
    return decode({"image": encoded, "key": "file"}, channels)


def test_channels_of_a_file_are_kept():
    grey, rgba = PIXELS[..., 0], encode(PIXELS)
    np.testing.assert_array_equal(read(encode(grey), 1), grey[..., None])
    np.testing.assert_array_equal(read(rgba, 4), PIXELS)
    np.testing.assert_array_equal(read(rgba, 3), PIXELS[..., :3])
    sixteen = encode(grey.astype(np.uint16) * 256 + 77)
    np.testing.assert_array_equal(read(sixteen, 1), grey[..., None])


def test_channels_that_a_file_lacks():
    rgb = encode(PIXELS[..., :3])
    opaque = np.dstack([PIXELS[..., :3], np.full((9, 7), 255, np.uint8)])
    np.testing.assert_array_equal(read(rgb, 4), opaque)
    luma = PIXELS[..., :3] @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read(rgb, 1)[..., 0], luma, atol=1)
    repeated = np.repeat(PIXELS[..., :1], 3, -1)
    np.testing.assert_array_equal(read(encode(PIXELS[..., 0]), 4)[..., :3], repeated)
    turned = Image.Exif()
    turned[274] = 6
    np.testing.assert_array_equal(read(encode(PIXELS, exif=turned), 4), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("side", [8, 40, 60])
@pytest.mark.parametrize(
    "fields",
    [
        {"crop": "center", "shift": 0.2, "flip": True},
        {"crop": "inception"},
        {"crop": "efficientnet"},
    ],
    ids=lambda fields: fields["crop"],
)
def test_channels_are_transformed_one_by_one(fields, side):
    """Each has the pixels that it would have in an RGB image, whatever the others hold."""
    image = np.random.default_rng(1).integers(0, 256, (48, 40, 4), np.uint8)

    def transformed(channels, train):
        element = {"image": image[..., channels], "label": 1}
        if train:
            transform = TrainTransform(side, channels=len(channels), **fields)
            made = transform.random_map(element, np.random.default_rng(5))
            assert made["image"].shape == transform.specs[0]["image"].shape
        else:
            made = EvalTransform(side, "authors").map(element)
        return made["image"]

    for train in (True, False):
        first, last = (transformed(channels, train) for channels in ([0, 1, 2], [1, 2, 3]))
        np.testing.assert_array_equal(transformed([2], train), first[..., 2:])
        whole = transformed([0, 1, 2, 3], train)
        np.testing.assert_array_equal(whole[..., :3], first)
        np.testing.assert_array_equal(whole[..., 3:], last[..., 2:])


def test_erasing_takes_any_channels():
    transform = TrainTransform(32, erasing=1.0, channels=1)
    image = transform.random_map(
        {"image": np.zeros((32, 32, 1), np.uint8), "label": 0}, np.random.default_rng(0)
    )["image"]
    assert 0.01 < (image > 0).mean() < 0.4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": "randaugment"}, "augment.policy is for RGB images.*got 'randaugment'"),
        ({"jitter": 0.4}, "augment.jitter is for RGB images: set it to 0 with channels 1; got 0.4"),
        ({"lighting": 0.1}, "augment.lighting is for RGB"),
    ],
)
def test_changes_of_colours_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        TrainTransform(32, channels=1, **fields)
    with pytest.raises(InputError, match=r"channels must be one of \(1, 3, 4\); got 2"):
        recipe.build(helpers.tiny_config(channels=2))


def test_normalised_means_are_zero():
    rgb = np.full((1, 2, 2, 3), [123.675, 116.28, 103.53])
    grey, rgba = np.full((1, 2, 2, 1), 114.495), np.concatenate([rgb, rgb[..., :1] * 0 + 255], -1)
    for images in (grey, rgb, rgba):
        np.testing.assert_allclose(normalize(images), 0, atol=1e-5)
        again = denormalize(np.asarray(normalize(images + 10)))
        np.testing.assert_allclose(again, images + 10, rtol=1e-5)


def test_a_network_of_grey_images_starts_from_one_of_rgb(tmp_path):
    """Its first kernel is the sum over the channels; the loss takes batches as they are read."""
    run = recipe.build(helpers.tiny_config())
    weights = {"params": (state := initial_state(run)).params, "batch_stats": state.batch_stats}
    file = tmp_path / "rgb.safetensors"
    resnest_jax.save_weights(jax.device_get(weights), run.task.model, file)
    config = helpers.tiny_config(channels=1, pretrained__weights=str(file))
    run = recipe.build(config)
    grey = initial_state(run).params
    assert input_channels({"params": grey}) == 1
    kernels = [np.asarray(p["stem"]["conv1"]["kernel"]) for p in (grey, weights["params"])]
    np.testing.assert_allclose(kernels[0], kernels[1].sum(2, keepdims=True), rtol=1e-5, atol=1e-6)

    batch = next(run.batches.train(0))
    assert batch["image"].shape == run.batches.train_specs()[0]["image"].shape == (240, 32, 32, 1)
    assert next(run.batches.eval())["image"].shape[-1] == 1
    task = Classification(SmallNet(), 10, 32, channels=1)
    loss, _ = task.loss(task.init(jax.random.key(0)), batch, jax.random.key(1), 0.0)
    assert 1 < loss < 5
