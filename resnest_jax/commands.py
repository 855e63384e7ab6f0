"""What the commands share: how they start, and how they say what was wrong."""

import sys
from collections.abc import Callable
from functools import partial

from absl import app, flags, logging

from resnest_jax.errors import DivergenceError, InputError


def run(main: Callable[[list[str]], int | None], *, arguments: bool = False) -> None:
    """Run a command to its exit code; bad input becomes one line on stderr and exit code 1.

    ``arguments``: whether it takes any besides its options.
    """
    try:
        app.run(main, flags_parser=partial(_parse, arguments=arguments))
    except (InputError, DivergenceError) as error:
        fail(error)


def fail(error: object) -> None:
    """Print one line and leave."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    sys.exit(1)


def _parse(argv: list[str], arguments: bool) -> list[str]:
    """Absl's parser, whose complaints about config files and overrides are made one line."""
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        fail(error)
    if not flags.FLAGS["verbosity"].present:
        # Orbax tells of every file that it writes; it and TFDS warn of what is normal.
        logging.set_verbosity(logging.ERROR)
    if len(rest) > 1 and not arguments:
        fail(f"unexpected argument {rest[1]!r}; options are written --name=value")
    return rest
