"""Use SplitAttention in your own Linen module, and train it for a few steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from resnest_jax import SplitAttention


class Network(nn.Module):
    """Two split-attention layers and a head."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = SplitAttention(features=16, radix=1, name="first")(x, train)
        x = SplitAttention(features=32, radix=2, cardinality=2, strides=2, name="second")(x, train)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


def main() -> list[float]:
    """Train on random images; return the losses."""
    network = Network(num_classes=4)
    images = jax.random.normal(jax.random.key(0), (16, 16, 16, 3))
    labels = jnp.arange(16) % 4
    variables = network.init(jax.random.key(1), images)
    params, batch_stats = variables["params"], variables["batch_stats"]
    optimizer = optax.adam(1e-2)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, batch_stats, opt_state):
        def loss_fn(params):
            variables = {"params": params, "batch_stats": batch_stats}
            logits, updates = network.apply(variables, images, True, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, updates["batch_stats"]

        (loss, new_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state_ = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), new_stats, opt_state_, loss

    losses = []
    for _ in range(20):
        params, batch_stats, opt_state, loss = step(params, batch_stats, opt_state)
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    print(main())
