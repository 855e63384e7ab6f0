"""ResNeSt (Split-Attention Networks) in JAX and Flax."""

from resnest_jax.compiling import compiler_options
from resnest_jax.models.detection.fpn import FPN
from resnest_jax.models.folding import fold
from resnest_jax.models.layers.split_attention import SplitAttention
from resnest_jax.models.resnest import ResNeSt
from resnest_jax.models.zoo import create_model, list_models
from resnest_jax.weights.pretrained import load_pretrained, save_weights
from resnest_jax.weights.torch_names import from_torch, to_torch

__all__ = [
    "FPN",
    "ResNeSt",
    "SplitAttention",
    "compiler_options",
    "create_model",
    "fold",
    "from_torch",
    "list_models",
    "load_pretrained",
    "save_weights",
    "to_torch",
]
