"""Which differences between cells are more than noise: paired over seeds, Bonferroni's correction.

With three seeds a paired t-test of two cells has two degrees of freedom and sees next to nothing.
So the noise is estimated from all cells together: the residuals of a layout of cells by seeds,
each of which has its own mean (a randomised block design). This takes the noise to be alike in all
cells; of two cells alone it is the paired t-test.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.05


class Noise(NamedTuple):
    """Standard deviation of a run's accuracy besides cell and seed, and its degrees of freedom."""

    sd: float
    degrees: int


class Comparison(NamedTuple):
    """A cell against the baseline, in percent points, over the seeds that both have.

    Attributes:
      cell: the name.
      seeds: how many pairs.
      difference: mean of cell - baseline.
      margin: half the width of its confidence interval (Student's t): 95 % that all comparisons
        of the sweep lie within theirs.
      p: two-sided, corrected for the number of comparisons.
      p_pair: of the two cells' paired t-test alone, uncorrected.
    """

    cell: str
    seeds: int
    difference: float
    margin: float
    p: float
    p_pair: float

    @property
    def shown(self) -> bool:
        """Whether a difference is shown."""
        return self.p < LEVEL


def compare(results: dict[str, dict[int, float]], baseline: str) -> list[Comparison]:
    """Every other cell against the baseline.

    Args:
      results: accuracy in percent by cell and seed. Cells that lack seeds of the baseline are
        compared over those that they have, by the noise of these pairs alone.

    Returns:
      One comparison a cell that shares a seed with the baseline, in the order of ``results``.
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
    """What neither the cell nor the seed explains, over cells that have all of the seeds."""
    table = np.array([[by_seed[seed] for seed in seeds] for by_seed in results.values()])
    residuals = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
    variance = np.sum(residuals**2) / degrees if degrees else math.inf
    return Noise(float(np.sqrt(variance)), degrees)


def block_test(
    differences: Sequence[float], noise: Noise, comparisons: int = 1
) -> tuple[float, float]:
    """Half the 95 % interval of the mean difference, and the two-sided p of its being zero.

    Both are widened for a number of comparisons, by Bonferroni's inequality, so that the chance of
    even one false finding stays at the level. One pair says nothing: (infinity, 1). Without any
    noise Student's test would be certain, which a coarse accuracy and few seeds bring about by
    chance; the p is then that of a sign-flip test, 2 / 2**n.
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
    """The comparison as a sentence."""
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
    """What differences a sweep like this one could have missed; empty with one cell."""
    comparisons = compare(results, baseline)
    margins = [c.margin for c in comparisons if c.seeds > 1]
    if not comparisons:
        return ""
    if not margins:
        return "With one seed there is no telling a difference from noise."
    seeds = sorted(results[baseline])
    complete = {cell: by for cell, by in results.items() if set(by) >= set(seeds)}
    estimate = noise(complete, seeds)
    return (
        f"Paired over seeds; the noise of a run besides cell and seed, {estimate.sd:.2f} points "
        f"with {estimate.degrees} degrees of freedom, is taken to be alike in all cells. Margins "
        f"and p are those of {len(comparisons)} comparisons together (95 %, Bonferroni). A "
        f"difference smaller than {max(margins):.2f} points need not have been seen: where none is "
        "shown, none is ruled out. Seeds change the start and the order of training, not the "
        "images held out: how another set of these would decide is not in the margins."
    )
