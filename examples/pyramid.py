"""Put a feature pyramid on the backbone's endpoints: class scores at every pixel of five levels."""

import flax.linen as nn
import jax
import jax.numpy as jnp

import resnest_jax


class DenseDetector(nn.Module):
    """A backbone, an FPN, and one classifier for all levels."""

    num_classes: int

    def setup(self):
        self.backbone = resnest_jax.create_model("resnest14", num_classes=0)
        self.fpn = resnest_jax.FPN(features=32)
        self.classifier = nn.Conv(self.num_classes, (3, 3))

    def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        pyramid = self.fpn(self.backbone.features(images, train), train)
        return {level: nn.sigmoid(self.classifier(x)) for level, x in pyramid.items()}


def main() -> dict[str, jax.Array]:
    """Score one image of 64x96 pixels; return the scores (1, H, W, 5) of ``p2`` to ``p6``."""
    images = jnp.ones((1, 64, 96, 3))
    detector = DenseDetector(num_classes=5)
    variables = jax.jit(detector.init)(jax.random.key(0), images)
    return jax.jit(detector.apply)(variables, images)


if __name__ == "__main__":
    print({level: scores.shape for level, scores in main().items()})
