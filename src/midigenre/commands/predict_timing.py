"""Where the time of ``predict`` goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.table import Table

from midigenre.wording import plural

STAGES = {
    "load": "open the run, start the reader",
    "file": "read the bytes",
    "parse": "parse MIDI",
    "clean": "quantise",
    "encode": "encode",
    "guard": "to the reader's process and back",
    "cut": "cut and batch phrases",
    "model": "model",
    "songs": "from phrases to songs",
    "answer": "write answers",
    "explain": "explain",
    "figures": "draw figures",
    "rest": "the rest",
}
"""Name of each stage, and what it is; in order."""

ONCE = ("load",)
"""Stages that do not grow with the number of files."""


class Stopwatch:
    """Adds up the wall time of stages.

    Attributes:
        tokens: Steps that the model has seen.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self.tokens = 0

    @contextmanager
    def __call__(self, stage: str, within: str | None = None) -> Iterator[None]:
        """Times a block.

        Args:
            stage: One of :data:`STAGES`.
            within: The stage that is being timed around it, which does not count this block.
        """
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self._seconds[stage] += seconds
            if within is not None:
                self._seconds[within] -= seconds

    def add(self, stage: str, seconds: float) -> None:
        """Adds time that was taken elsewhere."""
        self._seconds[stage] += seconds

    def seconds(self) -> dict[str, float]:
        """Of each stage so far, ``rest`` included."""
        total = time.perf_counter() - self._began
        known = sum(v for k, v in self._seconds.items() if k != "rest")
        return self._seconds | {"rest": max(0.0, total - known)}

    def table(self, n_files: int) -> Table:
        """As a table for people.

        Args:
            n_files: Files that were read.
        """
        seconds = self.seconds()
        table = Table(title=plural(n_files, "file"), title_justify="left")
        table.add_column("stage")
        for heading in ("seconds", "ms a file"):
            table.add_column(heading, justify="right")
        for stage, about in STAGES.items():
            if seconds[stage] or stage == "rest":
                each = "" if stage in ONCE else f"{1e3 * seconds[stage] / max(1, n_files):,.2f}"
                table.add_row(about, f"{seconds[stage]:,.3f}", each)
        others = sum(v for k, v in seconds.items() if k not in (*ONCE, "model"))
        table.add_section()
        each = f"{1e3 * others / max(1, n_files):,.2f}"
        table.add_row("all but the model", f"{others:,.3f}", each)
        rate = self.tokens / seconds["model"] if seconds["model"] > 0 else 0.0
        table.add_row("model, tokens", f"{self.tokens:,}", "")
        table.add_row("model, tokens a second", f"{rate:,.0f}", "")
        return table
