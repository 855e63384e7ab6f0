"""A second task, the brightness of each pixel: training does not depend on the task.

    python tests/pixel_task.py WORKDIR

trains it in this process, or in all processes that ``distributed.start`` finds.
"""

import dataclasses
import json
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnest_jax.training import distributed
from resnest_jax.training.checkpoints import Checkpoints
from resnest_jax.training.loop import fit
from resnest_jax.training.optimizer import make_optimizer, make_schedule
from resnest_jax.training.run import Run, TrainOptions
from resnest_jax.training.task import Aux, EvalOutput

SIZE, NUM_TRAIN, NUM_EVAL, BATCH = 12, 96, 26, 16
BRIGHT = 0.7
MOST = 40  # most bright pixels listed per image


class Network(nn.Module):
    """Two convolutions: images (B, H, W, 3) to brightness (B, H, W)."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(8, (3, 3))(images)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Conv(1, (1, 1))(nn.relu(x))[..., 0]


@dataclasses.dataclass(frozen=True)
class PixelTask:
    """Regression of the brightness of each pixel."""

    model: nn.Module = dataclasses.field(default_factory=Network)
    best_metric = "eval_score"
    curves = {"loss": {"loss": "train"}, "score": {"eval_score": "score"}}

    def init(self, rng):
        return self.model.init(rng, jnp.zeros((1, SIZE, SIZE, 3)))

    def loss(self, variables, batch, rng, progress):
        found, updates = self.model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"]
        )
        error = (found - batch["brightness"]) ** 2
        metrics = {"worst": error.max((1, 2)).mean(), "progress": progress}
        return error.mean(), Aux(updates["batch_stats"], metrics)

    def eval_step(self, variables, batch):
        found = self.model.apply(variables, batch["image"])
        error = ((found - batch["brightness"]) ** 2).mean((1, 2))
        valid = batch["valid"]
        sums = {"error": jnp.sum(jnp.where(valid, error, 0)), "images": valid.sum()}
        values, _ = jax.lax.top_k(found.reshape(len(found), -1), MOST)
        return EvalOutput(sums, {"values": values, "count": (found > BRIGHT).sum((1, 2))})

    def metric(self):
        return BrightPixels()


class BrightPixels:
    """The error, from sums; the median over the bright pixels of all images."""

    def __init__(self):
        self._error, self._images, self._bright = 0.0, 0, {}

    def update(self, output, batch):
        self._error += float(output.sums["error"])
        self._images += int(output.sums["images"])
        found = output.per_image
        for i in np.flatnonzero(batch["valid"]):
            count = min(int(found["count"][i]), MOST)
            self._bright[str(batch["index"][i])] = found["values"][i, :count].tolist()

    def compute(self):
        everyone = {}
        for part in distributed.gather_bytes(json.dumps(self._bright).encode()):
            everyone |= json.loads(part)
        assert len(everyone) == self._images == NUM_EVAL
        values = [value for index in sorted(everyone) for value in everyone[index]]
        error = self._error / self._images
        return {"score": -error, "bright": float(np.median(values)), "listed": float(len(values))}


class PixelBatches:
    """Images drawn from their index; this process's part of each batch."""

    num_train, num_eval, class_names = NUM_TRAIN, NUM_EVAL, ()

    def _batch(self, indices, valid):
        size = BATCH // jax.process_count()
        part = slice(jax.process_index() * size, (jax.process_index() + 1) * size)
        images = np.stack(
            [
                np.random.default_rng(i).random((SIZE, SIZE, 3), np.float32) ** (1 + i % 3)
                for i in indices[part]
            ]
        )
        brightness = images.max(-1)
        return {
            "image": images,
            "brightness": brightness,
            "index": indices[part].astype(np.int32),
            "valid": valid[part],
        }

    def _train_indices(self, step):
        return np.random.default_rng((1, step)).permutation(NUM_TRAIN)[:BATCH]

    def train(self, start_step, workers=None):
        step = start_step
        while True:
            yield self._batch(self._train_indices(step), np.ones(BATCH, bool))
            step += 1

    def eval(self, workers=None):
        for start in range(0, NUM_EVAL, BATCH):
            indices = np.arange(start, start + BATCH)
            yield self._batch(1000 + indices, indices < NUM_EVAL)

    def train_keys(self, step):
        return [str(i) for i in self._train_indices(step)]

    def train_specs(self):
        batch = next(self.train(0))
        return (
            {
                name: jax.ShapeDtypeStruct((BATCH, *array.shape[1:]), array.dtype)
                for name, array in batch.items()
            },
        )


def make_run(tracker=None, **options) -> Run:
    """Make a run of this task."""
    steps = 24
    schedule = make_schedule(
        kind="poly", base_learning_rate=1.0, batch_size=BATCH, total_steps=steps, warmup_steps=2
    )
    optimizer = make_optimizer(
        schedule, name="sgd", momentum=0.9, nesterov=False, weight_decay=1e-4
    )
    chosen = TrainOptions(
        seed=1,
        total_steps=steps,
        steps_per_epoch=NUM_TRAIN / BATCH,
        batch_size=BATCH,
        log_every=2,
        eval_every=6,
        recompute_batch_norm=3,
    )._replace(**options)
    return Run(PixelTask(), PixelBatches(), optimizer, schedule, chosen, tracker=tracker)


def train(workdir: pathlib.Path, **options) -> dict:
    """Train in a directory; resume from its last checkpoint."""
    workdir.mkdir(parents=True, exist_ok=True)
    run = make_run(**options)
    with Checkpoints(workdir, keep_last=2, best_metric=run.task.best_metric) as checkpoints:
        return fit(run, checkpoints, workdir)


if __name__ == "__main__":
    distributed.start()
    train(pathlib.Path(sys.argv[1]))
