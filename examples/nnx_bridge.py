"""Use the model in a Flax NNX project, through Flax's bridge."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import bridge

import resnest_jax


class Classifier(nnx.Module):
    """An NNX module with a ResNeSt backbone and an NNX head."""

    def __init__(self, num_classes: int, images: jax.Array, rngs: nnx.Rngs):
        backbone = resnest_jax.create_model("resnest14", num_classes=0)
        self.backbone = bridge.ToNNX(backbone, rngs=rngs).lazy_init(images)
        self.head = nnx.Linear(2048, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        # Mutable, so that training updates the batch statistics as NNX state.
        mutable = ["batch_stats"] if train else False
        features = self.backbone(images, train=train, mutable=mutable)
        return self.head(features)


def main() -> tuple[jax.Array, bool]:
    """Return logits (2, 4), and whether training changed the batch statistics."""
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3)) + jnp.ones(3)[None, None, None]
    model = nnx.jit(lambda: Classifier(4, images, nnx.Rngs(0)))()
    call = nnx.jit(lambda model, images, train: model(images, train), static_argnums=2)
    before = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    call(model, images, True)
    after = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    moved = any(bool((a != b).any()) for a, b in zip(before, after, strict=True))
    return call(model, images, False), moved


if __name__ == "__main__":
    print(main())
