"""Faster R-CNN against the authors' code."""

from functools import partial

import detector_golden as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import resnest_jax
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
    model, variables = golden.build()
    case, stored = golden.load("modules.json"), golden.arrays("modules")
    shape = (case["n"], case["h"], case["w"])
    images = golden.normal(case["seed"], (*shape, 3))
    pooled = golden.normal(case["seed"] + 1, (6, 7, 7, 256))

    boxes = stored["boxes"].reshape(2, 4, 4)

    @jax.jit
    def forward(variables, images, pooled, boxes):
        def modules(model, images, pooled, boxes):
            endpoints = model.backbone.features(images)
            pyramid = model.fpn(endpoints)
            rpn = {level: model.rpn(x) for level, x in pyramid.items()}
            own = model.pool(pyramid, boxes).reshape(8, 7, 7, 256)
            features = model.box_head(jnp.concatenate((pooled, own)))
            box = (features, *model.box_predictor(features[:6]))
            return endpoints | pyramid, rpn, own, box

        return model.apply(variables, images, pooled, boxes, method=modules)

    maps, rpn, own, box = forward(variables, images, pooled, boxes)
    for name in ("c2", "c3", "c4", "c5", *LEVELS):
        assert_map(maps[name], stored, f"faster50/{name}")
    for level, (logits, deltas) in rpn.items():
        assert_map(logits, stored, f"faster50/rpn_logits_{level}")
        assert_map(deltas, stored, f"faster50/rpn_deltas_{level}")
    heads = {"box0_feature": box[0][:6, :64], "box0_logits": box[1], "box0_deltas": box[2]}
    heads |= {"head_on_pooled": box[0][6:, :32], "pooled": own[:, ::3, ::3, :8]}
    for name, actual in heads.items():
        expected = stored[f"faster50/{name}"]
        assert np.abs(actual - expected).max() < 2e-5 * np.abs(expected).max(), name


def test_detections():
    case = next(case for case in golden.load("infer.json") if case["id"] == "faster50")
    stored = golden.arrays("infer")
    model, variables = golden.build()
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

    pyramid, proposals, detections = detect(variables, images, sizes)
    for level, x in pyramid.items():
        assert_map(x, stored, f"faster50/{level}")
    for i in (0, 1):
        expected = {
            name: stored[f"faster50/image{i}/{name}"]
            for name in ("proposals", "boxes", "scores", "classes")
        }
        assert proposals.valid[i].all()
        np.testing.assert_allclose(proposals.boxes[i], expected["proposals"], atol=2e-3)
        assert detections.valid[i].all()
        np.testing.assert_allclose(detections.boxes[i], expected["boxes"], atol=2e-3)
        np.testing.assert_allclose(detections.scores[i], expected["scores"], atol=4e-5)
        np.testing.assert_array_equal(detections.classes[i], expected["classes"])


