"""A run's settings and final scores for the table of runs of its loggers (TensorBoard: HPARAMS)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import summary

from midigenre.evaluation.settings import settings_of
from midigenre.tasks.base import Task

COSTS = ("parameters", "fit_seconds", "train_tokens")


def tags(task: type[Task]) -> tuple[str, ...]:
    """Tags of a task's final scores and of what the run has cost, the same in every run."""
    return tuple(f"hparam/{name}" for name in (*task.final, *COSTS))


_SHOWN = ("corpus", "model", "optim.lr", "seed", "tokenizer")

# Details of the songs and the vocabulary, which the names of tokenizer and corpus stand for, and
# what is the same in all runs: a table with all of them cannot be read.
_LEFT_OUT = ("tokenizer.", "callbacks.", "split.", "labels.", "corpus.root")


def start_hparams(
    trainer: L.Trainer, task: type[Task], config: Mapping[str, Any], swept: Sequence[str] = ()
) -> None:
    """Logs the settings: a run shows its row from its first step on, though without scores.

    A run that goes on writes the same once more, which TensorBoard shows as one row.

    Args:
        trainer: Its loggers get them.
        task: Says which scores there will be.
        config: The run's resolved config as plain data.
        swept: Settings that TensorBoard shows as columns unasked: it has room for five.
    """
    settings = _settings(config)
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if not isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(settings)
            continue
        experiment, start, _ = summary.hparams(  # type: ignore[no-untyped-call]
            settings, dict.fromkeys(tags(task))
        )
        shown = _SHOWN if set(swept) <= set(_SHOWN) else swept
        with _plugin_data(experiment) as data:
            for info in data.experiment.hparam_infos:
                info.differs = info.name in shown
        with _plugin_data(start) as data:
            data.session_start_info.group_name = _title(Path(trainer.default_root_dir))
        for part in (experiment, start):
            logger.experiment.file_writer.add_summary(part)
        logger.hparams.update(settings)
        logger.save()


@contextmanager
def _plugin_data(part: Any) -> Iterator[Any]:
    """What the HPARAMS plugin reads of a summary, to be changed: PyTorch does not set all of it."""
    plugin = part.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    yield data
    plugin.content = data.SerializeToString()


def _title(folder: Path) -> str:
    """Name of a run's row, what tells runs apart first: the column is narrow.

    Runs of one title would share a row, so it has all of ``<name>/<when>`` and a sweep's job.
    """
    parts = folder.resolve().parts
    job = parts[-1][:1].isdigit() and "=" in parts[-1]
    return " ".join((parts[-1], *parts[-3:-1]) if job else parts[-2:])


def finish_hparams(
    trainer: L.Trainer,
    task: type[Task],
    final: Mapping[str, float],
    cost: Mapping[str, Any],
) -> None:
    """Logs the final scores under :func:`tags` and marks the run as finished.

    Args:
        trainer: Its loggers get them.
        task: Says which scores there are.
        final: Scores by their short name; one that no label has is missing.
        cost: Content of ``cost.json``.
    """
    found = {f"hparam/{name}": value for name, value in final.items()}
    found |= {f"hparam/{name}": float(cost[name]) for name in COSTS}
    values = {tag: found[tag] for tag in tags(task) if tag in found}
    for logger in trainer.loggers if trainer.is_global_zero else ():
        logger.log_metrics(values, step=trainer.global_step)
        if isinstance(logger, TensorBoardLogger):
            *_, end = summary.hparams({}, {})  # type: ignore[no-untyped-call]
            logger.experiment.file_writer.add_summary(end)
        logger.save()


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as HPARAMS can show them: numbers, flags and text."""
    return {
        key: value if isinstance(value, (bool, int, float, str)) else str(value)
        for key, value in settings_of(config).items()
        if value is not None and not key.startswith(_LEFT_OUT)
    }
