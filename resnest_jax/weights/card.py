"""What weights know besides their numbers: class names, and the test images they are for.

It is kept as JSON: in ``classes.json`` of a run or of a directory of weights, and in the metadata
of a .safetensors file. A run keeps its class names only, since its config has the rest.
"""

import json
from collections.abc import Sequence
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
      image_size: side of the test images.
      crop: their rule, see ``data.crops.test_crop``.
    """

    class_names: tuple[str, ...] | None = None
    image_size: int | None = None
    crop: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the known facts, for JSON."""
        facts = {name: value for name, value in self._asdict().items() if value is not None}
        return facts | ({"class_names": list(self.class_names)} if self.class_names else {})


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
        return _parse(_safetensors_metadata(source).get(METADATA, "{}"), source)
    return Card()


def write_card(folder: Path, card: Card) -> None:
    """Write the card of a run or of a directory of weights, if anything is known.

    Raises:
      OSError: if it cannot be written.
    """
    if facts := card.to_dict():
        write_json(folder / FILE, facts)


def check_class_names(folder: Path, class_names: Sequence[str]) -> None:
    """Refuse a run whose data set has other classes than those that it was trained on.

    Raises:
      InputError: if it has, in number, name or order.
    """
    stored = read_card(folder).class_names
    if stored is None or stored == tuple(class_names):
        return
    missing = [name for name in stored if name not in class_names]
    new = [name for name in class_names if name not in stored]
    changes = [f"{', '.join(missing[:5])} missing"] if missing else []
    changes += [f"{', '.join(new[:5])} new"] if new else []
    raise InputError(
        f"dataset: its {len(class_names)} classes are not the {len(stored)} of the run in {folder} "
        f"({'; '.join(changes) or 'another order'}), so its labels would mean other classes; give "
        f"the data set as it was, or use another workdir; where only a name is new, change it in "
        f"{folder / FILE}"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _safetensors_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in the header; empty if the file is not one, which its reader says."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if length < path.stat().st_size else b"{}"
        return dict(json.loads(header).get("__metadata__", {}))
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _parse(text: str, path: Path) -> Card:
    try:
        facts = json.loads(text)
        card = Card(*(facts.get(field) for field in Card._fields))
    except (ValueError, AttributeError):
        card = Card(class_names=())
    names = card.class_names
    named = names is None or (isinstance(names, list) and all(type(name) is str for name in names))
    if not (
        named and isinstance(card.image_size, int | None) and isinstance(card.crop, str | None)
    ):
        raise InputError(
            f"{path} is damaged: it must hold class_names, a list of names; restore or delete it"
        )
    return card if names is None else card._replace(class_names=tuple(names))
