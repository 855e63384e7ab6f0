"""The paper's optimiser: Nesterov SGD, linear warm-up, cosine, decay of kernels only."""

import jax
import optax

from resnest_jax.errors import InputError


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
    schedule: optax.Schedule, *, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """SGD with decay added to the gradient before momentum: coupled, as the reference has it.

    Raises:
      InputError: if the momentum is not in [0, 1) or the decay is negative.
    """
    if not 0 <= momentum < 1:
        raise InputError(f"optimizer.momentum must be in [0, 1); got {momentum}")
    if weight_decay < 0:
        raise InputError(f"optimizer.weight_decay must not be negative; got {weight_decay}")
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=kernels),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )


def kernels(params) -> dict:
    """Mask of what decays: convolution and dense kernels, no bias, no batch norm."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
