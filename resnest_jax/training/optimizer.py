"""Optimisers and schedules of the recipes: SGD or LAMB; cosine, poly or steps.

Regular expressions select the parameters that decay, are frozen or have another learning rate. They
are searched in the paths of parameters: ``stage1_block1/conv1/kernel``, ``head/bias``.
"""

import functools
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnest_jax.errors import InputError

OPTIMIZERS = ("sgd", "lamb", "adamw")
SCHEDULES = ("cosine", "poly", "steps")
LAMB_NORM = 1.0  # to which LAMB clips gradients by default

PyTree = Any


def make_schedule(
    *,
    kind: str = "cosine",
    base_learning_rate: float,
    batch_size: int,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_start: float = 0.0,
    boundaries: Sequence[int] = (),
    factor: float = 0.1,
    power: float = 0.9,
) -> optax.Schedule:
    """Make the schedule of the learning rate, by step from 0.

    The rate rises linearly from ``warmup_start`` times the full rate to the full rate. Then it
    falls to 0 as a cosine or as ``(1 - t / T) ** power``, with t and T counted from the end of the
    warm-up; or it is multiplied by ``factor`` at each of ``boundaries``, also in the warm-up.

    Args:
      kind: ``cosine``, ``poly`` or ``steps``.
      base_learning_rate: for a batch of 256. It is scaled to the batch size here, not in a config,
        whose batch size may be overridden (paper, section 5.1).

    Raises:
      InputError: if the kind is unknown, a number is out of range, or the warm-up or the
        boundaries do not fit in the run.
    """
    _check_schedule(kind, base_learning_rate, warmup_start, factor, power)
    _check_steps(kind, total_steps, warmup_steps, boundaries)
    rate = base_learning_rate * batch_size / 256
    if kind == "cosine":
        return optax.schedules.warmup_cosine_decay_schedule(
            init_value=warmup_start * rate,
            peak_value=rate,
            warmup_steps=warmup_steps,
            decay_steps=total_steps,
        )
    if kind == "poly":
        fall = functools.partial(_poly, rate=rate, power=power, begin=warmup_steps, end=total_steps)
    else:
        drops = {int(boundary): factor for boundary in boundaries}
        fall = optax.schedules.piecewise_constant_schedule(rate, drops)
    if warmup_steps == 0:
        return fall
    return lambda step: _warm_up(step, warmup_start, warmup_steps) * fall(step)


# Not optax's, which subtract the completed fraction from 1: the last steps of a run and the first
# of a warm-up would be differences of nearly equal float32 numbers.
def _warm_up(step: jax.typing.ArrayLike, start: float, steps: int) -> jax.Array:
    step = jnp.asarray(step)
    return jnp.where(step < steps, start + (1 - start) * step / steps, 1.0)


def _poly(
    step: jax.typing.ArrayLike, *, rate: float, power: float, begin: int, end: int
) -> jax.Array:
    left = (end - jnp.asarray(step)) / (end - begin)
    return rate * jnp.clip(left, 0, 1) ** power


def _check_schedule(
    kind: str, base_learning_rate: float, warmup_start: float, factor: float, power: float
) -> None:
    if kind not in SCHEDULES:
        raise InputError(f"optimizer.schedule must be one of {SCHEDULES}; got {kind!r}")
    positive = {"base_learning_rate": base_learning_rate, "factor": factor, "power": power}
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise InputError(f"optimizer.{name} must be positive and finite; got {value}")
    if not 0 <= warmup_start <= 1:
        raise InputError(f"optimizer.warmup_start must be in [0, 1]; got {warmup_start}")


def _check_steps(kind: str, total_steps: int, warmup_steps: int, boundaries: Sequence[int]) -> None:
    if not 0 <= warmup_steps < total_steps:
        raise InputError(
            f"optimizer.warmup_steps, or warmup_epochs in steps, must be in [0, {total_steps}), "
            f"less than the steps of the run; got {warmup_steps}"
        )
    if (kind == "steps") != (len(boundaries) > 0):
        raise InputError(
            "optimizer.boundaries must be given with optimizer.schedule 'steps', and only with "
            f"it; got {tuple(boundaries)} with {kind!r}"
        )
    if not all(a < b for a, b in itertools.pairwise((0, *boundaries, total_steps))):
        raise InputError(
            f"optimizer.boundaries must increase, after 0 and before {total_steps}, the steps of "
            f"the run; got {tuple(boundaries)}"
        )


