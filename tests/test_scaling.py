"""Compiling recipes without their data sets."""

import helpers
import pytest

from experiments.scaling import stand_in
from resnest_jax import recipe


@pytest.mark.parametrize(
    ("name", "argument", "classes", "shape"),
    [
        ("imagenet", "resnest50", 1000, (16, 224, 224, 3)),
        ("ade20k", "resnest50", 150, (16, 480, 480, 3)),
        ("coco", "mask_rcnn_resnest50", 80, (16, 800, 1344, 3)),
    ],
)
def test_stand_ins_have_the_shapes_and_classes_of_the_recipes(
    name, argument, classes, shape, tmp_path
):
    config = helpers.load_config(name, argument)
    config.batch_size, config.loader.workers = 16, 0
    stand_in.use(config, tmp_path, images=16)
    batches = recipe.build(config).batches
    assert len(batches.class_names) == classes
    assert batches.num_train >= 16
    assert batches.train_specs()[0]["image"].shape == shape
    batch = next(batches.eval())
    assert batch["valid"].any()
