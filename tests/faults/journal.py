"""A journal of JSON lines, each one `write()`: whoever wrote it may be killed, what it wrote stays."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Journal:
    """Appends entries to a file. No buffer of our own, so that a kill loses no line that was written."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, **entry: object) -> None:
        os.write(self._descriptor, json.dumps(entry).encode() + b"\n")


def read(path: Path) -> Iterator[Entry]:
    """Yield the entries of a journal; a line that a kill tore is not there."""
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield json.loads(line)
