"""Detection in several views of an image, against the authors' steps one by one in NumPy."""

import functools

import detection_data as data
import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

import resnest_jax
from resnest_jax.data.geometry import short_side
from resnest_jax.tasks.detection.canvases import make_canvases, view_canvases
from resnest_jax.tasks.detection.metrics import to_original
from resnest_jax.tasks.detection.views import ViewsTransform, make_detect

pytestmark = pytest.mark.xdist_group("detection")

MEAN = np.array([123.68, 116.779, 103.939], np.float32)
STD = np.array([58.393, 57.12, 57.375], np.float32)
SIZES = ((50, 66), (48, 70))  # of two images of a batch
SHORT_SIDES, LONGEST = (64, 90), 130


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Mask R-CNN whose scores differ."""
    config = data.tiny_config(tmp_path_factory.mktemp("none"), model__score_threshold=0.3)
    fields = {name: value for name, value in config.model.items() if value is not None}
    fields |= {
        "name": "cascade_mask_rcnn",
        "mask_convolutions": 1,
        "num_classes": 3,
        "detection_nms": 0.4,
    }
    model = resnest_jax.create_model(**fields)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    init = functools.partial(model.init, method="call_modules")
    random = np.random.default_rng(0)

    def value(path, leaf):
        noise = random.standard_normal(leaf.shape, np.float32)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("kernel"):
            calm = 0.1 if "bbox_pred" in name or "deltas" in name else 1
            return noise * np.float32(calm * (2 / np.prod(leaf.shape[:-1])) ** 0.5)
        return float(name.endswith(("scale", "var"))) + 0.1 * noise

    shapes = jax.eval_shape(init, jax.random.key(0), image)
    return model, jax.device_put(jax.tree.map_with_path(value, shapes))


def photos() -> list[np.ndarray]:
    return [data.picture(i, *size) for i, size in enumerate(SIZES)]


def batch_of(images, canvases) -> dict[str, np.ndarray]:
    """Return a batch that is filled up with as many zeros."""
    transform = ViewsTransform(canvases)
    made = [transform.map({"image": image, "index": i}) for i, image in enumerate(images)]
    stacked = {name: np.stack([element[name] for element in made]) for name in made[0]}
    return {name: np.concatenate((x, np.zeros_like(x))) for name, x in stacked.items()}


def detect(network, canvases, flip: bool):
    """Return the detections in views of the photos, on two devices."""
    devices = Mesh(np.array(jax.devices()[:2]), ("data",))
    return jax.device_get(make_detect(*network, flip, devices)(batch_of(photos(), canvases)))


@pytest.fixture(scope="module")
def in_view(network):
    """A function of a view: its detections without masks, and the masks of given boxes."""
    model, variables = network

    def both(model, image, size, boxes, classes):
        pyramid = model.pyramid(image)
        return model.boxes(pyramid, size), model.masks(pyramid, boxes, classes)

    applied = jax.jit(functools.partial(model.apply, variables, method=both))
    nothing = np.zeros((1, model.detections, 4), np.float32), np.zeros((1, model.detections), int)

    def of_view(image, size, boxes=nothing[0], classes=nothing[1]):
        found, masks = applied(image, np.array([size], np.int32), boxes, classes.astype(np.int32))
        return [np.asarray(part[0]) for part in found], np.asarray(masks[0])

    return of_view


def views_of(photo, canvases):
    """Yield network input, (height, width) and whether it is mirrored, of each view."""
    for short, canvas in zip(SHORT_SIDES, canvases, strict=False):
        height, width = short_side(photo.shape[:2], short, LONGEST)
        resized = Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR)
        for mirrored in (False, True):
            pixels = np.asarray(resized)[:, ::-1] if mirrored else np.asarray(resized)
            image = np.zeros((1, *canvas, 3), np.float32)
            image[0, :height, :width] = (pixels - MEAN) / STD
            yield image, (height, width), mirrored


def overlap(a, b) -> float:
    shared = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def authors(photo, canvases, in_view, num: int, threshold: float):
    """Return what detectron2's GeneralizedRCNNWithTTA does with an image, and how many it united.

    Boxes in pixels of the image, scores, classes and masks.
    """
    height, width = photo.shape[:2]
    union = []
    for image, size, mirrored in views_of(photo, canvases):
        for box, score, label, valid in zip(*in_view(image, size)[0], strict=True):
            x0, y0, x1, y1 = np.clip(
                box * ([width / size[1], height / size[0]] * 2), 0, [width, height] * 2
            )
            if valid and x1 > x0 and y1 > y0:
                x0, x1 = (width - x1, width - x0) if mirrored else (x0, x1)
                union.append((np.array([x0, y0, x1, y1]), score, label))
    kept = []
    for one in sorted(union, key=lambda entry: -entry[1]):
        if all(one[2] != other[2] or overlap(one[0], other[0]) <= threshold for other in kept):
            kept.append(one)
    boxes, scores, classes = (np.stack(part) for part in zip(*kept[:num], strict=True))
    masks = []
    for image, size, mirrored in views_of(photo, canvases):
        moved = boxes * ([size[1] / width, size[0] / height] * 2)
        if mirrored:
            moved[:, [0, 2]] = size[1] - moved[:, [2, 0]]
        padded = np.zeros((1, num, 4), np.float32)  # one shape, one program
        padded[0, : len(moved)] = moved
        labels = np.pad(classes, (0, num - len(classes)))[None]
        found = in_view(image, size, padded, labels)[1][: len(moved)]
        masks.append(found[..., ::-1] if mirrored else found)
    return (boxes, scores, classes, np.mean(masks, 0)), len(union)


def test_union_and_masks_are_the_authors(network, in_view):
    """The canvases are the smallest that hold both images."""
    canvases = view_canvases(np.array(SIZES), SHORT_SIDES, LONGEST)
    assert [each.sizes for each in canvases] == [((64, 96),), ((96, 160),)]
    found = detect(network, canvases, flip=True)
    assert not any(part[2:].any() for part in found)
    model, _ = network
    for i, photo in enumerate(photos()):
        valid = found.valid[i]
        shapes = [each.sizes[0] for each in canvases]
        expected, united = authors(photo, shapes, in_view, model.detections, model.detection_nms)
        assert united > valid.sum() == len(expected[0])
        for name, value, atol in zip(
            ("boxes", "scores", "classes", "masks"), expected, (2e-3, 1e-5, 0, 1e-3), strict=True
        ):
            np.testing.assert_allclose(getattr(found, name)[i][valid], value, atol=atol)


def test_one_view_is_the_plain_detection(network, in_view):
    """Of the size of the test images, and not mirrored."""
    canvases = make_canvases(np.array(SIZES), 64, LONGEST)
    found = detect(network, (canvases,), flip=False)
    for i, photo in enumerate(photos()):
        image, size, _ = next(views_of(photo, canvases.sizes))
        boxes, *others = in_view(image, size)[0]
        assert found.valid[i].sum() > 1
        original = np.array(photo.shape[:2])
        np.testing.assert_allclose(found.boxes[i], to_original(boxes, size, original), atol=1e-3)
        for name, value in zip(("scores", "classes", "valid"), others, strict=True):
            np.testing.assert_allclose(getattr(found, name)[i], value, atol=1e-5)
        masks = in_view(image, size, boxes[None], others[1][None])[1]
        np.testing.assert_allclose(found.masks[i][others[2]], masks[others[2]], atol=1e-3)


def test_long_images_have_canvases_of_their_own():
    sizes = np.array([(480, 640), (427, 640), (300, 640), (640, 480), (640, 320)])
    (canvases,) = view_canvases(sizes, (400,), 800)
    assert canvases.sizes == ((384, 800), (800, 416), (416, 608), (544, 416))
    assert canvases.groups(sizes).tolist() == [2, 2, 0, 3, 1]
