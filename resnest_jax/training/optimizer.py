"""Optimisers and schedule of the recipes: SGD of the paper, LAMB; decay of kernels only."""

import re

import jax
import optax

from resnest_jax.errors import InputError

OPTIMIZERS = ("sgd", "lamb")


def make_schedule(
    *,
    base_learning_rate: float,
    warmup_epochs: float,
    epochs: float,
    batch_size: int,
    steps_per_epoch: float,
) -> optax.Schedule:
    """Learning rate by step: from 0 up to ``base_learning_rate * batch_size / 256``, cosine to 0.

    Scaled here and not in a config, whose batch size may be overridden (paper, section 5.1).

    Raises:
      InputError: if the warm-up is not within the run or the rate is not positive.
    """
    if base_learning_rate <= 0:
        raise InputError(f"optimizer.base_learning_rate must be positive; got {base_learning_rate}")
    if not 0 <= warmup_epochs < epochs:
        raise InputError(
            f"optimizer.warmup_epochs must be in [0, epochs = {epochs}); got {warmup_epochs}"
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=base_learning_rate * batch_size / 256,
        warmup_steps=round(warmup_epochs * steps_per_epoch),
        decay_steps=round(epochs * steps_per_epoch),
    )


def make_optimizer(
    schedule: optax.Schedule,
    *,
    name: str,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> optax.GradientTransformation:
    """The optimiser ``sgd`` or ``lamb``, by name.

    SGD adds the decay to the gradient before momentum: coupled, as the reference has it. LAMB
    (arXiv 1904.00962; ``momentum`` is its beta 1) clips the gradient to norm 1 and scales only
    what decays by the trust ratio, as in the recipes of arXiv 2110.00476.

    Raises:
      InputError: if the name is unknown or a number is out of range.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer.name must be one of {OPTIMIZERS}; got {name!r}")
    if not 0 <= momentum < 1:
        raise InputError(f"optimizer.momentum must be in [0, 1); got {momentum}")
    if weight_decay < 0:
        raise InputError(f"optimizer.weight_decay must not be negative; got {weight_decay}")
    decay = optax.add_decayed_weights(weight_decay, mask=kernels)
    if name == "sgd":
        return optax.chain(decay, optax.sgd(schedule, momentum=momentum, nesterov=nesterov))
    if nesterov:
        raise InputError("optimizer.nesterov must be False with optimizer.name 'lamb'")
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=momentum, b2=0.999, eps=1e-6),
        decay,
        optax.masked(optax.scale_by_trust_ratio(), kernels),
        optax.scale_by_learning_rate(schedule),
    )


def kernels(params) -> dict:
    """Mask of what decays: convolution and dense kernels, no bias, no batch norm."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def only_below(optimizer: optax.GradientTransformation, name: str) -> optax.GradientTransformation:
    """An optimiser of the parameters below one name at the top alone."""

    def label(params):
        return {key: "train" if key == name else "keep" for key in params}

    transforms = {"train": optimizer, "keep": optax.set_to_zero()}
    return optax.multi_transform(transforms, label)


def trainable(params, freeze: str):
    """Mask of the parameters whose path the regex does not match."""

    def keep(path, _):
        return not (freeze and re.search(freeze, "/".join(part.key for part in path)))

    return jax.tree_util.tree_map_with_path(keep, params)
