"""Time a model, its layers or the zoo; compare with PyTorch and ONNX Runtime if installed.

    python -m experiments.benchmark --model=resnest50 --batch_size=8 --out=/tmp/benchmark
    python -m experiments.benchmark --train               training steps instead of inference
    python -m experiments.benchmark --layers              every 3x3 layer, in every implementation
    python -m experiments.benchmark --profile             time by kind of operation, roofline
    python -m experiments.benchmark --zoo                 speed and published accuracy of the zoo
    python -m experiments.benchmark --task=segmentation --image_size=321 --batch_size=2
        DeepLabV3 on the model; also with --train, --layers, --profile, or --multi_scale: the
        evaluation of one image in windows of this size, at six scales and mirrored
    python -m experiments.benchmark --task=detection --image_size=320 --batch_size=2
        Faster R-CNN on photos with this shorter side, or --detector=mask_rcnn, cascade_rcnn or
        cascade_mask_rcnn; also with --train, --layers, --profile, or --parts: each part's time

The programs take turns, so that other load on the machine affects all of them. A row has the median
over the rounds, the quartiles, and the ratios to the first program and to eager PyTorch, computed
per round. Weights, batch norm statistics and images are random. Compilation is timed separately,
without and with the cache. PyTorch runs in its own process, which waits between its turns. Its rows
need torch, timm, for detection torchvision, and a model that timm has, those of ONNX Runtime, for
inference, the extra ``onnx`` and onnxruntime; the picture needs matplotlib. Else they are skipped.
"""

import os
import tempfile
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags

from experiments.benchmark import (
    detection,
    detection_parts,
    layers,
    onnx_runtime,
    ours,
    profiling,
    report,
    segmentation,
    torch_process,
    zoo,
)
from experiments.timing import random_variables, time_calls
from resnest_jax import arguments, cli
from resnest_jax.errors import InputError
from resnest_jax.files import writing
from resnest_jax.models.resnest import ResNeSt
from resnest_jax.models.zoo import RCNNS, create_model

FLAGS = flags.FlagValues()
MODEL = flags.DEFINE_string("model", "resnest50", "Name of the model.", flag_values=FLAGS)
TASK = flags.DEFINE_enum(
    "task",
    "classification",
    ["classification", "segmentation", "detection"],
    "The model itself, or DeepLabV3 or a detector on it.",
    flag_values=FLAGS,
)
DETECTOR = flags.DEFINE_enum(
    "detector",
    None,
    list(RCNNS),
    "The detector of --task=detection, faster_rcnn if none is given.",
    flag_values=FLAGS,
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    224,
    "Side of the images, the shorter one of photos.",
    lower_bound=32,
    flag_values=FLAGS,
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 8, "Images per call; 1 for latency.", lower_bound=1, flag_values=FLAGS
)
REPEATS = flags.DEFINE_integer(
    "repeats",
    None,
    "Number of timed rounds; without it 10, of layers and parts 5.",
    lower_bound=2,
    flag_values=FLAGS,
)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Dtype of activations.", flag_values=FLAGS
)
OUT = flags.DEFINE_string(
    "out", None, "Directory for the results as JSON and PNG.", flag_values=FLAGS
)
TRAIN = flags.DEFINE_bool("train", False, "Training steps instead of inference.", flag_values=FLAGS)
MULTI_SCALE = flags.DEFINE_bool(
    "multi_scale", False, "Evaluation of segmentation at several scales.", flag_values=FLAGS
)
LAYERS = flags.DEFINE_bool(
    "layers", False, "Time every 3x3 layer, ours in every implementation.", flag_values=FLAGS
)
PROFILE = flags.DEFINE_bool(
    "profile", False, "Write a trace; print time by kind of operation.", flag_values=FLAGS
)
PARTS = flags.DEFINE_bool("parts", False, "Time each part of a detector.", flag_values=FLAGS)
ZOO = flags.DEFINE_bool(
    "zoo", False, "Time the models with a published accuracy.", flag_values=FLAGS
)
TORCH = flags.DEFINE_bool("torch", True, "Time PyTorch too, if it is installed.", flag_values=FLAGS)
COMPILED = flags.DEFINE_bool("compiled", True, "Time torch.compile too.", flag_values=FLAGS)


def main(_: list[str]) -> None:
    """Time the programs, with a temporary compilation cache."""
    _check_kinds()
    create_model(MODEL.value)  # an error if it is unknown, before the directory is made
    out = _out()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the GPU
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        _benchmark(out)


