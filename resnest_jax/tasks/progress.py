"""What the commands that evaluate say while they work, on stderr; stdout has the figures."""

import sys
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from resnest_jax.data.batches import EvalBatches
from resnest_jax.data.loader import HostBatches
from resnest_jax.training.distributed import is_main


def image_bar(total: int) -> Any:
    """Return a progress bar of images, hidden if stderr is not a terminal."""
    return tqdm(total=total, unit=" images", leave=False, disable=None if is_main() else True)


def tell(*lines: str) -> None:
    """Print lines in the main process."""
    if is_main():
        print(*lines, sep="\n", file=sys.stderr, flush=True)


class Shown(NamedTuple):
    """Batches whose progress is shown."""

    batches: EvalBatches

    @property
    def num_eval(self) -> int:
        """Number of images."""
        return self.batches.num_eval

    def eval(self, workers: int | None = None) -> HostBatches:
        """Yield every evaluation image once."""
        with image_bar(self.num_eval) as bar:
            for batch in self.batches.eval(workers):
                yield batch
                bar.update(int(batch["valid"].sum()) * jax.process_count())
