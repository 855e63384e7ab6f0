"""Parameters and multiply-adds: the published figures and their conventions."""

from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from scipy.optimize import linprog

import resnest_jax
from resnest_jax.errors import InputError
from resnest_jax.models import zoo
from resnest_jax.models.costs import count_macs, count_parameters
from resnest_jax.models.layers.convolution import Conv

FAST = [name for name in zoo.MODELS if "_fast_" in name]
ODD = "resnest50_fast_4s2x40d"  # printed 4.41


@pytest.mark.parametrize("name", zoo.MODELS)
def test_published_figures(name):
    """Parameters are exact; GMACs equal the printed digits, with one exception."""
    model, entry = resnest_jax.create_model(name), zoo.MODELS[name]
    assert count_parameters(model) == entry.params
    if entry.gmacs is not None:
        macs = count_macs(model, entry.gmacs_size, convention=entry.convention)
        assert f"{macs / 1e9:.2f}" == ("4.38" if name == ODD else f"{entry.gmacs:.2f}")


def test_macs_of_a_network_counted_by_hand():
    """ResNet-14 without pooled shortcuts, 32 pixels, planes and stem of 1: small terms."""
    model = resnest_jax.create_model(
        "resnet50", stage_sizes=(1, 1, 1, 1), planes=(1, 1, 1, 1), stem_width=1, num_classes=3
    )
    # Sides: stem 16, stages 8, 4, 2, 1. Stem 3 -> 2 channels, 7x7; blocks 1x1, 3x3, 1x1, shortcut.
    stem = 16**2 * 2 * 3 * 49
    products, norms, relus = stem, 16**2 * 2, 16**2 * 2
    inputs, side_in = 2, 8
    for side in (8, 4, 2, 1):
        products += side_in**2 * inputs + side**2 * (9 + 4 + 4 * inputs)
        norms += side_in**2 + side**2 * (1 + 4 + 4)
        relus += side_in**2 + side**2 * (1 + 4)
        inputs, side_in = 4, side
    dense = 4 * 3
    assert count_macs(model, 32) == products + dense + 2 * norms
    pools = 8**2 * 2 * 9 + 4  # the max-pool, and the global pool of a single pixel
    assert count_macs(model, 32, convention="authors") == products + dense + 3 + relus + pools


def test_no_convention_prints_all_seven():
    """For any weights of the kinds of operation, 4s2x40d's 4.41 contradicts the other six.

    A convention is a weight >= 0 for each kind of operation. A rounded figure gives two linear
    inequalities per model. With convolutions and the classifier counted once, the weights of the
    other kinds are a linear program, which has a solution without 4s2x40d and none with it.
    """
    counts = {name: count_kinds(resnest_jax.create_model(name)) for name in FAST}
    assert weights_exist({name: counts[name] for name in FAST if name != ODD})
    assert not weights_exist(counts)


def count_kinds(model):
    """Return the inputs and outputs of each kind of layer, and the products, in 1e9.

    The layers of the attention are counted with their groups and without groups.
    """
    kinds = Counter()

    def count(next_call, args, kwargs, context):
        out = next_call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__":
            where = "stem" if module.path[:1] == ("stem",) else "block"
            kind = f"{where} {type(module).__name__} {module.name if where == 'block' else ''}"
            if type(module).__name__ in ("Bottleneck", "SplitAttention"):
                kind = type(module).__name__
            kinds[f"{kind} in"] += args[0].size
            kinds[f"{kind} out"] += out.size
            if isinstance(module, Conv):
                products = out.size * args[0].shape[-1] // module.groups * module.kernel_size**2
                fixed = not module.use_bias
                kinds["fixed" if fixed else "attention"] += products
                kinds["attention, no groups"] += 0 if fixed else products * module.groups
            elif isinstance(module, nn.Dense):
                kinds["fixed"] += out.size * args[0].shape[-1]
        return out

    with nn.intercept_methods(count):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    return {kind: number / 1e9 for kind, number in kinds.items()}


def weights_exist(counts):
    """Return whether some weights of the kinds round to the printed figures."""
    kinds = sorted({kind for count in counts.values() for kind in count} - {"fixed"})
    rows, bounds = [], []
    for name, count in counts.items():
        row = [count.get(kind, 0) for kind in kinds]
        rest = zoo.MODELS[name].gmacs - count["fixed"]
        rows += [row, [-value for value in row]]
        bounds += [rest + 0.005, 0.005 - rest]
    # In thousandths, so that the solver's tolerance is small.
    scaled = [[1e3 * value for value in row] for row in rows]
    result = linprog([0] * len(kinds), A_ub=scaled, b_ub=[1e3 * bound for bound in bounds])
    return result.status == 0


def test_unknown_convention():
    with pytest.raises(InputError, match=r"convention must be one of .*'thop'"):
        count_macs(resnest_jax.create_model("resnest14"), 224, convention="thop")
