"""A run's settings and final scores for the table of runs of its loggers (TensorBoard: HPARAMS)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import summary

from midigenre.evaluation.settings import settings_of
from midigenre.tasks.base import Task
from midigenre.tasks.loggers import FINAL, TensorBoardLogger, final_tag

COSTS = ("parameters", "fit_seconds", "train_tokens")


def tags(task: type[Task]) -> tuple[str, ...]:
    """Names of a task's final scores and of what the run has cost, the same in every run."""
    return tuple(f"{FINAL}{name}" for name in (*task.final, *COSTS))


_DATE = re.compile(r"\d{4}-(?=\d\d-\d\d_)")  # the year of %Y-%m-%d_%H-%M-%S

_KEY = re.compile(r"(?<=[-,])[^,=]+=")  # in 0-seed=1,tokenizer=remi

_SHOWN = ("corpus", "model", "optim.lr", "seed", "tokenizer")

# Details of the songs and the vocabulary, which the names of tokenizer and corpus stand for, and
# what is the same in all runs: a table with all of them cannot be read.
_LEFT_OUT = ("tokenizer.", "callbacks.", "split.", "labels.", "corpus.root")


def start_hparams(
    trainer: L.Trainer, task: type[Task], config: Mapping[str, Any], swept: Mapping[str, str]
) -> None:
    """Logs the settings: a run shows its row from its first step on, though without scores.

    A run that goes on writes the same once more, which TensorBoard shows as one row.

    Args:
        trainer: Its loggers get them.
        task: Says which scores there will be.
        config: The run's resolved config as plain data.
        swept: What a sweep tries, as the command line has it: HPARAMS has these settings alone as
            columns. Of a run that stands alone it offers all and shows the main five.
    """
    settings = _settings(config)
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if not isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(settings)
            continue
        # A group such as `augment` stands for settings of several names; a seed is a name, which
        # would be 1.0000 as a number.
        shown = {**swept, **settings, "seed": str(settings["seed"])}
        experiment, start, _ = summary.hparams(  # type: ignore[no-untyped-call]
            shown, dict.fromkeys(map(final_tag, tags(task)))
        )
        with _plugin_data(experiment) as data:
            columns = [
                info for info in data.experiment.hparam_infos if not swept or info.name in swept
            ]
            for info in columns:
                info.differs = info.name in (swept or _SHOWN)
            del data.experiment.hparam_infos[:]
            data.experiment.hparam_infos.extend(columns)
            for metric in data.experiment.metric_infos:
                # Words, between which the head of a narrow column is broken.
                metric.display_name = metric.name.tag.removeprefix(final_tag("")).replace("_", " ")
        with _plugin_data(start) as data:
            data.session_start_info.group_name = _title(Path(trainer.default_root_dir))
        for part in (experiment, start):
            logger.experiment.file_writer.add_summary(part)
        logger.save()


@contextmanager
def _plugin_data(part: Any) -> Iterator[Any]:
    """What the HPARAMS plugin reads of a summary, to be changed: PyTorch does not set all of it."""
    plugin = part.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    yield data
    plugin.content = data.SerializeToString()


def _title(folder: Path) -> str:
    """Name of a run's row, what tells runs apart first: the column shows some 15 letters.

    A job of a sweep has its number and what it tries, whose names are columns. Runs of one title
    would share a row, so name and date of ``runs/<name>/<when>/<job>`` follow.
    """
    parts = folder.resolve().parts
    dated = max((i for i, part in enumerate(parts) if _DATE.match(part)), default=len(parts) - 1)
    below = (_KEY.sub("", part) for part in parts[:dated:-1])
    return " ".join((*below, parts[dated - 1], _DATE.sub("", parts[dated])))


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
    found = {f"{FINAL}{name}": value for name, value in final.items()}
    found |= {f"{FINAL}{name}": float(cost[name]) for name in COSTS}
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
