"""Test which differences between cells exceed the noise: paired over seeds, with Bonferroni.

With three seeds a paired t-test of two cells has two degrees of freedom and detects almost nothing.
So the noise is estimated from all cells together: the residuals after fitting a mean per cell and
per seed (a randomised block design). This assumes the same noise in all cells. With only two cells
it is the paired t-test.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.05


class Noise(NamedTuple):
    """Standard deviation of accuracy not due to cell or seed, and its degrees of freedom."""

    sd: float
    degrees: int


class Comparison(NamedTuple):
    """A cell compared with the baseline, in percentage points, over the seeds that both have.

    Attributes:
      cell: the name.
      seeds: number of pairs.
      difference: mean of cell - baseline.
      margin: half the width of its confidence interval (Student's t); with 95 % confidence all
        comparisons of the sweep lie within theirs.
      p: two-sided, corrected for the number of comparisons.
      p_pair: of the paired t-test of the two cells alone, uncorrected.
    """

    cell: str
    seeds: int
    difference: float
    margin: float
    p: float
    p_pair: float

    @property
    def shown(self) -> bool:
        """Return whether a difference is shown."""
        return self.p < LEVEL


def compare(results: dict[str, dict[int, float]], baseline: str) -> list[Comparison]:
    """Compare each other cell with the baseline.

    Args:
      results: accuracy in percent by cell and seed. A cell that lacks seeds of the baseline is
        compared over those that it has, with the noise of these pairs alone.

    Returns:
      One comparison per cell that shares a seed with the baseline, in the order of ``results``.
    """
    reference = results[baseline]
    complete = {cell: by for cell, by in results.items() if set(by) >= set(reference)}
    shared = {
        cell: sorted(set(by_seed) & set(reference))
        for cell, by_seed in results.items()
        if cell != baseline and set(by_seed) & set(reference)
    }
    found = []
    for cell, seeds in shared.items():
        pairs = [results[cell][seed] - reference[seed] for seed in seeds]
        pair = {baseline: reference, cell: results[cell]}
        compared = complete if cell in complete else pair
        margin, p = block_test(pairs, noise(compared, seeds), len(shared))
        _, p_pair = block_test(pairs, noise(pair, seeds))
        found.append(Comparison(cell, len(pairs), float(np.mean(pairs)), margin, p, p_pair))
    return found


def noise(results: dict[str, dict[int, float]], seeds: Sequence[int]) -> Noise:
    """Estimate what neither cell nor seed explains; all cells must have the seeds."""
    table = np.array([[by_seed[seed] for seed in seeds] for by_seed in results.values()])
    residuals = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
    variance = np.sum(residuals**2) / degrees if degrees else math.inf
    return Noise(float(np.sqrt(variance)), degrees)


def block_test(
    differences: Sequence[float], noise: Noise, comparisons: int = 1
) -> tuple[float, float]:
    """Return half the 95 % interval of the mean difference, and the two-sided p that it is zero.

    Both are corrected for the number of comparisons (Bonferroni), so that the chance of even one
    false finding stays at ``LEVEL``. One pair gives (infinity, 1). With no noise at all, Student's
    test would be certain; with a coarse accuracy and few seeds that happens by chance. Then p is
    that of a sign-flip test, 2 / 2**n.
    """
    n, mean = len(differences), float(np.mean(differences))
    if not noise.degrees:
        return math.inf, 1.0
    error = noise.sd * math.sqrt(2 / n)
    if error < 1e-9:
        return 0.0, 1.0 if abs(mean) < 1e-9 else min(1.0, comparisons * 2 / 2**n)
    p = float(2 * stats.t.sf(abs(mean) / error, noise.degrees))
    quantile = float(stats.t.ppf(1 - LEVEL / 2 / comparisons, noise.degrees))
    return quantile * error, min(1.0, comparisons * p)


def statement(comparison: Comparison, baseline: str) -> str:
    """Return the comparison as a sentence."""
    c = comparison
    if c.seeds < 2:
        return f"{c.cell}: {c.difference:+.2f} points against {baseline} with one seed: no test."
    verdict = "no difference shown"
    if c.shown:
        verdict = "higher" if c.difference > 0 else "lower"
    return (
        f"{c.cell}: {verdict} ({c.difference:+.2f} ± {c.margin:.2f} points against {baseline}, "
        f"{c.seeds} seeds, p = {c.p:.3g}; of the pair alone {c.p_pair:.3g})."
    )


def power_note(results: dict[str, dict[int, float]], baseline: str) -> str:
    """Return a note on the differences that this sweep may have missed; empty with one cell."""
    comparisons = compare(results, baseline)
    margins = [c.margin for c in comparisons if c.seeds > 1]
    if not comparisons:
        return ""
    if not margins:
        return "With one seed a difference cannot be separated from noise."
    seeds = sorted(results[baseline])
    complete = {cell: by for cell, by in results.items() if set(by) >= set(seeds)}
    estimate = noise(complete, seeds)
    return (
        f"Paired over seeds. The noise not due to cell or seed is {estimate.sd:.2f} points, with "
        f"{estimate.degrees} degrees of freedom, and is assumed equal in all cells. Margins and p "
        f"are for {len(comparisons)} comparisons together (95 %, Bonferroni). A difference smaller "
        f"than {max(margins):.2f} points may be missed: where none is shown, there may still be "
        "one. Seeds change the initial weights and the order of training, not the held-out images: "
        "the margins do not cover the choice of these."
    )
