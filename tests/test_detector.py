"""Detectors against the authors' code."""

from functools import partial

import detector_golden as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import resnest_jax
from resnest_jax.data.instances import pack_masks, paste_mask, to_bitmap
from resnest_jax.errors import InputError

# One worker builds the golden detector.
pytestmark = pytest.mark.xdist_group("detector")

LEVELS = ("p2", "p3", "p4", "p5", "p6")


def assert_map(actual, stored, name):
    """Compare a feature map (B, H, W, C) with what is stored of it."""
    actual = np.asarray(actual)
    expected = {key: stored[f"{name}_{key}"] for key in ("shape", "mean", "corner", "first", "std")}
    assert actual.shape == tuple(expected["shape"])
    few = actual[..., :8]
    parts = {"mean": few.mean((1, 2)), "corner": few[:, -1, -1], "first": few[:, 0, 0]}
    for key, part in parts.items():
        assert np.abs(part - expected[key]).max() < 2e-5 * expected["std"], (name, key)
    np.testing.assert_allclose(actual.std(), expected["std"], rtol=2e-5)


def test_modules():
    """Equal modules of all detectors have equal weights."""
    model, variables = golden.build("mask50")
    case, stored = golden.load("modules.json"), golden.arrays("modules")
    shape = (case["n"], case["h"], case["w"])
    images = golden.normal(case["seed"], (*shape, 3))
    boxes = stored["boxes"].reshape(2, 4, 4)

    @jax.jit
    def forward(variables, images, boxes):
        def modules(model, images, boxes):
            endpoints = model.backbone.features(images)
            pyramid = model.fpn(endpoints)
            own = model.pool(pyramid, boxes).reshape(8, 7, 7, 256)
            return endpoints | pyramid, model.rpn(pyramid), own, model.box_heads[0](own)

        return model.apply(variables, images, boxes, method=modules)

    maps, rpn, own, features = forward(variables, images, boxes)
    for name in ("c2", "c3", "c4", "c5", *LEVELS):
        assert_map(maps[name], stored, f"faster50/{name}")
    for level, logits, deltas in zip(LEVELS, rpn.logits, rpn.deltas, strict=True):
        shape = maps[level].shape[:3]
        assert_map(logits.reshape(*shape, -1), stored, f"faster50/rpn_logits_{level}")
        assert_map(deltas.reshape(*shape, -1), stored, f"faster50/rpn_deltas_{level}")
    assert_near(features[:, :32], stored["faster50/head_on_pooled"])
    assert_near(own[:, ::3, ::3, :8], stored["faster50/pooled"])


def assert_near(actual, expected):
    """Compare arrays by the largest value."""
    assert np.abs(actual - expected).max() < 2e-5 * np.abs(expected).max()


def test_heads():
    """On stored features of regions, all stages and classes."""
    name = "cascade_mask50"
    model, variables = golden.build(name)
    seed, stored = golden.load("modules.json")["seed"], golden.arrays("modules")
    random = np.random.RandomState(seed + 1)
    for_boxes, for_masks = (
        random.standard_normal(shape).astype(np.float32)
        for shape in ((6, 7, 7, 256), (3, 14, 14, 256))
    )

    @jax.jit
    def forward(variables, for_boxes, for_masks):
        def heads(model, for_boxes, for_masks):
            boxes = []
            for head, predictor in zip(model.box_heads, model.box_predictors, strict=True):
                features = head(for_boxes)
                boxes.append((features[:, :64], *predictor(features)))
            features = jnp.repeat(model.mask_head(for_masks), 80, 0)
            masks = model.mask_predictor(features, jnp.tile(jnp.arange(80), 3))
            return boxes, jnp.moveaxis(masks.reshape(3, 80, 28, 28), 1, -1)

        return model.apply(variables, for_boxes, for_masks, method=heads)

    boxes, masks = forward(variables, for_boxes, for_masks)
    for stage, arrays in enumerate(boxes):
        for part, actual in zip(("feature", "logits", "deltas"), arrays, strict=True):
            assert_near(actual, stored[f"{name}/box{stage}_{part}"])
    assert_map(masks, stored, f"{name}/mask")
    assert_near(masks[:, ::3, ::3, ::9], stored[f"{name}/mask_logits"])


