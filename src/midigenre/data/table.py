"""The manifest of a prepared corpus in memory: a row is a dict, the columns lie packed.

A hundred thousand rows as dicts of texts take some 200 MB, as columns a tenth of that.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from midigenre.errors import UserError
from midigenre.files import Location, csv_value

_ROWS = 4096  # rows that are read, or shown, at a time


def remedy(folder: Location) -> str:
    """What to do about shards that are damaged."""
    return (
        f"remove these shards (`midigenre prepare clean={folder.name}`, or delete {folder}) and "
        "run `midigenre prepare` again"
    )


class ManifestTable(Sequence[dict[str, str]]):
    """Rows of a CSV file; texts are kept as bytes, for paths need not be UTF-8.

    Args:
        path: The file.

    Raises:
        UserError: It is not there or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                reader = csv.reader(file, strict=True)
                self.columns = [csv_value(name) for name in next(reader)]
                batches = list(self._batches(reader))
        except (OSError, StopIteration, ValueError, csv.Error) as error:
            problem = error.strerror if isinstance(error, OSError) else None
            problem = problem or str(error) or "it is empty"
            raise UserError(f"{path} is damaged ({problem}); {remedy(path.parent)}") from error
        self._table = pa.table(
            [pa.chunked_array([b[i] for b in batches], pa.binary())
             for i in range(len(self.columns))],
            names=self.columns,
        ).combine_chunks()  # fmt: skip

    def _batches(self, reader: Any) -> Iterator[list[pa.Array]]:
        rows: list[list[str]] = []

        def packed() -> list[pa.Array]:
            return [
                pa.array([_packed(csv_value(row[i])) for row in rows], pa.binary())
                for i in range(len(self.columns))
            ]

        for row in reader:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells in line {reader.line_num}")
            rows.append(row)
            if len(rows) == _ROWS:
                yield packed()
                rows.clear()
        if rows:
            yield packed()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, str]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, str]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, str] | list[dict[str, str]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = self._table.slice(index % len(self), 1)
        return {name: _text(row[name][0].as_py()) for name in self.columns}

    def __iter__(self) -> Iterator[dict[str, str]]:
        for begin in range(0, len(self), _ROWS):
            some = self._table.slice(begin, _ROWS)
            texts = [[_text(t) for t in some[name].to_pylist()] for name in self.columns]
            for row in zip(*texts, strict=True):
                yield dict(zip(self.columns, row, strict=True))

    def column(self, name: str) -> list[str]:
        """One column."""
        return [_text(text) for text in self._table[name].to_pylist()]

    def codes(self, name: str, names: Sequence[str]) -> NDArray[np.int64]:
        """Place of each row's text among ``names``, -1 where it is none of them."""
        options = pa.array([_packed(n) for n in names], pa.binary())
        found = pc.index_in(self._table[name], value_set=options)
        codes: NDArray[np.int64] = found.fill_null(-1).to_numpy().astype(np.int64)
        return codes


def _packed(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(packed: bytes) -> str:
    return packed.decode("utf-8", "surrogateescape")