def make_optimizer(
    schedule: optax.Schedule,
    *,
    name: str,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    clip_norm: float = 0.0,
    decay: str = "kernel$",
    freeze: str = "",
    lr_mults: Sequence[tuple[str, float]] = (),
) -> optax.GradientTransformation:
    """Make the optimiser ``sgd``, ``lamb`` or ``adamw``, by name.

    SGD adds the decay to the gradient before momentum (coupled, as in the reference). LAMB
    (arXiv 1904.00962; ``momentum`` is its beta 1) clips the gradient to norm 1, if ``clip_norm`` is
    0, and applies the trust ratio only to parameters that decay, as in the recipes of
    arXiv 2110.00476. AdamW (arXiv 1711.05101) has neither, and epsilon 1e-8.

    Unused transforms are not in the chain, because their state would be in the checkpoints.

    Args:
      clip_norm: largest norm of the gradient of all trained parameters together, before decay; a
        larger gradient is scaled down to it. 0 is the optimiser's own limit; infinity is none.
      decay: regular expression of the parameters that decay.
      freeze: regular expression of the parameters that do not change and have no state; "" is none.
      lr_mults: pairs of a regular expression and the factor of its parameters' learning rate. The
        first match counts; without a match the factor is 1.

    Raises:
      InputError: if the name is unknown, a number is out of range or a regular expression is
        invalid; from ``init(params)``, if one matches no parameter or all are frozen.
    """
    _check_optimizer(name, momentum, nesterov, weight_decay, clip_norm)
    decays, factors = _compile("decay", decay), _compile_factors(lr_mults)
    mask = functools.partial(_matches, decays)
    add_decay = optax.add_decayed_weights(weight_decay, mask=mask)
    parts: list[optax.GradientTransformation]
    if name == "sgd":
        parts = [add_decay, optax.sgd(schedule, momentum=momentum, nesterov=nesterov)]
    elif name == "lamb":
        parts = [
            optax.scale_by_adam(b1=momentum, b2=0.999, eps=1e-6),
            add_decay,
            optax.masked(optax.scale_by_trust_ratio(), mask),
            optax.scale_by_learning_rate(schedule),
        ]
    else:
        parts = [optax.adamw(schedule, b1=momentum, weight_decay=weight_decay, mask=mask)]
    if limit := clip_norm or (LAMB_NORM if name == "lamb" else 0.0):
        parts.insert(0, _clip(limit))
    if factors:
        parts.append(_scale(factors))
    optimizer = optax.chain(*parts)
    if freeze:
        _compile("freeze", freeze)
        labels = functools.partial(_labels, freeze=freeze)
        optimizer = optax.multi_transform({"train": optimizer, "keep": optax.set_to_zero()}, labels)

    def init(params: PyTree) -> PyTree:
        _check_params(params, decays, freeze, [pattern for pattern, _ in factors])
        return optimizer.init(params)

    return optax.GradientTransformationExtraArgs(init, optimizer.update)


def global_norm(grads: PyTree) -> jax.Array:
    """Return the norm of all gradients; squares of equal shape are added before they are summed.

    Every sum is an operation, and XLA:CPU's time to load a program grows with their square.
    """
    squares = defaultdict(list)
    for gradient in jax.tree.leaves(grads):
        squares[gradient.shape].append(jnp.square(gradient))
    return jnp.sqrt(sum(jnp.sum(sum(same[1:], same[0])) for same in squares.values()))


def _clip(limit: float) -> optax.GradientTransformation:
    """Clip as ``optax.clip_by_global_norm``, by the norm that a step logs: XLA computes it once."""

    def clip(grads: PyTree, params: PyTree | None) -> PyTree:
        del params
        norm = global_norm(grads)
        return jax.tree.map(lambda g: jnp.where(norm < limit, g, g / norm * limit), grads)

    return optax.stateless(clip)