@pytest.mark.parametrize("name", ["mask50", "cascade_mask50"])
def test_detections(name):
    """Boxes are those of the models without masks."""
    case = next(case for case in golden.load("infer.json") if case["id"] == name)
    stored = golden.arrays("infer")
    model, variables = golden.build(name)
    options = case["options"]
    model = model.clone(
        test_candidates=options["MODEL.RPN.PRE_NMS_TOPK_TEST"],
        test_proposals=options["MODEL.RPN.POST_NMS_TOPK_TEST"],
        detections=options["TEST.DETECTIONS_PER_IMAGE"],
    )
    sides = zip(case["seeds"], case["sizes"], strict=True)
    images, sizes = golden.batch([golden.image(seed, *size) for seed, size in sides])

    @jax.jit
    def detect(variables, images, sizes):
        def parts(model, images, sizes):
            pyramid = model.pyramid(images)
            return pyramid, model.proposals(pyramid, sizes), model.detect(images, sizes)

        return model.apply(variables, images, sizes, method=parts)

    pyramid, proposals, found = detect(variables, images, sizes)
    for level, x in pyramid.items():
        assert_map(x, stored, f"{name}/{level}")
    for i in (0, 1):
        image = f"{name}/image{i}"
        assert proposals.valid[i].all()
        np.testing.assert_allclose(proposals.boxes[i], stored[f"{image}/proposals"], atol=2e-3)
        assert found.valid[i].all()
        np.testing.assert_allclose(found.boxes[i], stored[f"{image}/boxes"], atol=2e-3)
        np.testing.assert_allclose(found.scores[i], stored[f"{image}/scores"], atol=4e-5)
        np.testing.assert_array_equal(found.classes[i], stored[f"{image}/classes"])
        masks = np.asarray(found.masks[i])
        np.testing.assert_allclose(masks[:, ::3, ::3], stored[f"{image}/masks"], atol=1e-4)
        (height, width), (to_height, to_width) = case["sizes"][i], case["outputs"][i]
        scale = np.float32([to_width / width, to_height / height] * 2)
        limits = [to_width, to_height] * 2
        pasted = [
            paste_mask(mask, np.clip(box * scale, 0, limits), (to_height, to_width))
            for mask, box in zip(masks, found.boxes[i], strict=True)
        ]
        expected = np.unpackbits(stored[f"{image}/out_masks"], axis=-1)[..., :to_width]
        assert np.sum(pasted != expected.astype(bool)) <= 10