def _check_kinds() -> None:
    """Raise InputError for flags that exclude each other."""
    kinds = [f"--{flag.name}" for flag in (ZOO, LAYERS, PROFILE, PARTS) if flag.value]
    kinds += ["--train"] if TRAIN.value and (ZOO.value or MULTI_SCALE.value) else []
    kinds += ["--multi_scale"] if MULTI_SCALE.value else []
    if len(kinds) > 1:
        raise InputError(f"{' and '.join(kinds)} are different measurements; give one of them")
    owners = [(ZOO, "classification"), (MULTI_SCALE, "segmentation")]
    owners += [(PARTS, "detection"), (DETECTOR, "detection")]
    for flag, task in owners:
        if flag.value and task != TASK.value:
            raise InputError(f"--{flag.name} is for --task={task}, not {TASK.value}")


def _out() -> Path | None:
    """Make the directory of the results, if there is to be one."""
    if OUT.value is None:
        return None
    folder = arguments.local_path(OUT)
    with writing("--out", folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _benchmark(out: Path | None) -> None:
    side = IMAGE_SIZE.value
    canvas = detection.canvas(side) if TASK.value == "detection" else (side, side)
    shape = (BATCH_SIZE.value, *canvas, 3)
    images = jax.random.normal(jax.random.key(1), shape)
    print(f"{MODEL.value}, images {shape}, {DTYPE.value}, {jax.devices()[0].device_kind}")
    if ZOO.value:
        settings = (BATCH_SIZE.value, DTYPE.value, _repeats(), TORCH.value, COMPILED.value)
        report.show(zoo.rows(*settings), "zoo", out)
        return
    detector = partial(detection.make_model, detector=DETECTOR.value or "faster_rcnn")
    makers = {"segmentation": segmentation.make_model, "detection": detector}
    model = makers.get(TASK.value, create_model)(MODEL.value, dtype=jnp.dtype(DTYPE.value))
    if LAYERS.value:
        _layers(model, images, side, out)
        return
    print("compiling the programs", flush=True)
    kind = "training" if TRAIN.value else "multi_scale" if MULTI_SCALE.value else "inference"
    torch = TORCH.value and not PROFILE.value
    if TASK.value == "segmentation":
        programs = segmentation.programs(MODEL.value, model, images, kind, torch)
    elif TASK.value == "detection":
        batch = detection.make_batch(model, shape, side)
        settings = {"train": TRAIN.value, "parts": PARTS.value, "torch": torch}
        programs = detection.programs(model, batch, MODEL.value, **settings)
    else:
        programs = _classification(model, images, torch)
    if PROFILE.value:
        program = programs["as trained"]
        report.show(profiling.rows(program, jnp.dtype(DTYPE.value), out), "profile", out)
        return
    seconds = time_calls({name: p.call for name, p in programs.items()}, _repeats())
    if PARTS.value:
        report.show(report.parts(seconds, detection_parts.OURS), f"{kind}_parts", out)
        return
    count = 1 if MULTI_SCALE.value else BATCH_SIZE.value
    report.show(report.comparison(seconds, programs, count), kind, out)


def _repeats() -> int:
    return REPEATS.value or (5 if LAYERS.value or PARTS.value else 10)


def _layers(model: nn.Module, images: jax.Array, side: int, out: Path | None) -> None:
    if TASK.value == "detection" and TRAIN.value:
        batch = detection.make_batch(model, images.shape, side)
        found = layers.layers(model, *detection.loss_inputs(batch, images), method="losses")
    else:
        found = layers.layers(model, images)
    table = layers.rows(found, DTYPE.value, _repeats(), TRAIN.value, TORCH.value)
    report.show(table, "layers", out)
    for line in layers.slower(table):
        print(line)


def _classification(model: ResNeSt, images: jax.Array, torch: bool) -> dict[str, ours.Program]:
    if TRAIN.value:
        programs = ours.training(model, images)
    else:
        programs = ours.inference(model, random_variables(model, images), images)
    if PROFILE.value:
        return programs
    programs = {name: ours.time_cached(program) for name, program in programs.items()}
    if not TRAIN.value:
        programs |= onnx_runtime.programs(model, images)
    if torch:
        programs |= torch_process.programs(
            "both_layouts",
            name=MODEL.value,
            shape=images.shape,
            dtype=DTYPE.value,
            train=TRAIN.value,
            compiled=COMPILED.value,
        )
    return programs


if __name__ == "__main__":
    cli.run(main, FLAGS)
