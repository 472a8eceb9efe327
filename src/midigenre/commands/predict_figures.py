"""Writes the figures of ``predict explain=true``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from midigenre.data.prepare import safe_name
from midigenre.midi.song import Song
from midigenre.tasks.attribution import Attribution


class FigureFolder:
    """One PNG a file, named like it; of files with one name the later ones get a number.

    Args:
        folder: Where to; it is made when needed.
        classes: Class names of each label.
    """

    def __init__(self, folder: Path, classes: Mapping[str, Sequence[str]]) -> None:
        self._folder, self._classes = folder, classes
        self._taken: set[str] = set()

    def write(self, path: Path, song: Song, attributions: Mapping[str, Attribution]) -> Path:
        """Draws a file's explanation; the path of the figure.

        Args:
            path: The MIDI file.
            song: Its music.
            attributions: What decided each label.
        """
        # Matplotlib takes half a second to import.
        from midigenre.evaluation.attribution_figures import LabelAttribution, attribution_figure
        from midigenre.evaluation.figures import save

        labels = [
            LabelAttribution(
                label, self._classes[label][found.target], found.log_odds, found.bars,
                found.programs,
            )
            for label, found in attributions.items()
        ]  # fmt: skip
        figure = attribution_figure(
            song.notes, song.bar_ticks, song.tpq, path.name, labels, song.file_seconds
        )
        return save(figure, self._folder / f"{self._name(path)}.png")

    def _name(self, path: Path) -> str:
        stem = safe_name(path.stem)
        name, number = stem, 1
        # Some file systems do not tell cases apart.
        while name.casefold() in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name.casefold())
        return name
