"""The page of a judgement: players, piano rolls and tables in one HTML file."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from midigenre.commands.pieces import write_piece
from midigenre.evaluation.figures import confusion_figure, save
from midigenre.evaluation.music.figures import overlap_figure, repetition_figure, similarity_figure
from midigenre.evaluation.music.structure import self_similarity
from midigenre.files import write_bytes
from midigenre.midi.song import Song
from midigenre.wording import plural

SOUND = {"mp3": "audio/mpeg", "wav": "audio/wav"}


@dataclass(frozen=True)
class Example:
    """A piece that the page plays.

    Attributes:
        kind: ``generated`` or ``real``.
        name: Name of its files.
        asked: Class of each label that it was told or that it has.
        heard: For each label the class that the judge heard and its probability.
        song: The music.
    """

    kind: str
    name: str
    asked: Mapping[str, str]
    heard: Mapping[str, tuple[str, float]]
    song: Song

    @property
    def title(self) -> str:
        """What it is, in words."""
        return f"{self.kind}: {', '.join(self.asked.values()) or 'no label'}"


def write_page(
    folder: Path,
    report: Mapping[str, Any],
    examples: Sequence[Example],
    audio: str | None,
    soundfont: str | None,
    progress: Callable[[str, int, int], None],
) -> Path:
    """Writes ``judgement.html``, and figures and examples as files beside it.

    The page holds pictures and sound itself, so that it can be sent as one file.

    Args:
        folder: The judgement's folder.
        report: Content of ``judgement.json``.
        examples: What it plays, in order.
        audio: Format of the sound, None for none.
        soundfont: An SF2 file; None for the one that is installed.
        progress: Told about the examples.

    Returns:
        The page.
    """
    figures = {
        name: _picture(save(figure, folder / "figures" / f"{name}.png"))
        for name, figure in _figures(report).items()
    }
    shown = []
    for i, example in enumerate(examples):
        about = write_piece(
            folder / "examples", example.name, example.song.to_score(), example.song,
            example.title, audio, soundfont,
        )  # fmt: skip
        alike = similarity_figure(self_similarity(example.song), "Bars that are alike")
        path = save(alike, folder / "examples" / f"{example.name}-similarity.png")
        file = about.get("audio")
        shown.append(
            {
                "example": example,
                "about": about,
                "roll": _picture(folder / "examples" / about["piano_roll"]),
                "similarity": _picture(path),
                "sound": file and _data(folder / "examples" / file, SOUND[str(audio)]),
            }
        )
        progress("page", i + 1, len(examples))
    # Names come from files and labels of anybody's corpus: everything is escaped.
    environment = Environment(
        loader=PackageLoader("midigenre.commands", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["number"] = _number
    environment.filters["plural"] = plural
    html = environment.get_template("judgement.html").render(
        report=report, figures=figures, shown=shown
    )
    path = folder / "judgement.html"
    write_bytes(path, html.encode(errors="backslashreplace"))  # names need not be UTF-8
    return path


def _figures(report: Mapping[str, Any]) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for label, scores in report["control"].items():
        names = list(scores["generated"]["recall"])
        for what in ("generated", "real"):
            matrix = np.array(scores[what]["confusion"])[:, : len(names)]  # without the silent
            title = f"{label}: what the judge hears in {what} music"
            found[f"{label}-{what}"] = confusion_figure(matrix, names, title)
    if "reason" not in report["distance"]:
        found["overlap"] = overlap_figure(report["distance"], "Overlap with real music")
    found["repetition"] = repetition_figure(
        report["structure"]["generated"]["repetition"],
        report["structure"]["real"]["repetition"],
        "What comes back after so many bars",
    )
    return found


def _picture(path: Path) -> str:
    return _data(path, "image/png")


def _data(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
