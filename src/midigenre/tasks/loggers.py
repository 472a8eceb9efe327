"""Logs of a run: charts in the order in which runs are compared; a CSV that is kept on resume.

And a run's settings and final scores for the table of runs (TensorBoard: HPARAMS).
"""

from __future__ import annotations

import csv
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import lightning.pytorch.loggers.csv_logs as lightning_csv
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import summary

from midigenre.evaluation.compare import COSTS
from midigenre.files import read_csv, write_csv
from midigenre.run import settings_of
from midigenre.tasks.base import Task

FINAL = "hparam/"
"""Prefix of the scores that a run has once, at its end."""

COMPARED = ("val/loss", "val/macro_f1", "val/nats_per_note")
"""The scores by which runs are compared while they train."""

_DATE = re.compile(r"\d{4}-(?=\d\d-\d\d_)")  # the year of %Y-%m-%d_%H-%M-%S

_KEY = re.compile(r"(?<=[-,])[^,=]+=")  # in 0-seed=1,tokenizer=remi

_SHOWN = ("corpus", "model", "optim.lr", "seed", "tokenizer")

# Details that the names of tokenizer and corpus imply, and settings that are the same in all runs:
# a table with all of them is unreadable.
_LEFT_OUT = ("tokenizer.", "callbacks.", "split.", "labels.", "corpus.root")


class TensorBoardLogger(LightningTensorBoardLogger):
    """Lightning's, with event files in the run's folder, whose name is then the run's.

    TensorBoard sorts charts by their tags, in groups by the first part of it, and opens the first
    two. So :data:`COMPARED` lead, as ``compare/val/loss``; ``train/...`` follows, then
    ``trained/...``, the final scores and figures of the test songs, and at last the other
    ``val/...`` and generated pieces.

    A single value would be a dot. A final score, which HPARAMS reads from a chart, is a horizontal
    line; the test scores, whose means these are, and ``epoch`` have no chart.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False)
        _hide_writers_tracebacks()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes the metrics under the tags of TensorBoard; an OSError where that fails."""
        # Not by Lightning's, which reports every error, even a full disk, as an unsupported value.
        for name, value in metrics.items():
            if name.startswith(FINAL):
                self.experiment.add_scalar(final_tag(name), value, 0)
                self.experiment.add_scalar(final_tag(name), value, step)
            elif name != "epoch" and not name.startswith("test/"):
                tag = f"compare/{name}" if name in COMPARED else name
                self.experiment.add_scalar(tag, value, step)

    @rank_zero_only
    def save(self) -> None:
        """Flushes the writer; the settings are in the run's ``config.yaml``."""
        self.experiment.flush()


def _hide_writers_tracebacks() -> None:
    """Keeps the thread that writes event files from printing what its logger raises next."""
    before = threading.excepthook
    if getattr(before, "__module__", None) == __name__:
        return

    def hook(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            before(args)

    threading.excepthook = hook


def final_tag(name: str) -> str:
    """TensorBoard's tag of a final score, or of a figure of the test songs."""
    return f"trained/{name.removeprefix(FINAL)}"


class CSVLogger(LightningCSVLogger):
    """Lightning's, but a resumed run keeps its ``metrics.csv``.

    Lightning deletes the file that it finds. Here the steps that the resumed run makes once more
    replace those of the interrupted one, and all earlier rows stay.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> lightning_csv.ExperimentWriter:
        """The writer, made at its first use."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        assert isinstance(self._experiment, _Writer)
        return self._experiment


class _Writer(lightning_csv.ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        self._resumes = path.is_file()
        if self._resumes:
            with path.open(encoding="utf-8", newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def _check_log_dir_exists(self) -> None:
        """Existing files are this run's: a new run never gets a folder that holds another."""

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Notes a row; the first one drops what the interrupted run wrote from that step on."""
        super().log_metrics(metrics_dict, step)
        if self._resumes:
            self._resumes = False
            path, first = Path(self.metrics_file_path), int(self.metrics[0]["step"])
            earlier = [row for row in read_csv(path) if int(row["step"]) < first]
            write_csv(path, earlier, self.metrics_keys)


def tags(task: type[Task]) -> tuple[str, ...]:
    """Names of a task's final scores and of the run's costs, the same in every run."""
    return tuple(f"{FINAL}{name}" for name in (*task.final, *COSTS))


def start_hparams(
    trainer: L.Trainer, task: type[Task], config: Mapping[str, Any], swept: Mapping[str, str]
) -> None:
    """Logs the settings: a run shows its row from its first step on, though without scores.

    A resumed run writes the same once more, which TensorBoard shows as one row.

    Args:
        trainer: Its loggers get them.
        task: Says which scores there will be.
        config: The run's resolved config as plain data.
        swept: What a sweep tries, as the command line has it: HPARAMS has these settings alone as
            columns. For a single run it offers all and shows the main five.
    """
    settings = {  # as HPARAMS can show them: numbers, flags and text
        key: value if isinstance(value, (bool, int, float, str)) else str(value)
        for key, value in settings_of(config).items()
        if value is not None and not key.startswith(_LEFT_OUT)
    }
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if not isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(settings)
            continue
        # A group such as `augment` covers several settings; a seed is a name, which
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
    """A summary's data for the HPARAMS plugin, mutable: PyTorch does not set all of it."""
    plugin = part.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    yield data
    plugin.content = data.SerializeToString()


def _title(folder: Path) -> str:
    """Name of a run's row, distinguishing part first: the column shows some 15 letters.

    A job of a sweep has its number and what it tries, whose names are columns. Runs of one title
    would share a row, so name and date of ``runs/<name>/<when>/<job>`` follow.
    """
    parts = folder.resolve().parts
    dated = max((i for i, part in enumerate(parts) if _DATE.match(part)), default=len(parts) - 1)
    below = (_KEY.sub("", part) for part in parts[:dated:-1])
    return " ".join((*below, parts[dated - 1], _DATE.sub("", parts[dated])))


def finish_hparams(
    trainer: L.Trainer, task: type[Task], final: Mapping[str, float], cost: Mapping[str, Any]
) -> None:
    """Logs the final scores under :func:`tags` and marks the run as finished.

    Args:
        trainer: Its loggers get them.
        task: Says which scores there are.
        final: Scores by their short name; one that no label has is missing.
        cost: Content of ``cost.json``.
    """
    found = {**final, **{name: float(cost[name]) for name in COSTS}}
    values = {tag: found[k] for tag in tags(task) if (k := tag.removeprefix(FINAL)) in found}
    for logger in trainer.loggers if trainer.is_global_zero else ():
        logger.log_metrics(values, step=trainer.global_step)
        if isinstance(logger, TensorBoardLogger):
            *_, end = summary.hparams({}, {})  # type: ignore[no-untyped-call]
            logger.experiment.file_writer.add_summary(end)
        logger.save()
