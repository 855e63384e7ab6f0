"""Time a model, its layers or the zoo; compare with other libraries if they are installed.

    python -m experiments.benchmark --model=resnest50 --batch_size=8 --out=/tmp/benchmark
    python -m experiments.benchmark --peers --workdir=DIR
        the same at batch 1, 8 and 32, a row per library: benchmark.json and .png; also with --train
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
per round. Weights, batch norm statistics and images are random, and the same for all; results of
inference that differ are an error. Compilation is timed separately, without and with the cache.
PyTorch runs in its own process, which waits between its turns. Its rows need torch, timm, for
detection torchvision, and a model that timm has, those of ONNX Runtime and OpenVINO, for inference,
onnx and onnxruntime or openvino (all in the extra ``bench``); the picture needs matplotlib. Else
they are skipped.
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
    classification,
    detection,
    detection_parts,
    layers,
    ours,
    peers,
    profiling,
    report,
    segmentation,
    zoo,
)
from experiments.timing import time_calls
from resnest_jax import arguments, cli
from resnest_jax.errors import InputError
from resnest_jax.files import make_folder
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
BATCH_SIZE = flags.DEFINE_list(
    "batch_size",
    None,
    "Images per call, 8 if not given; with --peers one or several, 1,8,32 if not given.",
    flag_values=FLAGS,
)
REPEATS = flags.DEFINE_integer(
    "repeats",
    None,
    "Number of timed rounds; without it 10, of layers and parts 5, of --peers at batch 1 40.",
    lower_bound=2,
    flag_values=FLAGS,
)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Dtype of activations.", flag_values=FLAGS
)
OUT = flags.DEFINE_string(
    "out", None, "Directory for the results as JSON and PNG.", flag_values=FLAGS
)
flags.DEFINE_alias("workdir", "out", flag_values=FLAGS)
TRAIN = flags.DEFINE_bool("train", False, "Training steps instead of inference.", flag_values=FLAGS)
MULTI_SCALE = flags.DEFINE_bool(
    "multi_scale", False, "Evaluation of segmentation at several scales.", flag_values=FLAGS
)
PEERS = flags.DEFINE_bool(
    "peers", False, "A row per library, at several batch sizes.", flag_values=FLAGS
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
    sizes = _batch_sizes()
    out = arguments.optional(arguments.local_path, OUT)
    if out:
        make_folder("--out", out)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the GPU
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        if PEERS.value:
            _peers(sizes, out)
        else:
            _benchmark(*sizes, out)


def _check_kinds() -> None:
    """Raise InputError for flags that exclude each other."""
    kinds = [f"--{flag.name}" for flag in (PEERS, ZOO, LAYERS, PROFILE, PARTS) if flag.value]
    kinds += ["--train"] if TRAIN.value and (ZOO.value or MULTI_SCALE.value) else []
    kinds += ["--multi_scale"] if MULTI_SCALE.value else []
    if len(kinds) > 1:
        raise InputError(f"{' and '.join(kinds)} are different measurements; give one of them")
    owners = [(PEERS, "classification"), (ZOO, "classification"), (MULTI_SCALE, "segmentation")]
    owners += [(PARTS, "detection"), (DETECTOR, "detection")]
    for flag, task in owners:
        if flag.value and task != TASK.value:
            raise InputError(f"--{flag.name} is for --task={task}, not {TASK.value}")


def _batch_sizes() -> list[int]:
    """Return the batch sizes: one, or with --peers at least one."""
    texts = BATCH_SIZE.value
    if texts is None:
        return [1, 8, 32] if PEERS.value else [8]
    sizes = [int(text) for text in texts if text.isdecimal()]
    most = len(sizes) if PEERS.value else 1
    if not 1 <= len(texts) == len(sizes) <= most or min(sizes) < 1:
        several = ", or several such as 1,8,32" if PEERS.value else ""
        raise InputError(
            f"--batch_size must be an integer of at least 1{several}; got {','.join(texts)!r}"
        )
    return sizes


def _peers(sizes: list[int], out: Path | None) -> None:
    """Time a row per library at each batch size."""
    model = create_model(MODEL.value, dtype=jnp.dtype(DTYPE.value))
    table = []
    for size in sizes:
        images = _images((size, IMAGE_SIZE.value, IMAGE_SIZE.value, 3))
        programs = _classification(model, images)
        calls = {name: p.call for name, p in programs.items() if peers.row_of(name)}
        seconds = time_calls(calls, REPEATS.value or max(10, 40 // size))
        table += peers.rows(seconds, size)
        del programs, calls  # PyTorch's process ends
        # After each size: what is measured stays if the next one is stopped.
        report.show(table, "benchmark_training" if TRAIN.value else "benchmark", out)


def _classification(model: ResNeSt, images: jax.Array) -> dict[str, ours.Program]:
    return classification.programs(
        MODEL.value,
        model,
        images,
        train=TRAIN.value,
        others=not PROFILE.value,
        torch=TORCH.value,
        compiled=COMPILED.value,
        head_alone=not (PROFILE.value or PEERS.value),  # neither shows it
    )


def _images(shape: tuple[int, ...]) -> jax.Array:
    print(f"{MODEL.value}, images {shape}, {DTYPE.value}, {jax.devices()[0].device_kind}")
    return jax.random.normal(jax.random.key(1), shape)


def _benchmark(batch_size: int, out: Path | None) -> None:
    side = IMAGE_SIZE.value
    canvas = detection.canvas(side) if TASK.value == "detection" else (side, side)
    images = _images((batch_size, *canvas, 3))
    if ZOO.value:
        settings = (batch_size, DTYPE.value, _repeats(), TORCH.value, COMPILED.value)
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
        batch = detection.make_batch(model, images.shape, side)
        settings = {"train": TRAIN.value, "parts": PARTS.value, "torch": torch}
        programs = detection.programs(model, batch, MODEL.value, **settings)
    else:
        programs = _classification(model, images)
    if PROFILE.value:
        program = programs["as trained"]
        report.show(profiling.rows(program, jnp.dtype(DTYPE.value), out), "profile", out)
        return
    if TASK.value == "classification":
        programs = {name: ours.time_cached(program) for name, program in programs.items()}
    seconds = time_calls({name: p.call for name, p in programs.items()}, _repeats())
    if PARTS.value:
        report.show(report.parts(seconds, detection_parts.OURS), f"{kind}_parts", out)
        return
    count = 1 if MULTI_SCALE.value else batch_size
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


if __name__ == "__main__":
    cli.run(main, FLAGS)
