"""Builds the page of a listening test: one file that needs no server and no network.

    python experiments/10_listening/build.py --model transformer=RUN/samples/A \\
        --model lstm=RUN2/samples/B --real CSV --out listening.html --key key.json

``--model NAME=FOLDER`` is a folder of ``midigenre generate`` (with ``samples.json``); NAME may be
given several times, for several genres. ``--real`` is a table of real music with the columns
``path``, ``genre`` and, if known, ``emotion``: an excerpt of ``--bars`` bars from the middle of
each file. All pieces are rendered by the same synthesizer to equal peaks, cut to ``--seconds``, and
shown without a name, in another order for each listener. What each of them is stands in ``--key``,
which ``fold.py`` reads and which is not handed out.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from symusic.core import ScoreTick

from midigenre.commands.console import progress_bars
from midigenre.errors import RejectedSongError
from midigenre.files import read_csv, read_json, write_bytes, write_json
from midigenre.generation.audio import render, write_audio
from midigenre.midi.clean import clean
from midigenre.midi.read import read_score
from midigenre.midi.song import Grid

REAL = "real music"
"""Name of the real pieces in the key and in the results."""

LABELS = ("genre", "emotion")
FADE_SECONDS = 1.5


@dataclass(frozen=True)
class Piece:
    """A piece of the test.

    Attributes:
        model: What made it; :data:`REAL` for real music.
        labels: Genre and emotion that it was asked to have, or has; without those not known.
        source: Its file.
        score: Its notes.
    """

    model: str
    labels: dict[str, str]
    source: str
    score: ScoreTick


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--real", type=Path, metavar="CSV")
    parser.add_argument("--out", type=Path, default=Path("listening.html"))
    parser.add_argument("--key", type=Path, default=Path("key.json"))
    parser.add_argument("--bars", type=int, default=16, help="of a real excerpt")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each piece, at most")
    parser.add_argument("--title", default="Listening test")
    args = parser.parse_args()
    for path in (args.key, args.out):
        if path.exists():
            parser.error(f"{path} is there: answers to its page need that key; give other names")
    pieces = []
    for given in args.model:
        name, equals, folder = given.partition("=")
        if not equals or not (Path(folder) / "samples.json").is_file():
            parser.error(f"--model {given}: write NAME=FOLDER, a folder of `midigenre generate`")
        pieces += generated(name, Path(folder))
    if args.real is not None:
        try:
            pieces += real(args.real, args.bars)
        except (OSError, KeyError, RejectedSongError) as error:
            why = f"{error.filename} is not there" if isinstance(error, OSError) else repr(error)
            parser.error(f"--real {args.real}: {why}; it needs the columns path and genre")
    if not pieces:
        parser.error("there is no piece: give --model NAME=FOLDER, and --real CSV for real music")
    build(pieces, args.out, args.key, args.seconds, args.title)
    print(args.out)


def generated(model: str, folder: Path) -> Iterator[Piece]:
    """The pieces of a folder of ``midigenre generate`` that have a note."""
    about = read_json(folder / "samples.json")
    labels = {k: str(v) for k, v in about["conditions"].items() if k in LABELS and v is not None}
    for piece in about["pieces"]:
        path = folder / piece["midi"]
        score = read_score(path.read_bytes())
        if score.note_num():
            yield Piece(model, labels, str(path), score)


def real(table: Path, bars: int) -> Iterator[Piece]:
    """Excerpts from the middle of the files of a table, whose paths are relative to it."""
    for row in read_csv(table):
        path = table.parent / row["path"]
        song = clean(read_score(path.read_bytes()), Grid())
        first = max(0, (song.n_bars - bars) // 2)
        excerpt = song.bars(first, min(first + bars, song.n_bars))
        if len(excerpt.notes):
            labels = {label: row[label] for label in LABELS if row.get(label)}
            yield Piece(REAL, labels, str(path), excerpt.to_score())


def build(pieces: list[Piece], out: Path, key: Path, seconds: float, title: str) -> None:
    """Writes the page and its key.

    A piece's id says nothing of what it is: it is drawn anew each time.
    """
    test = secrets.token_hex(6)
    ids = [secrets.token_hex(6) for _ in pieces]
    shown: list[dict[str, Any]] = []
    with progress_bars() as progress:
        for name, piece in zip(ids, pieces, strict=True):
            shown.append({"id": name, "audio": _mp3(piece.score, seconds), **piece.labels})
            progress("rendering", len(shown), len(pieces))
    shown.sort(key=lambda piece: piece["id"])  # not in the order of the models
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    html = environment.get_template("page.html").render(title=title, test=test, pieces=shown)
    write_bytes(out, html.encode(errors="backslashreplace"))
    about = {
        name: {"model": piece.model, "source": piece.source, **piece.labels}
        for name, piece in zip(ids, pieces, strict=True)
    }
    page = hashlib.sha256(html.encode(errors="backslashreplace")).hexdigest()
    write_json(key, {"test": test, "title": title, "page_sha256": page, "pieces": about})


def _mp3(score: ScoreTick, seconds: float) -> str:
    """The sound as a data URL, faded out where it is cut."""
    audio = render(score)
    samples = audio.samples[: int(seconds * audio.rate)]
    if len(samples) < len(audio.samples):
        n = min(len(samples), int(FADE_SECONDS * audio.rate))
        samples = samples.copy()
        samples[len(samples) - n :] *= np.linspace(1, 0, n)[:, None]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "piece.mp3"
        write_audio(path, samples, audio.rate)
        return "data:audio/mpeg;base64," + base64.b64encode(path.read_bytes()).decode()


if __name__ == "__main__":
    main()
