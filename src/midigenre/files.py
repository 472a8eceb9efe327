"""Writing files so that a reader, or a run after a crash, sees all of one or nothing."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """A file beside ``path`` that takes its place at the end, or vanishes on an error.

    Yields:
        The path to write to; the folder is made if needed.

    Raises:
        OSError: The folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes."""
    with whole(path) as part:
        part.write_bytes(data)


def write_json(path: Path, data: Any) -> None:
    """Writes plain data as JSON."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    with whole(path) as part:
        # Paths may hold bytes that are no UTF-8; Python stands surrogates in for them.
        part.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")


def read_json(path: Path) -> Any:
    """Content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Writes a table; a row may lack columns, and may have no others."""
    with (
        whole(path) as part,
        part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a table."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
