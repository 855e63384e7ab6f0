"""Files that are written whole or not at all."""

import os
from pathlib import Path


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file beside the path, then put it there; OSError leaves what was there before."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
