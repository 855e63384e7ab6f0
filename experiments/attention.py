"""Measure how a trained model divides its attention between the splits.

    python -m experiments.attention --workdir=RUN

Evaluates a checkpoint of a run, the last by default, on its evaluation images. Writes
RUN/attention.md and attention.png, per stage and class: the mean weight of each split, how even the
weights are (entropy, as a fraction of its maximum), how often a split is ignored, and whether the
weights depend on the image, on its class, or on neither.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from absl import flags

from resnest_jax import arguments, cli, recipe
from resnest_jax.errors import InputError
from resnest_jax.files import write_atomic
from resnest_jax.models.inputs import normalize
from resnest_jax.models.resnest import ResNeSt, stage_of
from resnest_jax.training.checkpoints import find_step, state_folder
from resnest_jax.training.variables import restore_variables
from resnest_jax.workdir import load_config

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run.", required=True, flag_values=FLAGS
)
CHECKPOINT = arguments.define_checkpoint(FLAGS)

IGNORED = 0.1  # a split below this fraction of an even share is ignored


class Sums(NamedTuple):
    """Sums over images for one block; N classes, R splits, C channels.

    Attributes:
      weight: (N, R, C); square: (R, C), of the squared weights.
      entropy: (N,), mean over channels, in nats.
      ignored: (N, R), fraction of the channels.
    """

    weight: np.ndarray
    square: np.ndarray
    entropy: np.ndarray
    ignored: np.ndarray


class Stage(NamedTuple):
    """Statistics of a stage: means over its blocks and channels.

    Attributes:
      weight: (N, R), mean weight per class.
      entropy: (N,), as a fraction of the maximum log R.
      ignored: (N, R), fraction of images and channels in which a split is ignored.
      sd_images: standard deviation of a channel's weight over images.
      sd_classes: standard deviation of the class means of a channel's weight.
      sd_channels: standard deviation over channels of the mean weight.
    """

    weight: np.ndarray
    entropy: np.ndarray
    ignored: np.ndarray
    sd_images: float
    sd_classes: float
    sd_channels: float


def collect(model: ResNeSt, variables: dict, batches, classes: int) -> tuple[dict, np.ndarray]:
    """Return ``Sums`` per block, and the number of images per class.

    Args:
      batches: dictionaries with ``image``, ``label`` and ``valid``.

    Raises:
      InputError: if the model has no split attention, or only one split.
    """
    if model.radix < 2:
        raise InputError(
            f"the model has radix {model.radix}; attention between splits needs at least 2"
        )

    @jax.jit
    def batch_sums(images, labels, valid):
        _, sown = model.apply(
            variables, normalize(images), method="features", mutable=["intermediates"]
        )
        members = jax.nn.one_hot(labels, classes) * valid[:, None]
        blocks = {
            block: _sums(layers["conv2"]["attention"][0], members)
            for block, layers in sown["intermediates"].items()
        }
        return blocks, members.sum(0)

    total = None
    for batch in batches:
        found = jax.device_get(batch_sums(batch["image"], batch["label"], batch["valid"]))
        total = found if total is None else jax.tree.map(np.add, total, found)
    return total


def _sums(attention: jax.Array, members: jax.Array) -> Sums:
    """Sum attention (B, R, C) per class; members (B, N) are 0 for images that do not count."""
    attention = attention.astype(jnp.float32)
    entropy = -jnp.sum(jax.scipy.special.xlogy(attention, attention), 1).mean(-1)
    ignored = (attention < IGNORED / attention.shape[1]).mean(-1, dtype=jnp.float32)
    return Sums(
        jnp.einsum("bn,brc->nrc", members, attention),
        jnp.einsum("bn,brc->rc", members, attention**2),
        members.T @ entropy,
        members.T @ ignored,
    )


def summarise(sums: dict[str, Sums], count: np.ndarray) -> dict[int, Stage]:
    """Return the statistics per stage; classes without images are NaN."""
    stages: dict[int, list[Stage]] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for block, block_sums in sums.items():
            stages.setdefault(stage_of(block), []).append(_block(block_sums, count))
    return {
        stage: Stage(*(np.mean(field, 0) for field in zip(*blocks, strict=True)))
        for stage, blocks in sorted(stages.items())
    }


def _block(sums: Sums, count: np.ndarray) -> Stage:
    mean = sums.weight.sum(0) / count.sum()  # (R, C)
    class_mean = sums.weight / count[:, None, None]
    share = (count / count.sum())[:, None, None]
    between = np.nansum(share * (class_mean - mean) ** 2, 0)
    return Stage(
        class_mean.mean(-1),
        sums.entropy / count / np.log(len(mean)),
        sums.ignored / count[:, None],
        float(np.sqrt(np.maximum(sums.square / count.sum() - mean**2, 0).mean())),
        float(np.sqrt(between.mean())),
        float(mean.std(-1).mean()),
    )


def table(stages: dict[int, Stage], count: np.ndarray, class_names: tuple[str, ...]) -> str:
    """Return two tables: the stages, and the classes in each stage."""
    splits = next(iter(stages.values())).weight.shape[-1]
    numbers = range(1, splits + 1)
    share = count / count.sum()
    lines = [
        f"{int(count.sum()):,} images; a split is ignored where its weight is below "
        f"{IGNORED} of an even share, {IGNORED / splits:.3g}. Spreads are standard deviations: of "
        "a channel's weight over images, of its class means over classes, of its mean over "
        "channels.",
        "",
        f"| stage | {' | '.join(f'weight of split {i}' for i in numbers)} | entropy / log R "
        f"| {' | '.join(f'split {i} ignored' for i in numbers)} | over images | over classes "
        "| over channels |",
        "|---" * (2 * splits + 5) + "|",
    ]
    for number, stage in stages.items():
        weight, ignored = (np.nansum(share[:, None] * x, 0) for x in (stage.weight, stage.ignored))
        lines.append(
            f"| {number} | {' | '.join(f'{w:.3f}' for w in weight)} "
            f"| {np.nansum(share * stage.entropy):.3f} "
            f"| {' | '.join(f'{100 * i:.1f} %' for i in ignored)} "
            f"| {stage.sd_images:.3f} | {stage.sd_classes:.3f} | {stage.sd_channels:.3f} |"
        )
    head = " | ".join(f"stage {number}: weights; entropy" for number in stages)
    lines += ["", f"| class | images | {head} |", "|---" * (2 + len(stages)) + "|"]
    for i, name in enumerate(class_names):
        cells = (
            f"{' '.join(f'{w:.3f}' for w in stage.weight[i])}; {stage.entropy[i]:.3f}"
            for stage in stages.values()
        )
        lines.append(f"| {name} | {int(count[i]):,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(stages: dict[int, Stage], count: np.ndarray, class_names: tuple[str, ...], path: Path):
    """Plot weights, entropy and ignored splits per stage, and split 1's weight per class."""
    share = (count / count.sum())[:, None]
    figure = matplotlib.figure.Figure(figsize=(17, 4.2), layout="constrained")
    weights, entropy, ignored, classes = figure.subplots(1, 4)
    x = np.arange(len(stages))
    splits = next(iter(stages.values())).weight.shape[-1]
    for axes, field, scale in ((weights, "weight", 1), (ignored, "ignored", 100)):
        values = [np.nansum(share * getattr(stage, field), 0) * scale for stage in stages.values()]
        for split in range(splits):
            offset = (split - (splits - 1) / 2) * 0.8 / splits
            heights = [value[split] for value in values]
            axes.bar(x + offset, heights, 0.8 / splits, label=f"split {split + 1}")
    weights.axhline(1 / splits, color="0.3", linewidth=0.8, linestyle=":")
    weights.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=splits)
    weights.set_ylabel("mean weight")
    ignored.set_ylabel("ignored (% of images and channels)")
    entropy.boxplot([s.entropy[~np.isnan(s.entropy)] for s in stages.values()], positions=x)
    entropy.set_ylabel("entropy / log R (boxes: classes)")
    for axes in (weights, entropy, ignored):
        axes.set_xticks(x, [f"stage {number}" for number in stages])
    first = np.stack([stage.weight[:, 0] for stage in stages.values()])
    moved = first - np.nansum(share.T * first, 1, keepdims=True)
    limit = max(float(np.nanmax(np.abs(moved))), 1e-6)
    image = classes.imshow(moved, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    classes.set_yticks(x, [f"stage {number}" for number in stages])
    if len(class_names) <= 30:
        classes.set_xticks(range(len(class_names)), class_names, rotation=90, fontsize=7)
    classes.set_title("weight of split 1: class mean - overall mean", fontsize=9)
    figure.colorbar(image, ax=classes)
    figure.savefig(path, dpi=100)


def main(_: list[str]) -> None:
    """Analyse the run."""
    workdir = arguments.local_path(WORKDIR)
    run = recipe.build(load_config(workdir), training=False)
    step = find_step(workdir, CHECKPOINT.value, run.task.best_metric)
    variables = restore_variables(state_folder(workdir, step))
    names = run.batches.class_names
    sums, count = collect(run.task.model, variables, run.batches.eval(), len(names))
    stages = summarise(sums, count)
    text = table(stages, count, names)
    write_atomic(workdir / "attention.md", text.encode())
    plot(stages, count, names, workdir / "attention.png")
    print(text)


if __name__ == "__main__":
    cli.run(main, FLAGS)
