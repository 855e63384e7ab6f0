"""Draw a confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np

from resnest_jax.files import writing

MAX_NAMED = 30  # classes whose names and numbers fit in the picture


def draw_confusion(
    path: Path,
    shares: np.ndarray,
    texts: np.ndarray,
    columns: Sequence[str],
    *,
    of: str,
    title: str = "",
) -> None:
    """Draw the share of each true class, a row, by predicted class.

    Args:
      path: PNG to write.
      shares: percent (R, C).
      texts: what is written into the cells (R, C), str; with many classes nothing is.
      columns: names of the predicted classes; the first R are also those of the rows.
      of: what the shares are of, as in "% of the true class".

    Raises:
      InputError: if it cannot be written.
    """
    height, width = shares.shape
    named = width <= MAX_NAMED
    side = 2.5 + (0.42 * width if named else 8)
    figure = matplotlib.figure.Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, shrink=0.8, label=f"% of {of}")
    axes.set_title(title, fontsize=10)
    order = "" if named else ", in the order of per_class.csv"
    axes.set(xlabel=f"predicted class{order}", ylabel="true class")
    if named:
        names = [short(name) for name in columns]
        rotation = 90 if max(map(len, names)) > 3 else 0
        axes.set_xticks(range(width), names, rotation=rotation, fontsize=8, parse_math=False)
        axes.set_yticks(range(height), names[:height], fontsize=8, parse_math=False)
        for (row, column), text in np.ndenumerate(texts):
            colour = "white" if shares[row, column] > 50 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    with writing("output", path):
        figure.savefig(path, dpi=100, format="png")


def short(name: str) -> str:
    """Cut off a long name."""
    return name if len(name) <= 24 else f"{name[:23]}…"