def _check_optimizer(
    name: str, momentum: float, nesterov: bool, weight_decay: float, clip_norm: float
) -> None:
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer.name must be one of {OPTIMIZERS}; got {name!r}")
    if not 0 <= momentum < 1:
        raise InputError(f"optimizer.momentum must be in [0, 1); got {momentum}")
    if not 0 <= weight_decay < math.inf:
        raise InputError(
            f"optimizer.weight_decay must not be negative and must be finite; got {weight_decay}"
        )
    if not clip_norm >= 0:
        raise InputError(f"optimizer.clip_norm must not be negative; got {clip_norm}")
    if name != "sgd" and nesterov:
        raise InputError(f"optimizer.nesterov must be False with optimizer.name {name!r}")


def trainable(params: PyTree, freeze: str) -> PyTree:
    """Mark the parameters that are trained and so need a gradient.

    Args:
      freeze: regular expression of the other parameters; "" is none.

    Raises:
      InputError: if it is not a regular expression.
    """
    if not freeze:
        return jax.tree.map(lambda _: True, params)
    matches = _matches(_compile("freeze", freeze), params)
    return jax.tree.map(lambda match: not match, matches)


def _labels(params: PyTree, freeze: str) -> PyTree:
    """Label parameters ``train`` or ``keep``; a subtree of equal labels has one label.

    Checkpoints depend on this: the state of a ``keep`` subtree is one empty node.
    """

    def collapse(tree: PyTree) -> PyTree:
        if not isinstance(tree, dict):
            return "train" if tree else "keep"
        labels = {key: collapse(value) for key, value in tree.items()}
        for label in ("train", "keep"):
            if labels and all(value == label for value in labels.values()):
                return label
        return labels

    return collapse(trainable(params, freeze))


def _scale(factors: list[tuple[re.Pattern, float]]) -> optax.GradientTransformation:
    """Multiply updates by the factor of the first pattern that their path matches."""

    def scale(path: tuple, update: jax.Array) -> jax.Array:
        matches = (factor for pattern, factor in factors if pattern.search(_path(path)))
        factor = next(matches, None)
        return update if factor is None else factor * update

    return optax.stateless(lambda updates, _: jax.tree.map_with_path(scale, updates))


def _matches(pattern: re.Pattern, params: PyTree) -> PyTree:
    """Mark the parameters whose path matches."""
    return jax.tree.map_with_path(lambda path, _: bool(pattern.search(_path(path))), params)


def _path(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _compile(field: str, regex: str) -> re.Pattern:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise InputError(
            f"optimizer.{field} must be a regular expression; got {regex!r}: {error}"
        ) from error
    if not regex:
        raise InputError(f"optimizer.{field} must be a regular expression, '.*' for all; got ''")
    return pattern


def _compile_factors(lr_mults: Sequence[tuple[str, float]]) -> list[tuple[re.Pattern, float]]:
    factors = []
    for pair in lr_mults:
        match pair:
            case [str(regex), int(factor) | float(factor)] if 0 < factor < math.inf:
                factors.append((_compile("lr_mults", regex), factor))
            case _:
                raise InputError(
                    "optimizer.lr_mults must be pairs of a regular expression and a factor, "
                    f"positive and finite, such as (('^head/', 10.0),); got {pair!r}"
                )
    return factors


def _check_params(
    params: PyTree, decays: re.Pattern, freeze: str, scaled: list[re.Pattern]
) -> None:
    """Raise InputError if a regular expression matches no parameter, or all are frozen."""
    paths = [_path(path) for path, _ in jax.tree.leaves_with_path(params)]
    _check_matches("decay", [decays], paths)
    _check_matches("lr_mults", scaled, paths)
    if freeze:
        _check_matches("freeze", [re.compile(freeze)], paths)
    if not any(jax.tree.leaves(trainable(params, freeze))):
        raise InputError(
            f"optimizer.freeze {freeze!r} matches every parameter and leaves none to train; there "
            f"are {_examples(paths)}"
        )


def _check_matches(field: str, patterns: list[re.Pattern], paths: list[str]) -> None:
    """Raise InputError unless each pattern matches a path that no earlier pattern matches."""
    left = paths
    for pattern in patterns:
        rest = [path for path in left if not pattern.search(path)]
        if len(rest) == len(left):
            which = "no parameter" if left == paths else "no parameter left by earlier patterns"
            raise InputError(
                f"optimizer.{field} {pattern.pattern!r} matches {which}; there are "
                f"{_examples(paths)}"
            )
        left = rest


def _examples(paths: list[str]) -> str:
    """Return a few of the paths, from first to last."""
    return ", ".join(paths[:: max(1, len(paths) // 4)])
