"""Early stopping."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class Patience:
    """Counts the evaluations in a row without a better value of the headline metric.

    Attributes:
      limit: evaluations to wait for a better value; 0: for ever.
      best: the best value so far; None before the first evaluation.
      waited: evaluations since the first one with that value.
    """

    limit: int
    best: float | None = None
    waited: int = 0

    def add(self, value: float) -> None:
        """Add an evaluation; higher is better."""
        if self.best is None or value > self.best:
            self.best, self.waited = value, 0
        else:
            self.waited += 1

    @property
    def over(self) -> bool:
        return 0 < self.limit <= self.waited

    def snapshot(self) -> dict[str, Any]:
        """Return the count, for a run that resumes here: ``Patience(limit, **snapshot)``."""
        return {"best": self.best, "waited": self.waited}
