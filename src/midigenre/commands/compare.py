"""``midigenre compare``: runs side by side, as Markdown and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig
from rich.markup import escape

from midigenre.build import plain
from midigenre.commands.console import console
from midigenre.errors import UserError
from midigenre.evaluation.compare import compare, find_runs, to_markdown, to_records
from midigenre.evaluation.metrics import METRICS
from midigenre.evaluation.predictions import LEVELS, PIECE
from midigenre.files import write_csv
from midigenre.run import settings_of


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Prints the table of the runs below some folders; unfinished ones are named on stderr.

    Raises:
        UserError: No folder, no finished run in them, or no such label, level, metric, column or
            ``versus``.
    """
    if not paths:
        raise UserError("compare needs runs: midigenre compare -- RUN_OR_FOLDER ...")
    if cfg.level not in (None, *LEVELS, PIECE):
        raise UserError(f"level={cfg.level}; choose {', '.join((*LEVELS, PIECE))}")
    if cfg.metric not in METRICS:
        raise UserError(f"metric={cfg.metric}; choose {', '.join(METRICS)}")
    versus = None if cfg.versus is None else Path(str(cfg.versus))
    runs, unfinished = find_runs([*paths, *([] if versus is None else [versus])])
    for other in unfinished:
        console.print(f"[yellow]left out:[/] {escape(f'{other.folder}: {other.reason}')}",
                      highlight=False, soft_wrap=True)  # fmt: skip
    if not runs:
        finished = any(one.finished for one in unfinished)
        what = "is a classifier that was tested" if finished else "has finished"
        raise UserError(f"{paths[0]}: none of the {len(unfinished)} runs {what}")
    comparison = compare(
        runs,
        None if cfg.label is None else [cfg.label],
        LEVELS if cfg.level is None else [cfg.level],
        cfg.metric,
        shipped,
        versus,
    ).sorted_by(cfg.sort)
    for note in comparison.notes:
        console.print(f"[yellow]{escape(note)}[/]", highlight=False, soft_wrap=True)
    print(to_markdown(comparison), end="")
    if cfg.csv is not None:
        write_csv(Path(cfg.csv), *to_records(comparison))


def shipped(group: str, choice: str) -> Mapping[str, Any]:
    """The settings of ``group=choice`` as the config tree has them; empty if it is not there.

    Hydra must be initialised with the config tree.
    """
    try:
        config = plain(compose("train", overrides=[f"{group}={choice}", "name=any"]))
    except HydraException:
        return {}
    return {k: v for k, v in settings_of(config).items() if k.partition(".")[0] == group}