def padded(arrays, length):
    """Stack arrays of any lengths, filled up with -1; and say which rows are not padding."""
    stacked = np.full((len(arrays), length, *arrays[0].shape[1:]), -1).astype(arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked, np.arange(length) < np.array([[len(array)] for array in arrays])


# Corners of the goldens' objects in their boxes.
OCTAGON = np.array([[3, 0], [7, 0], [10, 3], [10, 7], [7, 10], [3, 10], [0, 7], [0, 3]]) / 10


def octagons(boxes, size, canvas):
    """Return the masks of objects with boxes (N, 4) as bits (N, H, W / 8) of a canvas."""
    masks = np.zeros((len(boxes), *canvas), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(float), strict=True):
        corners = (x0, y0) + OCTAGON * (x1 - x0, y1 - y0)
        mask[: size[0], : size[1]] = to_bitmap([corners.ravel()], size)
    return pack_masks(masks)


@pytest.mark.parametrize("name", [pytest.param("mask50", marks=pytest.mark.slow), "cascade_mask50"])
def test_losses_and_gradients(name):
    """Batch statistics, the first anchors and proposals instead of random ones; bitmap targets."""
    case = next(case for case in golden.load("train.json") if case["id"] == f"{name}/first")
    prefix, options = case["id"], case["options"]
    stored = golden.arrays("train")
    model, variables = golden.build(name)
    model = model.clone(
        train_candidates=options["MODEL.RPN.PRE_NMS_TOPK_TRAIN"],
        train_proposals=options["MODEL.RPN.POST_NMS_TOPK_TRAIN"],
        rpn_samples=options["MODEL.RPN.BATCH_SIZE_PER_IMAGE"],
        roi_samples=options["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"],
    )
    sides = zip(case["seeds"], case["sizes"], strict=True)
    raw = [golden.image(seed, *size) // (1 + 2 * i) for i, (seed, size) in enumerate(sides)]
    images, sizes = golden.batch(raw)
    boxes, valid = padded([stored[f"{prefix}/image{i}/gt_boxes"] for i in (0, 1)], 5)
    classes, _ = padded([stored[f"{prefix}/image{i}/gt_classes"] for i in (0, 1)], 5)
    each = [octagons(boxes[i][valid[i]], case["sizes"][i], images.shape[1:3]) for i in (0, 1)]
    masks, _ = padded(each, 5)

    @jax.jit
    def step(params, stats, images, sizes, boxes, classes, valid, masks):
        def loss(params):
            losses, updates = model.apply(
                {"params": params, "batch_stats": stats},
                *(images, sizes, boxes, classes, valid, None),
                masks=masks,
                method="losses",
                mutable=["batch_stats"],
            )
            return sum(losses.values()), (losses, updates["batch_stats"])

        return jax.grad(loss, has_aux=True)(params)

    arrays = (images, sizes, boxes, classes, valid, masks)
    grads, (losses, stats) = step(variables["params"], variables["batch_stats"], *arrays)
    assert set(losses) == set(case["losses_bitmask"])
    for loss, value in case["losses_bitmask"].items():
        np.testing.assert_allclose(losses[loss], value, rtol=1e-5)
    ours = resnest_jax.to_torch({"params": grads, "batch_stats": stats}, model)
    rows = golden.load("state_dicts.json.gz")[name]["rows"]
    norms = np.array([np.linalg.norm(ours[key]) for key, _, kind in rows if kind == 1])
    expected = stored[f"{prefix}/gradnorm_bitmask"]
    errors = np.abs(norms - expected) / (expected + 1e-3 * expected.max())
    assert np.median(errors) < 1e-3
    assert np.quantile(errors, 0.95) < 1e-2
    assert errors.max() < 0.1
    assert not any(ours[key].any() for key, _, kind in rows if kind == 0)
    after = [key for key in stored if key.startswith(f"{prefix}/after/")]
    assert after
    for key in after:
        actual = ours[key.removeprefix(f"{prefix}/after/")].ravel()[:8]
        np.testing.assert_allclose(actual, stored[key], rtol=1e-4, atol=1e-5)
    before = variables["batch_stats"]["backbone"]
    for name in before:
        if name == "stem" or name.startswith("stage1_"):
            jax.tree.map(np.testing.assert_array_equal, stats["backbone"][name], before[name])


SMALL = {
    "backbone": "resnest14",
    "planes": (8, 8, 16, 16),
    "stem_width": 4,
    "num_classes": 3,
    "features": 8,
    "hidden": 16,
    "test_candidates": 40,
    "test_proposals": 20,
    "train_candidates": 40,
    "train_proposals": 20,
    "rpn_samples": 16,
    "roi_samples": 16,
    "score_threshold": 0.0,
    "detections": 7,
}


@pytest.fixture(scope="module")
def small():
    """A detector of few channels with all heads, its variables, two images and their sizes."""
    model = resnest_jax.create_model("cascade_mask_rcnn", **SMALL)
    images, sizes = golden.batch([golden.image(0, 64, 96), golden.image(1, 50, 70)])
    variables = jax.jit(model.init)(jax.random.key(0), images)
    random = np.random.RandomState(0)
    stats = jax.tree.map(
        lambda x: x + random.uniform(0, 0.5, x.shape).astype(np.float32), variables["batch_stats"]
    )
    return model, {"params": variables["params"], "batch_stats": stats}, images, sizes


def detector_of(model):
    return jax.jit(partial(model.apply, method="detect"))


@pytest.fixture(scope="module")
def found(small):
    """What the small detector finds."""
    model, *arrays = small
    return jax.tree.map(np.asarray, detector_of(model)(*arrays))


def test_detections_are_inside_the_images_and_sorted(small, found):
    _, _, _, sizes = small
    boxes, scores, classes, valid, masks = found
    assert boxes.shape == (2, 7, 4)
    assert scores.shape == classes.shape == valid.shape == (2, 7)
    assert masks.shape == (2, 7, 28, 28)
    assert valid.any(1).all()
    for box, score, label, real, mask, (height, width) in zip(*found, sizes, strict=True):
        assert (box >= 0).all()
        assert (box <= [[width, height, width, height]]).all()
        assert (np.diff(score[real]) <= 0).all()
        assert set(label[real]) <= {0, 1, 2}
        assert not real[real.sum() :].any()
        assert (mask[real] > 0).all()
        assert not mask[~real].any()


def test_exported_detector_is_the_same(small, found):
    model, variables, images, sizes = small
    detect = jax.jit(lambda *arrays: tuple(model.apply(variables, *arrays, method="detect")))
    exported = export.export(detect, platforms=["cpu", "cuda", "tpu"])(images, sizes)
    called = export.deserialize(exported.serialize()).call(images, sizes)
    for actual, expected in zip(called, found, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_folded_detector_is_the_same(small, found):
    model, variables, images, sizes = small
    folded, params = resnest_jax.fold(model, variables)
    again = detector_of(folded)(params, images, sizes)
    np.testing.assert_allclose(again.scores, found.scores, atol=1e-5)
    np.testing.assert_allclose(again.masks, found.masks, atol=1e-4)


def test_half_precision(small):
    model, *arrays = small
    half = model.clone(backbone=model.backbone.clone(dtype="bfloat16"))
    detections = jax.eval_shape(partial(half.apply, method="detect"), *arrays)
    dtypes = (jnp.float32, jnp.float32, jnp.int32, jnp.bool_, jnp.float32)
    assert tuple(x.dtype for x in detections) == dtypes


def objects():
    """Return boxes, classes and validity of two objects, and of one; and their masks."""
    boxes = np.float32([[[8, 8, 40, 50], [60, 10, 90, 60]], [[5, 5, 30, 40], [0, 0, 0, 0]]])
    masks = np.stack([octagons(of_image, (64, 96), (64, 96)) for of_image in boxes])
    return boxes, np.array([[0, 2], [1, 0]]), np.array([[True, True], [True, False]]), masks


def detector_losses(model, variables, images, sizes, boxes, classes, valid, masks=None):
    """Return the losses of the first samples, and the new batch statistics."""
    arrays = (images, sizes, boxes, classes, valid, None)
    return model.apply(variables, *arrays, masks=masks, method="losses", mutable=["batch_stats"])


def test_losses_are_of_random_samples(small):
    """The same for the same key, whatever the padding of the objects holds."""
    model, variables, *images = small
    boxes, classes, valid, masks = objects()

    @jax.jit
    def losses(boxes, classes, valid, rng):
        arrays = (*images, boxes, classes, valid, rng)
        fields = {"masks": masks, "method": "losses", "mutable": ["batch_stats"]}
        return model.apply(variables, *arrays, **fields)[0]

    first = losses(boxes, classes, valid, jax.random.key(0))
    assert all(np.isfinite(loss) for loss in first.values())
    boxes[1, 1], classes[1, 1] = (3, 3, 60, 45), 2
    again = losses(boxes, classes, valid, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = losses(boxes, classes, valid, jax.random.key(1))
    assert other["loss_rpn_cls"] != first["loss_rpn_cls"]
    nothing = losses(boxes, classes, np.zeros_like(valid), jax.random.key(0))
    assert nothing["loss_rpn_loc"] == nothing["loss_box_reg_stage2"] == nothing["loss_mask"] == 0
    assert np.isfinite(nothing["loss_cls_stage2"])
    assert nothing["loss_rpn_cls"] > 0
    with pytest.raises(InputError, match="needs the masks"):
        jax.eval_shape(partial(detector_losses, model), variables, *images, *objects()[:3])


def test_padding_of_regions_does_not_count(small):
    """Neither in the losses nor in the batch statistics; there are at most 22 regions."""
    model, variables, *images = small

    def losses(num):
        more = model.clone(roi_samples=num, roi_positives=1.0)
        return jax.jit(partial(detector_losses, more))(variables, *images, *objects())

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), losses(24), losses(60))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 0}, "num_classes must be an integer >= 1; got 0"),
        ({"test_proposals": 0.5}, "test_proposals must be an integer >= 1; got 0.5"),
        ({"detection_nms": 1.5}, r"detection_nms must be in \[0, 1\]; got 1.5"),
        ({"rpn_thresholds": (0.7, 0.3)}, "rpn_thresholds must be two numbers"),
        ({"mask_convolutions": -1}, "mask_convolutions must be an integer >= 0; got -1"),
        ({"cascade_thresholds": (0.6, 2)}, "cascade_thresholds must be numbers"),
        ({"anchor_sizes": (32, 64)}, "anchor_sizes must be five positive numbers"),
        ({"anchor_ratios": ()}, "anchor_ratios must be positive numbers"),
        ({"output_stride": 8}, "backbone must be .* output_stride=32"),
        ({"backbone": "resnest51"}, "unknown model 'resnest51'"),
        ({"head": "fcn"}, "unknown model field head; there are backbone, num_classes"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        resnest_jax.create_model("faster_rcnn", **fields)
