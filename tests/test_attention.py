"""Statistics of attention, against attention computed image by image."""

import jax
import numpy as np
import pytest

import resnest_jax
from experiments import attention
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import normalize

CLASSES = 3


@pytest.fixture(scope="module")
def model():
    return resnest_jax.create_model(
        "resnest14", planes=(8, 8, 8, 8), stem_width=4, num_classes=CLASSES, radix=4
    )


@pytest.fixture(scope="module")
def variables(model):
    return jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    labels = np.array([[0, 1, 0, 1], [1, 1, 2, 2]])
    # Class 2 occurs only in padding.
    masks = np.array([[True] * 4, [True, True, False, False]])
    return [
        {"image": image, "label": label, "valid": mask}
        for image, label, mask in zip(images, labels, masks, strict=True)
    ]


def test_statistics_are_those_of_the_images(model, variables, batches):
    sums, count = attention.collect(model, variables, batches, CLASSES)
    np.testing.assert_array_equal(count, [2, 4, 0])
    stage = attention.summarise(sums, count)[3]

    weights = {0: [], 1: []}
    for batch in batches:
        for image, label, mask in zip(batch["image"], batch["label"], batch["valid"], strict=True):
            if mask:
                _, sown = model.apply(
                    variables, normalize(image[None]), method="features", mutable="intermediates"
                )
                blocks = sown["intermediates"]
                weights[label].append(blocks["stage3_block1"]["conv2"]["attention"][0][0])
    for label, found in weights.items():
        found = np.array(found, np.float64)  # (images, R, C)
        np.testing.assert_allclose(stage.weight[label], found.mean((0, 2)), rtol=1e-4)
        entropy = -(found * np.log(found)).sum(1).mean() / np.log(4)
        np.testing.assert_allclose(stage.entropy[label], entropy, rtol=1e-4)
        ignored = (found < 0.1 / 4).mean((0, 2))
        np.testing.assert_allclose(stage.ignored[label], ignored, atol=1e-6)
    every = np.concatenate(list(weights.values())).astype(np.float64)
    np.testing.assert_allclose(stage.sd_images, np.sqrt(every.var(0).mean()), rtol=1e-3)
    np.testing.assert_allclose(stage.sd_channels, every.mean(0).std(-1).mean(), rtol=1e-3)
    assert np.isnan(stage.weight[2]).all()


def test_table_and_plot(model, variables, batches, tmp_path):
    sums, count = attention.collect(model, variables, batches, CLASSES)
    stages = attention.summarise(sums, count)
    table = attention.table(stages, count, ("cat", "dog", "owl"))
    assert "6 images" in table
    assert "| dog | 4 |" in table
    assert len([line for line in table.splitlines() if line.startswith("| 4 |")]) == 1
    attention.plot(stages, count, ("cat", "dog", "owl"), tmp_path / "attention.png")
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("radix", [0, 1])
def test_without_splits_there_is_nothing_to_see(radix, batches):
    model = resnest_jax.create_model("resnest14", radix=radix, num_classes=CLASSES)
    with pytest.raises(InputError, match=f"radix {radix}"):
        attention.collect(model, {}, batches, CLASSES)
