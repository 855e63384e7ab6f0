"""Which differences between cells are more than noise: paired over seeds, Holm's correction."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.05


class Comparison(NamedTuple):
    """A cell against the baseline, in percent points, over the seeds that both have.

    Attributes:
      cell: the name.
      seeds: how many pairs.
      difference: mean of cell - baseline.
      margin: half the width of its 95 % confidence interval (Student's t), for one comparison.
      p: of the paired t-test, two-sided, for one comparison.
      p_holm: corrected for the number of comparisons.
    """

    cell: str
    seeds: int
    difference: float
    margin: float
    p: float
    p_holm: float

    @property
    def shown(self) -> bool:
        """Whether a difference is shown."""
        return self.p_holm < LEVEL


def compare(results: dict[str, dict[int, float]], baseline: str) -> list[Comparison]:
    """Every other cell against the baseline.

    Args:
      results: accuracy in percent by cell and seed.

    Returns:
      One comparison a cell that shares a seed with the baseline, in the order of ``results``.
    """
    reference = results[baseline]
    found = []
    for cell, by_seed in results.items():
        seeds = sorted(set(by_seed) & set(reference))
        if cell != baseline and seeds:
            pairs = [by_seed[seed] - reference[seed] for seed in seeds]
            found.append((cell, pairs, *paired_test(pairs)))
    corrected = holm([p for *_, p in found])
    return [
        Comparison(cell, len(pairs), float(np.mean(pairs)), margin, p, p_holm)
        for (cell, pairs, margin, p), p_holm in zip(found, corrected, strict=True)
    ]


def paired_test(differences: Sequence[float]) -> tuple[float, float]:
    """Half the 95 % interval of the mean, and the two-sided p of its being zero.

    One pair says nothing: (infinity, 1). Differences without any spread would make Student's test
    certain from two pairs on, which a coarse accuracy brings about by chance; the p is then that of
    a sign-flip test, 2 / 2**n.
    """
    n = len(differences)
    if n < 2:
        return math.inf, 1.0
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    mean = float(np.mean(differences))
    if error < 1e-9:
        return 0.0, 1.0 if abs(mean) < 1e-9 else min(1.0, 2 / 2**n)
    return (
        float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error,
        float(2 * stats.t.sf(abs(mean) / error, n - 1)),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of even one false finding stays at the level."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def statement(comparison: Comparison, baseline: str) -> str:
    """The comparison as a sentence."""
    c = comparison
    if c.seeds < 2:
        return f"{c.cell}: {c.difference:+.2f} points against {baseline} with one seed: no test."
    verdict = "no difference shown"
    if c.shown:
        verdict = "higher" if c.difference > 0 else "lower"
    return (
        f"{c.cell}: {verdict} ({c.difference:+.2f} ± {c.margin:.2f} points against {baseline}, "
        f"{c.seeds} seeds, p = {c.p:.3g}, Holm {c.p_holm:.3g})."
    )


def power_note(comparisons: Sequence[Comparison]) -> str:
    """What differences a sweep like this one could have missed."""
    margins = [c.margin for c in comparisons if c.seeds > 1]
    if not margins:
        return "With one seed there is no telling a difference from noise."
    n = min(c.seeds for c in comparisons if c.seeds > 1)
    return (
        f"Paired over seeds, Student's t with {n - 1} degree(s) of freedom, margins at 95 % a "
        f"comparison, Holm's correction for {len(comparisons)}. The margins are "
        f"{min(margins):.2f} to {max(margins):.2f} points: a smaller difference could not have "
        "been seen, and where none is shown none is ruled out."
    )
