"""Logs of a run: charts in the order in which runs are compared; a CSV that is kept on resume."""

from __future__ import annotations

import csv
import threading
from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch.loggers.csv_logs as lightning_csv
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from midigenre.files import read_csv, write_csv

FINAL = "hparam/"
"""What the names of scores begin with that a run has once, at its end."""

COMPARED = ("val/loss", "val/macro_f1", "val/nats_per_note")
"""What runs are compared by while they train."""


class TensorBoardLogger(LightningTensorBoardLogger):
    """Lightning's, with event files in the run's folder, whose name is then the run's.

    TensorBoard sorts charts by their tags, in groups by the first part of it, and opens the first
    two. So :data:`COMPARED` lead, as ``compare/val/loss``; ``train/...`` follows, then
    ``trained/...``, the final scores and figures of the test songs, and at last the other
    ``val/...`` and generated pieces.

    What there is once would be a dot. A final score, which HPARAMS reads from a chart, is a level
    line; the test scores, of which those are the means, and ``epoch`` have none.

    Args:
        save_dir: The run's folder.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False)
        _hide_writers_tracebacks()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes the metrics under the tags of TensorBoard.

        Raises:
            OSError: They cannot be written.
        """
        # Not by Lightning's, which words every error, a full disk too, as an unsupported value.
        for name, value in metrics.items():
            if name.startswith(FINAL):
                self.experiment.add_scalar(final_tag(name), value, 0)
                self.experiment.add_scalar(final_tag(name), value, step)
            elif name != "epoch" and not name.startswith("test/"):
                tag = f"compare/{name}" if name in COMPARED else name
                self.experiment.add_scalar(tag, value, step)

    @rank_zero_only
    def save(self) -> None:
        """Writes what is held back; the settings stand in the run's ``config.yaml``."""
        self.experiment.flush()


def _hide_writers_tracebacks() -> None:
    """Keeps the thread that writes event files from printing a traceback.

    What it cannot write, on a full disk for instance, the next call of its logger raises.
    """
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
    """Lightning's, but a run that goes on also goes on with its ``metrics.csv``.

    Lightning deletes the file that it finds. Here the steps that the resumed run makes once more
    replace those of the interrupted one, and all earlier rows stay.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> lightning_csv.ExperimentWriter:
        """The writer, made at its first use."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        writer = self._experiment
        assert isinstance(writer, _Writer)
        return writer


class _Writer(lightning_csv.ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        self._goes_on = path.is_file()
        if self._goes_on:
            with path.open(encoding="utf-8", newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def _check_log_dir_exists(self) -> None:
        """What lies there is this run's: a new run is refused a folder that holds another."""

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Notes a row; the first one drops what the interrupted run wrote from that step on."""
        super().log_metrics(metrics_dict, step)
        if self._goes_on:
            self._goes_on = False
            path, first = Path(self.metrics_file_path), int(self.metrics[0]["step"])
            earlier = [row for row in read_csv(path) if int(row["step"]) < first]
            write_csv(path, earlier, self.metrics_keys)
