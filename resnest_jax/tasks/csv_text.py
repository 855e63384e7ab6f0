"""Tables as CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any


def csv_text(rows: Sequence[dict[str, Any]], empty: Sequence[str] = ("file",)) -> str:
    """Return rows of equal keys as CSV with a header; ``empty`` is the header of no rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else empty, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
