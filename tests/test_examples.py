"""The examples do what they say."""

import runpy

import helpers
import jax
import numpy as np


def main_of(name):
    return runpy.run_path(str(helpers.ROOT / "examples" / f"{name}.py"))["main"]


def test_own_module():
    losses = main_of("own_module")()
    assert losses[-1] < 0.5 * losses[0]


def test_decoder():
    logits = main_of("decoder")()
    assert logits.shape == (1, 65, 97, 5)
    assert np.isfinite(logits).all()


def test_pyramid():
    scores = main_of("pyramid")()
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    shapes = {f"p{level}": (1, *size, 5) for level, size in enumerate(sizes, 2)}
    assert {level: x.shape for level, x in scores.items()} == shapes
    assert all(np.isfinite(x).all() for x in scores.values())


def test_finetune_head():
    before, after, losses = main_of("finetune_head")()
    assert losses[-1] < 0.5 * losses[0]
    changed = {
        path[0].key
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
        )
        if (a != b).any()
    }
    assert changed == {"head"}


def test_nnx_bridge():
    logits, moved = main_of("nnx_bridge")()
    assert logits.shape == (2, 4)
    assert np.isfinite(logits).all()
    assert moved
