"""Put a small decoder on the backbone's endpoints: one label per pixel."""

import flax.linen as nn
import jax
import jax.numpy as jnp

import resnest_jax


class Segmenter(nn.Module):
    """A dilated backbone (output stride 8), lateral 1x1 convolutions and a sum."""

    num_classes: int

    def setup(self):
        self.backbone = resnest_jax.create_model("resnest14", num_classes=0, output_stride=8)
        self.lateral2 = nn.Conv(32, (1, 1))
        self.lateral5 = nn.Conv(32, (1, 1))
        self.classifier = nn.Conv(self.num_classes, (1, 1))

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        endpoints = self.backbone.features(images, train)
        fine, coarse = self.lateral2(endpoints["c2"]), self.lateral5(endpoints["c5"])
        merged = nn.relu(fine + jax.image.resize(coarse, fine.shape, "bilinear"))
        logits = self.classifier(merged)
        return jax.image.resize(logits, (*images.shape[:3], self.num_classes), "bilinear")


def main() -> jax.Array:
    """Label the pixels of one image; return the logits (1, 65, 97, 5)."""
    images = jnp.ones((1, 65, 97, 3))
    segmenter = Segmenter(num_classes=5)
    variables = jax.jit(segmenter.init)(jax.random.key(0), images)
    return jax.jit(segmenter.apply)(variables, images)


if __name__ == "__main__":
    print(main().shape)
