"""``midigenre embed``: vectors of songs and phrases as Parquet, and for TensorBoard's projector."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from omegaconf import DictConfig
from pyarrow.parquet import ParquetWriter

from midigenre.commands.console import progress_bars
from midigenre.commands.predict import given_files, limits_of, note
from midigenre.data.sandbox import FileReader
from midigenre.errors import UserError
from midigenre.files import whole, write_bytes
from midigenre.inference.classifier import Answer, Classifier, Rejected, none_readable
from midigenre.trained import device_of, load_run
from midigenre.wording import NAMED, plural

Cells: TypeAlias = dict[str, Any]
Vector: TypeAlias = NDArray[np.float32]
Classes: TypeAlias = Mapping[str, Sequence[str]]

_ROWS_AT_ONCE = 4096  # readers of Parquet like large groups of rows


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Writes the table and the projector's folder, and prints the path of the table on stdout.

    Raises:
        UserError: No path is given, no file could be read, or a setting is wrong.
    """
    files = given_files(paths, "embed run=RUN out=vectors.parquet")
    limits = limits_of(cfg)
    device_of(cfg.device)
    if cfg.out is None:
        raise UserError("out= is missing; give a file, for instance out=vectors.parquet")
    out = Path(cfg.out).expanduser()
    if out.is_dir():
        raise UserError(f"out={cfg.out} is a folder; give a file, for instance {out}.parquet")
    beside = out.with_name(f"{out.stem}-projector")
    folders = [Path(path) for path in paths if os.path.isdir(path)]
    rejected: list[Rejected] = []
    n_songs = n_phrases = 0
    with ExitStack() as stack:
        reader = stack.enter_context(FileReader(limits))
        model = Classifier(load_run(cfg.run, cfg.ckpt), reader, device=cfg.device)
        if model.warning is not None:
            note(model.warning)
        reader.wait(model.trained.tokens)
        width: Any = model.trained.classifier.backbone.d_model
        progress = stack.enter_context(progress_bars())
        stack.callback(_remove_if_empty, beside)
        to_table = stack.enter_context(_parquet(out, model.classes, width))
        to_songs = stack.enter_context(_points(beside, ""))
        to_phrases = stack.enter_context(_points(beside, "phrase_"))
        for i, answer in enumerate(model.answers(files)):
            progress("files", i + 1, len(files))
            if isinstance(answer, Rejected):
                rejected.append(answer)
                continue
            song, *phrases = rows_of(answer, folders, model.classes)
            to_songs(*song)
            for row in phrases:
                to_phrases(*row)
            for row in (song, *phrases):
                to_table(*row)
            n_songs, n_phrases = n_songs + 1, n_phrases + len(phrases)
        if not n_songs:
            raise none_readable(rejected)
    write_bytes(beside / "projector_config.pbtxt", _PROJECTOR.encode())
    for one in rejected[:NAMED]:
        note(f"{one.path}: {one.error}", "red")
    if len(rejected) > NAMED:
        note(f"{plural(len(rejected) - NAMED, 'more file')} rejected", "red")
    note(
        f"{out}: {plural(n_songs, 'song')}, {plural(n_phrases, 'phrase')}, vectors of {width}; "
        f"look at them with: tensorboard --logdir {quote(str(beside))}",
        "",
    )
    print(out)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def rows_of(
    answer: Answer, folders: Sequence[Path], classes: Classes
) -> Iterator[tuple[Cells, Vector]]:
    """The row of a song, then those of its phrases, each with its vector.

    A label is known where the first folder below one of ``folders`` has the name of a class, as in
    ``corpus=folder``.
    """
    below = (answer.path.relative_to(f) for f in folders if answer.path.is_relative_to(f))
    tops = {path.parts[0] for path in below if len(path.parts) > 1}
    known = {label: next((n for n in names if n in tops), None) for label, names in classes.items()}
    # A file's name may hold bytes that are not UTF-8.
    path = str(answer.path).encode(errors="surrogateescape").decode(errors="replace")
    bars = [{"first_bar": first, "end_bar": end} for first, end in answer.embedding.bars.tolist()]
    vectors = (answer.embedding.song, *answer.embedding.phrases)
    abouts = (answer.content, *answer.content["phrases"])
    for of_bars, about, vector_D in zip(({}, *bars), abouts, vectors, strict=True):
        row: Cells = {"path": path, **of_bars}
        for label in classes:
            row[label], row[f"{label}_predicted"] = known[label], about[label]
            row[f"{label}_probability"] = max(about["probabilities"][label].values())
        yield row, vector_D


@contextmanager
def _parquet(path: Path, classes: Classes, width: int) -> Iterator[Callable[[Cells, Vector], None]]:
    """Gives a function that adds a row to a table; the table is there at the end, whole."""
    types = {"path": pa.string(), "first_bar": pa.int32(), "end_bar": pa.int32()}
    for label in classes:
        types |= {label: pa.string(), f"{label}_predicted": pa.string()}
        types[f"{label}_probability"] = pa.float32()
    schema = pa.schema([*types.items(), ("vector", pa.list_(pa.float32(), width))])
    rows: list[Cells] = []
    vectors: list[Vector] = []

    def write() -> None:
        columns = [pa.array([row.get(name) for row in rows], of) for name, of in types.items()]
        flat = pa.array(np.concatenate(vectors) if vectors else [], pa.float32())
        columns.append(pa.FixedSizeListArray.from_arrays(flat, width))
        writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        rows.clear()
        vectors.clear()

    def add(row: Cells, vector_D: Vector) -> None:
        rows.append(row)
        vectors.append(vector_D)
        if len(rows) == _ROWS_AT_ONCE:
            write()

    with whole(path) as part, ParquetWriter(str(part), schema) as writer:
        yield add
        write()


_PROJECTOR = "".join(
    f'embeddings {{\n  tensor_name: "{name}"\n  tensor_path: "{prefix}vectors.tsv"\n'
    f'  metadata_path: "{prefix}metadata.tsv"\n}}\n'
    for name, prefix in (("songs", ""), ("phrases", "phrase_"))
)


@contextmanager
def _points(folder: Path, prefix: str) -> Iterator[Callable[[Cells, Vector], None]]:
    """Gives a function that adds a point to what TensorBoard's projector shows."""
    with ExitStack() as stack:
        vectors, metadata = (
            stack.enter_context(
                stack.enter_context(whole(folder / f"{prefix}{name}.tsv")).open(
                    "w", encoding="utf-8"
                )
            )
            for name in ("vectors", "metadata")
        )

        def write(file: Any, cells: Sequence[Any]) -> None:
            # A name may hold a tab or a line break.
            file.write("\t".join(" ".join(str(cell).split()) for cell in cells) + "\n")

        headed = False

        def add(row: Cells, vector_D: Vector) -> None:
            nonlocal headed
            if not headed:
                write(metadata, list(row))
                headed = True
            write(metadata, ["" if cell is None else cell for cell in row.values()])
            write(vectors, [f"{x:.7g}" for x in vector_D.tolist()])

        yield add
