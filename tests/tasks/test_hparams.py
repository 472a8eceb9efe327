"""What TensorBoard reads of runs: charts in the order of comparing, HPARAMS; no training needed."""

import errno
import os
import threading
from types import SimpleNamespace
from unittest import mock

import pytest
from hydra import compose, initialize_config_dir

from boards import Board
from midigenre.build import plain
from midigenre.registry import conf_dir
from midigenre.tasks.classify import ClassifyTask
from midigenre.tasks.generate import GenerateTask
from midigenre.tasks.loggers import COSTS, TensorBoardLogger, finish_hparams, start_hparams
from midigenre.tasks.pretrain import PretrainTask


def log_run(folder, swept=None, task=ClassifyTask, score=0.5, overrides=(), when=0):
    """A run of two validations, or its continuation."""
    swept = swept or {}
    with initialize_config_dir(str(conf_dir().resolve()), version_base=None):
        given = [f"{key}={value}" for key, value in swept.items()]
        config = plain(compose("train", ["name=x", *given, *overrides]))
    logger = TensorBoardLogger(folder)
    trainer = SimpleNamespace(
        loggers=[logger], is_global_zero=True, default_root_dir=str(folder), global_step=when + 20
    )
    start_hparams(trainer, task, config, swept)
    for step in (when + 10, when + 20):
        logger.log_metrics({"train/loss": 1.0, "train/lr": 0.1, "epoch": 1}, step)
        logger.log_metrics({"val/loss": 1.0, "val/genre/loss": 1.0, "val/macro_f1": 0.1}, step)
    final = dict.fromkeys(task.final, score)
    finish_hparams(trainer, task, final, dict.fromkeys(COSTS, 7))
    logger.log_metrics({"test/genre/song/macro_f1": score}, when + 20)
    logger.finalize("success")


def test_what_is_compared_leads_and_nothing_is_a_dot(tmp_path):
    log_run(tmp_path / "toy" / "2026-11-30_00-47-18")
    board = Board(tmp_path)
    ((run, scalars),) = board.tags["scalars"].items()
    assert run == "toy/2026-11-30_00-47-18"
    assert list(scalars)[:4] == [
        "compare/val/loss",
        "compare/val/macro_f1",
        "train/loss",
        "train/lr",
    ]
    assert list(scalars)[-1] == "val/genre/loss"
    assert {tag.split("/")[0] for tag in scalars} == {"compare", "train", "trained", "val"}
    assert set(scalars.values()) == {2}


def test_a_resumed_run_continues_in_its_charts(tmp_path):
    log_run(tmp_path / "a")
    log_run(tmp_path / "a", score=0.75, when=20)
    board = Board(tmp_path)
    ((run, scalars),) = board.tags["scalars"].items()
    assert (run, scalars["compare/val/loss"]) == ("a", 4)
    ((_, values),) = board.hparams()[2].values()
    assert values["trained/test_song_macro_f1"] == 0.75


def test_hparams_has_what_a_sweep_tries_and_the_test_score_first(tmp_path):
    sweep = tmp_path / "sweep" / "2026-11-30_00-47-18"
    for number, (augment, seed) in enumerate([("none", 3), ("strong", 3), ("none", 4)]):
        swept = {"augment": augment, "seed": str(seed)}
        log_run(sweep / f"{number}-augment={augment},seed={seed}", swept, score=number / 4)
    columns, metrics, rows = Board(tmp_path).hparams()
    assert columns == {"augment": True, "seed": True}
    assert metrics[:2] == ["test phrase macro f1", "test song macro f1"]
    titles = [f"{job} sweep 11-30_00-47-18" for job in ("0-none,3", "1-strong,3", "2-none,4")]
    assert list(rows) == titles
    settings, values = rows[titles[1]]
    assert (settings["augment"], settings["seed"]) == ("strong", "3")
    assert values["trained/test_phrase_macro_f1"] == 0.25
    # The same jobs of another sweep are rows of their own.
    log_run(tmp_path / "sweep" / "2026-12-01_00-47-18" / "0-augment=none,seed=3", swept)
    assert len(Board(tmp_path).hparams()[2]) == 4


@pytest.mark.parametrize("task", [ClassifyTask, GenerateTask, PretrainTask])
def test_every_task_has_its_test_score_first(task, tmp_path):
    folder = tmp_path / "name" / "2026-11-30_00-47-18"
    log_run(folder, task=task)
    log_run(folder / "fold-1-of-2", task=task)
    columns, metrics, rows = Board(tmp_path).hparams()
    assert metrics[0].startswith("test ")
    # Runs that stand alone: the main five as columns, all to choose from.
    shown = {"corpus", "model", "optim.lr", "seed", "tokenizer"}
    assert {name for name, differs in columns.items() if differs} == shown
    assert "trainer.max_epochs" in columns
    assert sorted(rows) == ["fold-1-of-2 name 11-30_00-47-18", "name 11-30_00-47-18"]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_the_loggers_error_and_no_traceback_of_a_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # given back at the end
    logger = TensorBoardLogger(tmp_path)
    writer = logger.experiment._get_file_writer().event_writer._async_writer
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(writer._writer, "write", mock.Mock(side_effect=full))
    logger.experiment.add_scalar("train/loss", 1.0, 0)
    writer._worker.join()
    with pytest.raises(OSError, match="No space left on device"):
        logger.log_metrics({"train/loss": 1.0}, 1)