def padded(arrays, length):
    """Stack arrays of any lengths, filled up with -1; and say which rows are not padding."""
    stacked = np.full((len(arrays), length, *arrays[0].shape[1:]), -1, arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked, np.arange(length) < np.array([[len(array)] for array in arrays])


def test_losses_and_gradients():
    """Batch statistics, the first anchors and proposals instead of random ones."""
    case = next(case for case in golden.load("train.json") if case["id"] == "faster50/first")
    prefix, options = case["id"], case["options"]
    stored = golden.arrays("train")
    model, variables = golden.build()
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

    @jax.jit
    def step(params, stats, images, sizes, boxes, classes, valid):
        def loss(params):
            losses, updates = model.apply(
                {"params": params, "batch_stats": stats},
                *(images, sizes, boxes, classes, valid, None),
                method="losses",
                mutable=["batch_stats"],
            )
            return sum(losses.values()), (losses, updates["batch_stats"])

        return jax.grad(loss, has_aux=True)(params)

    arrays = (images, sizes, boxes, classes, valid)
    grads, (losses, stats) = step(variables["params"], variables["batch_stats"], *arrays)
    assert set(losses) == set(case["losses"])
    for name, value in case["losses"].items():
        np.testing.assert_allclose(losses[name], value, rtol=1e-5)
    ours = resnest_jax.to_torch({"params": grads, "batch_stats": stats}, model)
    rows = golden.load("state_dicts.json.gz")["faster50"]["rows"]
    norms = np.array([np.linalg.norm(ours[key]) for key, _, kind in rows if kind == 1])
    expected = stored[f"{prefix}/gradnorm64"]
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
    """A detector of few channels, its variables, two images and their sizes."""
    model = resnest_jax.create_model("faster_rcnn", **SMALL)
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
    boxes, scores, classes, valid = found
    assert boxes.shape == (2, 7, 4)
    assert scores.shape == classes.shape == valid.shape == (2, 7)
    assert valid.any(1).all()
    for box, score, label, real, (height, width) in zip(*found, sizes, strict=True):
        assert (box >= 0).all()
        assert (box <= [[width, height, width, height]]).all()
        assert (np.diff(score[real]) <= 0).all()
        assert set(label[real]) <= {0, 1, 2}
        assert not real[real.sum() :].any()


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
    scores = detector_of(folded)(params, images, sizes).scores
    np.testing.assert_allclose(scores, found.scores, atol=1e-5)


def test_half_precision(small):
    model, *arrays = small
    half = model.clone(backbone=model.backbone.clone(dtype="bfloat16"))
    detections = jax.eval_shape(partial(half.apply, method="detect"), *arrays)
    dtypes = (jnp.float32, jnp.float32, jnp.int32, jnp.bool_)
    assert tuple(x.dtype for x in detections) == dtypes


def objects():
    """Return boxes, classes and validity of two objects, and of one."""
    boxes = [[[8, 8, 40, 50], [60, 10, 90, 60]], [[5, 5, 30, 40], [0, 0, 0, 0]]]
    return np.float32(boxes), np.array([[0, 2], [1, 0]]), np.array([[True, True], [True, False]])


def test_losses_are_of_random_samples(small):
    """The same for the same key, whatever the padding of the objects holds."""
    model, variables, *images = small
    boxes, classes, valid = objects()

    @jax.jit
    def losses(boxes, classes, valid, rng):
        arrays = (*images, boxes, classes, valid, rng)
        return model.apply(variables, *arrays, method="losses", mutable=["batch_stats"])[0]

    first = losses(boxes, classes, valid, jax.random.key(0))
    assert all(np.isfinite(loss) for loss in first.values())
    boxes[1, 1], classes[1, 1] = (3, 3, 60, 45), 2
    again = losses(boxes, classes, valid, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = losses(boxes, classes, valid, jax.random.key(1))
    assert other["loss_rpn_cls"] != first["loss_rpn_cls"]
    nothing = losses(boxes, classes, np.zeros_like(valid), jax.random.key(0))
    assert nothing["loss_rpn_loc"] == nothing["loss_box_reg"] == 0
    assert np.isfinite(nothing["loss_cls"])
    assert nothing["loss_rpn_cls"] > 0


def test_padding_of_regions_does_not_count(small):
    """Neither in the losses nor in the batch statistics; there are at most 22 regions."""
    model, variables, *images = small

    def losses(num):
        more = model.clone(roi_samples=num, roi_positives=1.0)
        apply = partial(more.apply, method="losses", mutable=["batch_stats"])
        return jax.jit(apply)(variables, *images, *objects(), None)

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), losses(24), losses(60))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 0}, "num_classes must be an integer >= 1; got 0"),
        ({"test_proposals": 0.5}, "test_proposals must be an integer >= 1; got 0.5"),
        ({"detection_nms": 1.5}, r"detection_nms must be in \[0, 1\]; got 1.5"),
        ({"rpn_thresholds": (0.7, 0.3)}, "rpn_thresholds must be two numbers"),
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
