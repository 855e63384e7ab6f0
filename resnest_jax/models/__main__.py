"""Print the table of models: python -m resnest_jax.models

Parameters and GMACs are computed from the models; GMACs follow the convention of the published
figure, fvcore's or the authors'. Accuracy is the published one.
"""

from resnest_jax.models.costs import count_macs, count_parameters
from resnest_jax.models.zoo import MODELS, create_model

HEADER = ("model", "R", "K", "d", "params", "GMACs", "as", "at", "top-1", "at", "source")


def rows() -> list[tuple[str, ...]]:
    """Return the cells of the table."""
    table = []
    for name, entry in MODELS.items():
        model = create_model(name)
        table.append(
            (
                name,
                f"{model.radix}" if model.attention == "split" else model.attention,
                f"{model.cardinality}",
                f"{model.bottleneck_width}",
                f"{count_parameters(model):,}",
                f"{count_macs(model, entry.gmacs_size, convention=entry.convention) / 1e9:.2f}",
                entry.convention,
                f"{entry.gmacs_size}",
                f"{entry.top1:.2f}" if entry.top1 else "",
                f"{entry.test_crop}" if entry.top1 else "",
                entry.source,
            )
        )
    return table


def main() -> None:
    """Print the table with aligned columns."""
    table = [HEADER, *rows()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


if __name__ == "__main__":
    main()
