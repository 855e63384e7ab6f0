"""What weights know besides their numbers: their classes, and the test images they are for.

It is kept as JSON: in ``classes.json`` of a run or of a directory of weights, and in the metadata
of a .safetensors file. A run keeps names and colours only, since its config has the rest.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnest_jax.errors import InputError
from resnest_jax.files import write_json

FILE = "classes.json"
METADATA = "resnest_jax"  # key in a .safetensors file


class Card(NamedTuple):
    """Facts about weights; None where they are not known.

    Attributes:
      class_names: the name of each logit.
      image_size: side of the test images; of segmentation that of the windows.
      crop: rule of the test images, see ``data.crops.test_crop``.
      palette: of segmentation the colour of each class, RGB from 0 to 255.
      base_size, scales: of segmentation, see ``tasks.segmentation.sliding.MultiScale``.
      short_side, long_side: of detection, the short side of the test images, and the most that the
        long one may be.
      view_sides, view_long_side: the same of the views of the multi-scale evaluation.
      flip: of segmentation and detection, whether the multi-scale evaluation mirrors too.
    """

    class_names: tuple[str, ...] | None = None
    image_size: int | None = None
    crop: str | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    base_size: int | None = None
    scales: tuple[float, ...] | None = None
    short_side: int | None = None
    long_side: int | None = None
    view_sides: tuple[int, ...] | None = None
    view_long_side: int | None = None
    flip: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the known facts, for JSON."""
        facts = {name: value for name, value in self._asdict().items() if value is not None}
        return facts | ({"class_names": list(self.class_names)} if self.class_names else {})


def _all(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and all(isinstance(x, kind) for x in value)


# Field -> what it must be, if it is not None.
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "class_names": _all(str),
    "image_size": lambda value: isinstance(value, int),
    "crop": lambda value: isinstance(value, str),
    "palette": lambda value: _all(tuple)(value) and all(_is_color(color) for color in value),
    "base_size": lambda value: isinstance(value, int),
    "scales": _all((int, float)),
    "short_side": lambda value: isinstance(value, int),
    "long_side": lambda value: isinstance(value, int),
    "view_sides": _all(int),
    "view_long_side": lambda value: isinstance(value, int),
    "flip": lambda value: isinstance(value, bool),
}


def read_card(source: Path) -> Card:
    """Read the card of a run, of a directory of weights or of a file; empty if there is none.

    Raises:
      InputError: if it is damaged.
    """
    if source.is_dir():
        path = source / FILE
        text = _read_text(path) if path.is_file() else "{}"
        return _parse(text, path)
    if source.suffix.lower() == ".safetensors":
        return _parse(_safetensors_facts(source), source)
    return Card()


def read_model(source: Path) -> dict[str, Any]:
    """Return ``name`` and fields of the model that a .safetensors file names; empty if none.

    Raises:
      InputError: if it is damaged.
    """
    try:
        model = json.loads(_safetensors_facts(source)).get("model")
        known = model is None or isinstance(model["name"], str)
    except (ValueError, AttributeError, KeyError, TypeError):
        known, model = False, None
    if not known:
        raise InputError(f"{source} is damaged: its metadata describe no model")
    return model or {}


def write_card(folder: Path, card: Card) -> None:
    """Write the card of a run or of a directory of weights, if anything is known.

    Raises:
      OSError: if it cannot be written.
    """
    if facts := card.to_dict():
        write_json(folder / FILE, facts)


def check_class_names(source: Path, class_names: Sequence[str], card: Card | None = None) -> None:
    """Refuse a data set that has other classes than those that a run or weights know.

    Args:
      card: what is known of the source; None: it is read.

    Raises:
      InputError: if it has, in number, name or order.
    """
    stored = (card or read_card(source)).class_names
    if stored is None or stored == tuple(class_names):
        return
    missing = [name for name in stored if name not in class_names]
    new = [name for name in class_names if name not in stored]
    changes = [f"{', '.join(missing[:5])} missing"] if missing else []
    changes += [f"{', '.join(new[:5])} new"] if new else []
    whose, remedy = f"of {source}", "give a data set of these classes"
    if source.is_dir():
        whose = f"of the run in {source}"
        remedy = (
            "give the data set as it was, or use another workdir; where only a name is new, change "
            f"it in {source / FILE}"
        )
    raise InputError(
        f"dataset: its {len(class_names)} classes are not the {len(stored)} {whose} "
        f"({'; '.join(changes) or 'another order'}), so its labels would mean other classes; "
        f"{remedy}"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def safetensors_metadata(card: Card, model: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a .safetensors file: the card, and the model if it is known."""
    facts = card.to_dict() | ({"model": dict(model)} if model else {})
    return {METADATA: json.dumps(facts)} if facts else {}


def _safetensors_facts(path: Path) -> str:
    """Return JSON from the header; empty facts if the file is not one, which its reader says."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if length < path.stat().st_size else b"{}"
        return dict(json.loads(header).get("__metadata__", {})).get(METADATA, "{}")
    except (OSError, ValueError, AttributeError, TypeError):
        return "{}"


def _parse(text: str, path: Path) -> Card:
    card = Card()
    try:
        facts = json.loads(text)
        card = Card(**{field: _tuples(facts.get(field)) for field in Card._fields})
        known = {name: value for name, value in card._asdict().items() if value is not None}
        damaged = not all(_CHECKS[name](value) for name, value in known.items())
    except (ValueError, AttributeError):
        damaged = True
    if damaged:
        raise InputError(
            f"{path} is damaged: it must hold class_names, a list of names; restore or delete it"
        )
    return card


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _is_color(value: tuple[Any, ...]) -> bool:
    return len(value) == 3 and all(isinstance(x, int) and 0 <= x <= 255 for x in value)
