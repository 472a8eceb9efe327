"""A CSV log that outlives an interruption."""

from __future__ import annotations

import csv
from pathlib import Path

import lightning.pytorch.loggers.csv_logs as lightning_csv
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger

from midigenre.files import read_csv, write_csv


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
