"""Print the table of models: python -m resnest_jax.models

Parameters and GMACs are computed from the models; GMACs follow the convention of the published
figure, fvcore's or the authors'. Accuracy is the published one.
"""

import itertools
import signal
import sys

from resnest_jax.models.costs import count_macs, count_parameters
from resnest_jax.models.zoo import MODELS, Model, create_model

HEADER = ("model", "R", "K", "d", "params", "GMACs", "as", "at", "top-1", "at", "source")


def row(name: str, entry: Model, params: int, gmacs: float) -> tuple[str, ...]:
    """Return the cells of a model."""
    model = create_model(name)
    return (
        name,
        f"{model.radix}" if model.attention == "split" else model.attention,
        f"{model.cardinality}",
        f"{model.bottleneck_width}",
        f"{params:,}",
        f"{gmacs:.2f}",
        entry.convention,
        f"{entry.gmacs_size}",
        f"{entry.top1:.2f}" if entry.top1 else "",
        f"{entry.test_crop}" if entry.top1 else "",
        entry.source,
    )


def computed(name: str, entry: Model) -> tuple[str, ...]:
    """Return the cells of a model, with its own parameters and GMACs."""
    model = create_model(name)
    macs = count_macs(model, entry.gmacs_size, convention=entry.convention)
    return row(name, entry, count_parameters(model), macs / 1e9)


def main() -> None:
    """Print the table with aligned columns, each row as soon as it is counted."""
    if arguments := sys.argv[1:]:
        if arguments[0] in ("-h", "--help"):
            print(__doc__)
            return
        sys.exit(f"error: unexpected argument {arguments[0]!r}; this command takes none")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # its reader may end first, as head does
    # The published figures are as wide.
    wide = [HEADER, *(row(name, m, m.params, m.gmacs or 0.0) for name, m in MODELS.items())]
    widths = [max(map(len, column)) for column in zip(*wide, strict=True)]
    for cells in itertools.chain([HEADER], map(computed, MODELS, MODELS.values())):
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print(line.rstrip(), flush=True)


if __name__ == "__main__":
    main()
