"""Flags that several commands have, and the paths that flags name."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

from absl import flags

from resnest_jax import files
from resnest_jax.errors import InputError
from resnest_jax.models.resnest import MIN_SIZE


def define_model(command: flags.FlagValues) -> flags.FlagHolder[str | None]:
    """Define ``--model`` of the commands that read weights."""
    return flags.DEFINE_string(
        "model",
        None,
        "Name of the model; directories and many files of weights hold it.",
        flag_values=command,
    )


def define_backbone(command: flags.FlagValues) -> flags.FlagHolder[str | None]:
    """Define ``--backbone`` of the commands that read models of segmentation and detection."""
    return flags.DEFINE_string(
        "backbone",
        None,
        "Backbone of a file of segmentation or detection; default: the first of the zoo that fits.",
        flag_values=command,
    )


def define_weights(command: flags.FlagValues) -> flags.FlagHolder[str | None]:
    """Define ``--weights`` of the commands that read them."""
    return flags.DEFINE_string(
        "weights",
        None,
        "File of weights, directory of a run or of weights, or published, the default.",
        flag_values=command,
    )


def define_image_size(command: flags.FlagValues) -> flags.FlagHolder[int | None]:
    """Define ``--image_size`` of the commands that classify."""
    return flags.DEFINE_integer(
        "image_size",
        None,
        "Side of the images; default: that of the published test, or of the run.",
        lower_bound=MIN_SIZE,
        flag_values=command,
    )


def define_checkpoint(command: flags.FlagValues) -> flags.FlagHolder[str]:
    """Define ``--checkpoint`` of the commands that read a run."""
    return flags.DEFINE_string(
        "checkpoint", "last", "Checkpoint of a run: last, best or a step.", flag_values=command
    )


def define_tta(
    command: flags.FlagValues,
) -> tuple[flags.FlagHolder[list[str]], flags.FlagHolder[list[str] | None]]:
    """Define ``--tta`` and ``--tta_sizes`` of the commands that classify."""
    views = flags.DEFINE_list(
        "tta",
        [],
        "Views of an image whose probabilities are averaged: flip, five_crop or both.",
        flag_values=command,
    )
    several = flags.DEFINE_list(
        "tta_sizes", None, "Sides of the images to average, such as 224,256.", flag_values=command
    )
    return views, several


def sizes(
    one: flags.FlagHolder[int | None], several: flags.FlagHolder[list[str] | None]
) -> tuple[int, ...] | None:
    """Return the sides that ``--image_size`` or ``--tta_sizes`` gives, or None.

    Raises:
      InputError: if both are given, or a side is not a number.
    """
    if not several.value:
        return None if one.value is None else (one.value,)
    if one.value is not None:
        raise InputError(f"--{several.name} and --{one.name} are both given; leave one out")
    if not all(size.isdecimal() for size in several.value):
        raise InputError(
            f"--{several.name} must be sides such as 224,256; got {','.join(several.value)}"
        )
    return tuple(map(int, several.value))


def height_and_width(flag: flags.FlagHolder[list[str] | None]) -> tuple[int, int] | None:
    """Return the height and width that a flag gives as SIDE or HEIGHT,WIDTH, or None.

    Raises:
      InputError: if it gives something else, or less than the models take.
    """
    if flag.value is None:
        return None
    sides = [int(side) for side in flag.value if side.isdecimal()]
    if len(sides) != len(flag.value) or len(sides) not in (1, 2) or min(sides) < MIN_SIZE:
        raise InputError(
            f"--{flag.name} must be a side of at least {MIN_SIZE} pixels, or height,width; "
            f"got {','.join(flag.value)}"
        )
    return sides[0], sides[-1]


def define_predictions(command: flags.FlagValues) -> flags.FlagHolder[str | None]:
    """Define ``--predictions`` of the commands that classify."""
    return flags.DEFINE_string(
        "predictions",
        None,
        "File to write, .csv or .json: the best classes of every image, with its file name.",
        flag_values=command,
    )


def refuse(run: str, *others: flags.FlagHolder) -> None:
    """Raise InputError if one of the flags is given; ``run``, in words, does not take them."""
    for flag in others:
        if flag.present:
            raise InputError(f"--{flag.name} is not for {run}; leave it out")


def local_path(flag: flags.FlagHolder[str]) -> Path:
    """Return the path that a flag names.

    Raises:
      InputError: if it is empty or an address such as gs://...
    """
    return files.local_path(f"--{flag.name}", flag.value)


def output_path(flag: flags.FlagHolder[str]) -> Path:
    """Return the path of a file to write that a flag names.

    Raises:
      InputError: if it is not local or the file cannot be written.
    """
    path = local_path(flag)
    files.check_output(f"--{flag.name}", path)
    return path


def optional(
    read: Callable[[flags.FlagHolder[str]], Path], flag: flags.FlagHolder[str | None]
) -> Path | None:
    """Return ``read(flag)``, such as ``local_path(flag)``, or None if the flag is not given."""
    return None if flag.value is None else read(cast(flags.FlagHolder[str], flag))
