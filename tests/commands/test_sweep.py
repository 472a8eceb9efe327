"""Sweeps: names, failures, launchers, one device a run, and what TensorBoard shows of them."""

import csv
import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from toy_runs import SMALL

from boards import Board
from midigenre.commands.hydra_job import shortened
from midigenre.commands.sweep import take_share
from midigenre.run import locked

METRICS = (
    "test_phrase_macro_f1",  # the first: what runs are compared by
    "test_song_macro_f1",
    "test_phrase_accuracy",
    "test_song_accuracy",
    "val_macro_f1",
    "fit_seconds",
    "train_tokens",
    "parameters",
)

QUICK = (*SMALL, "trainer.max_epochs=1", "trainer.max_steps=2")
COMPLETE = {"config.yaml", "spec.json", "metrics.json", "evaluation.json", "cost.json",
            "checkpoints", "train.log"}  # fmt: skip


def test_six_jobs_leave_six_complete_folders_and_hparams_rows(midigenre, home):
    status, out, err = midigenre(
        "train", "-m", *QUICK, "tokenizer=remi,cp,octuple", "model=tiny,small", "name=six"
    )
    assert status == 0, err
    folder = home / out.strip()  # the sweep's folder, and nothing else
    assert folder.parent == home / "runs" / "six"
    jobs = sorted(path for path in folder.iterdir() if path.is_dir())
    assert [job.name for job in jobs] == [
        f"{i}-model={model},tokenizer={tokenizer}"
        for i, (tokenizer, model) in enumerate(
            (t, m) for t in ("remi", "cp", "octuple") for m in ("tiny", "small")
        )
    ]
    board = Board(home / "runs")
    columns, metrics, trials = Board(folder).hparams()
    assert columns == {"model": True, "tokenizer": True}
    assert metrics == [name.replace("_", " ") for name in METRICS]
    for job in jobs:
        assert {path.name for path in job.iterdir()} >= COMPLETE
        assert str(job.relative_to(home / "runs")) in board.tags["scalars"]
        # Short, for the column is narrow; other sweeps' jobs of this name are other rows.
        title = f"{re.sub('[a-z]+=', '', job.name)} six {folder.name.partition('-')[2]}"
        settings, values = trials.pop(title)
        assert f"model={settings['model']},tokenizer={settings['tokenizer']}" in job.name
        assert settings["optim.lr"] == {"tiny": 2e-3, "small": 5e-4}[settings["model"]]
        assert settings["corpus"] == "toy"
        values = {tag.removeprefix("trained/"): value for tag, value in values.items()}
        assert set(values) == set(METRICS)
        evaluation = json.loads((job / "evaluation.json").read_text())["genre"]
        cost = json.loads((job / "cost.json").read_text())
        assert values["test_song_macro_f1"] == pytest.approx(evaluation["song"]["macro_f1"])
        assert values["test_phrase_accuracy"] == pytest.approx(evaluation["phrase"]["accuracy"])
        assert values["parameters"] == cost["parameters"]
    assert all(word in err for word in ("tokenizer", "octuple", "best baseline", "parameters"))


def failed(midigenre, home, *arguments):
    """Two jobs of which the first fails; returns (folder of the other one, stderr)."""
    status, out, err = midigenre("train", "-m", *QUICK, "optim.lr=-1,0.003", *arguments)
    assert status == 2, err
    assert out.count("\n") == 1
    bad, good = sorted(p for p in (home / out.strip()).iterdir() if p.name[0].isdigit())
    assert (bad.name, good.name) == ("0-optim.lr=-1", "1-optim.lr=0.003")
    why = "optim.lr must be above 0, got -1"
    assert (bad / "failed.txt").read_text().splitlines()[0] == why
    assert f"failed: {bad.name}: {why}" in err
    assert not (bad / "metrics.json").exists()
    assert {path.name for path in good.iterdir()} >= COMPLETE
    assert not (good / "failed.txt").exists()
    return good, err


def test_a_job_whose_loss_is_no_number_fails_and_says_where(midigenre, home):
    status, out, err = midigenre("train", "-m", *QUICK[:-1], "trainer.max_steps=3",
                                 "optim.lr=1e30,0.003", "name=diverged")  # fmt: skip
    assert status == 2
    bad, good = sorted(path for path in (home / out.strip()).iterdir() if path.is_dir())
    (why,) = (bad / "failed.txt").read_text().splitlines()  # and no traceback
    assert re.match(r"the loss is nan in step 2 at learning rate \S+: ", why), why
    assert f"failed: {why}" in err
    assert not list(bad.glob("checkpoints/*"))
    assert (good / "evaluation.json").is_file()


def test_a_failed_job_does_not_end_the_sweep(midigenre, home):
    _, err = failed(midigenre, home)
    assert "Traceback" not in err


def test_the_same_command_line_runs_only_what_is_missing(midigenre, home):
    arguments = ("train", "-m", *QUICK, "optim.lr=0.002,-1,0.003", "name=twice")
    status, out, _ = midigenre(*arguments)
    folder = home / out.strip()
    kept = [p for p in folder.rglob("*") if p.is_file() and p.parent.name != "1-optim.lr=-1"]
    before = {path: path.stat().st_mtime_ns for path in kept if path.name not in
              (".lock", "multirun.yaml", "train.log")}  # fmt: skip
    # The settings of the failed job are right by now, say by an update of the program.
    again = midigenre(*arguments)
    assert again[:2] == (status, out) == (2, again[1])
    assert f"resuming {out.strip()}, which is not finished" in again[2].replace("\n", " ")
    assert again[2].count("finished before") == 2
    assert "optim.lr must be above 0" in again[2]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path.name for path in folder.parent.iterdir()} == {folder.name}
    # Another command line is another sweep.
    other = midigenre("train", "-m", *QUICK, "optim.lr=0.002", "name=twice")
    assert other[0] == 0
    assert other[1] != out
    # A finished one is made again; what is damaged beside it is no matter of this sweep.
    (folder / "sweep.json").write_text('{"jobs": [')
    third = midigenre("train", "-m", *QUICK, "optim.lr=0.002", "name=twice")
    assert third[0] == 0
    assert third[1] not in (out, other[1])
    assert f"warning: {out.strip()}/sweep.json cannot be read" in " ".join(third[2].split())


@pytest.mark.slow
def test_an_interrupted_sweep_ends_as_if_it_had_not_been(midigenre, home, monkeypatch):
    settings = (*SMALL, "data.batch_phrases=8", "trainer.max_epochs=2", "seed=1,2",
                "+callbacks.signal._target_=spies.SignalAt")  # fmt: skip
    whole = midigenre("train", "-m", *settings, "name=unbroken")[1].strip()
    monkeypatch.setenv("SIGNAL_AT", f"{signal.SIGTERM.value}:4")
    status, _, err = midigenre("train", "-m", *settings, "name=broken")
    assert (status, err.strip().splitlines()[-1]) == (
        143, "midigenre: stopped; the same command line resumes the sweep"
    )  # fmt: skip
    (broken,) = (home / "runs" / "broken").iterdir()
    assert {path.name for path in broken.glob("*/config.yaml")} == {"config.yaml"}
    monkeypatch.delenv("SIGNAL_AT")
    status, out, err = midigenre("train", "-m", *settings, "name=broken")
    assert status == 0, err
    assert home / out.strip() == broken
    assert "after 5 steps" in " ".join(err.split())
    for job in ("0-seed=1", "1-seed=2"):
        for file in ("metrics.json", "evaluation.json", "predictions.csv"):
            ours, theirs = (home / place / job / file for place in (broken, whole))
            assert ours.read_bytes() == theirs.read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "number"),
    [("cores", signal.SIGKILL), ("cores", signal.SIGTERM), ("local", signal.SIGKILL)],
)
def test_a_killed_sweep_leaves_no_worker_and_can_be_finished(launcher, number, midigenre, home):
    name = f"killed-{launcher}-{number}"
    arguments = ["train", "-m", *SMALL, "trainer.max_epochs=40", "seed=1,2,3,4", f"name={name}",
                 "callbacks.early_stopping.patience=99", "callbacks.last.every_minutes=0",
                 f"hydra/launcher={launcher}"]  # fmt: skip
    arguments += ["hydra.launcher.n_jobs=2"] if launcher == "cores" else []
    said = home / f"{name}.txt"
    with said.open("w") as stderr:
        command = [sys.executable, "-m", "midigenre", *arguments]
        sweep = subprocess.Popen(command, cwd=home, stderr=stderr)
    runs = home / "runs" / name
    while len(list(runs.rglob("last.ckpt"))) < 2:
        assert sweep.poll() is None
        time.sleep(0.2)
    sweep.send_signal(number)
    assert sweep.wait() == -number
    line = "midigenre: stopped; the same command line resumes the sweep\n"
    assert (line in said.read_text()) == (number == signal.SIGTERM)
    (folder,) = runs.iterdir()
    began = time.monotonic()
    for job in folder.glob("[0-9]*"):
        with locked(job, 30):  # nobody trains there any more
            pass
    assert time.monotonic() - began < 25
    assert not list(folder.glob("*/metrics.json"))
    before = {path.parents[1]: path.stat().st_size for path in folder.rglob("last.ckpt")}
    status, out, err = midigenre(*arguments)
    assert status == 0, err
    assert home / out.strip() == folder
    jobs = [path for path in folder.glob("[0-9]*") if path.is_dir()]
    assert len(jobs) == 4
    for job in jobs:
        assert (job / "cost.json").is_file()
        assert ("resumes after" in (job / "train.log").read_text()) == (job in before)


@pytest.mark.slow
def test_on_all_cores(midigenre, home):
    good, _ = failed(midigenre, home, "hydra/launcher=cores", "hydra.launcher.n_jobs=2")
    # Its own output lies in its folder and its songs were not encoded by processes of its own.
    assert "macro-F1" in (good / "console.log").read_text()
    assert OmegaConf.load(good / "config.yaml").n_workers == 1


@pytest.mark.slow
def test_by_submitit_on_this_machine(midigenre, home):
    good, _ = failed(midigenre, home, "hydra/launcher=local", "hydra.launcher.cpus_per_task=1")
    assert json.loads((good / "cost.json").read_text())["threads"] == 1


def test_a_defect_in_a_job_keeps_its_traceback(midigenre, home, monkeypatch):
    import midigenre.tasks.classify as classify

    def broken(*arguments, **more):
        raise RuntimeError("a defect\nof two lines")

    monkeypatch.setattr(classify, "evaluate_split", broken)
    status, out, _ = midigenre("train", "-m", *QUICK, "seed=1")
    assert status == 2
    (job,) = [path for path in (home / out.strip()).iterdir() if path.is_dir()]
    lines = (job / "failed.txt").read_text().splitlines()
    assert lines[0] == "RuntimeError: a defect of two lines"
    assert any("in broken" in line for line in lines)
    assert "RuntimeError: a defect" in (job / "train.log").read_text()
    # It did not finish: a row without scores, which does not break the table.
    _, metrics, trials = Board(job.parent).hparams()
    assert len(metrics) == len(METRICS)
    ((settings, values),) = trials.values()
    assert (settings["seed"], values) == ("1", {})


def test_a_named_sweep_needs_no_flag_and_brings_its_name(midigenre, home):
    status, out, err = midigenre(
        "train", "sweep=learning_rate", *QUICK, "optim.lr=1e-3,3e-3", "seed=0"
    )
    assert status == 0, err
    folder = home / out.strip()
    assert folder.parent.name == "learning_rate"
    jobs = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert jobs == ["0-optim.lr=0.001", "1-optim.lr=0.003"]


@pytest.mark.slow
def test_a_slash_in_a_swept_value_makes_no_folder(midigenre, home):
    status, out, err = midigenre("train", "-m", *QUICK, "fold=1/2,2/2", "name=folded")
    assert status == 0, err
    jobs = sorted(path for path in (home / out.strip()).iterdir() if path.is_dir())
    assert [job.name for job in jobs] == ["0-fold=1_2", "1-fold=2_2"]
    assert all((job / "evaluation.json").is_file() for job in jobs)


@pytest.mark.slow
def test_a_sweep_of_many_settings_has_short_names(midigenre, home):
    many = [f"model.{key}=choice({value})" for key, value in (
        ("dropout", 0.125), ("attention_dropout", 0.125), ("conv_width", 8), ("pooling", "mean"),
    )]  # fmt: skip
    many += ["optim.weight_decay=choice(0.05)", "optim.warmup_share=choice(0.1)",
             "optim.final_ratio=choice(0.01)", "data.balance=choice(0.5)",
             f"+prepare.note=choice({'x' * 199})"]  # fmt: skip
    status, out, err = midigenre(
        "train", "-m", *QUICK, *many, "seed=1,2", "name=many", "logger=all"
    )
    assert status == 0, err
    jobs = [path for path in (home / out.strip()).iterdir() if path.is_dir()]
    assert len({job.name for job in jobs}) == 2
    assert all(len(job.name.encode()) < 130 for job in jobs)
    assert {OmegaConf.load(job / "config.yaml").seed for job in jobs} == {1, 2}


@given(st.text(st.characters(codec="utf-8")), st.integers(9, 300))
def test_shortened_names_differ_where_the_whole_ones_do(text, n_bytes):
    short = shortened(text, n_bytes)
    assert len(short.encode()) <= n_bytes
    assert (short == text) == (len(text.encode()) <= n_bytes)
    assert shortened(text + "x" * 300, n_bytes) != shortened(text + "y" * 300, n_bytes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trainer.devices=2"], ["trainer.devices=2", "one device"]),
        (["trainer=ddp"], ["trainer.devices=2", "one device"]),
        (["resume=runs/x"], ["resume=", "without a sweep"]),
        (["hydra/launcher=nowhere"], ["launcher", "nowhere", "cores", "slurm"]),
        (["tokenizer=remi,nothing"], ["tokenizer=nothing", "no such choice"]),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_at_once(arguments, words, midigenre, home):
    before = set(home.rglob("*"))
    status, out, err = midigenre("train", "-m", "corpus=toy", "seed=1,2", "name=never", *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1, err
    assert all(word in err for word in words), err
    assert set(home.rglob("*")) == before


def test_a_missing_plugin_names_the_remedy(midigenre, monkeypatch):
    Plugins.instance()  # registers their configs, which are then as if they had never been
    launchers = ConfigStore.instance().repo["hydra"]["launcher"]
    for name in ("joblib", "submitit_slurm"):
        monkeypatch.delitem(launchers, f"{name}.yaml")
    for name, package in (("cores", "joblib"), ("slurm", "submitit")):
        status, _, err = midigenre(
            "train", "-m", "corpus=toy", "seed=1,2", f"hydra/launcher={name}"
        )
        assert status == 2
        assert err.count("\n") == 1, err
        assert f"hydra-{package}-launcher" in err
        assert 'pip install "midigenre[sweep]"' in err


@pytest.mark.parametrize("number", range(5))
def test_gpus_are_dealt_in_turn(number, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    cfg = OmegaConf.create({"n_workers": None, "trainer": {"accelerator": "gpu", "devices": 1}})
    hydra = OmegaConf.create({"launcher": {"n_jobs": 3}, "job": {"num": number}})
    take_share(cfg, hydra)
    assert list(cfg.trainer.devices) == [number % 3]
    cpu = OmegaConf.create({"n_workers": 7, "trainer": {"accelerator": "cpu", "devices": 1}})
    take_share(cpu, hydra)
    assert cpu.trainer.devices == 1


@pytest.mark.slow
def test_a_resumed_run_keeps_one_row(midigenre, home):
    assert midigenre("train", *SMALL, "trainer.max_epochs=1", "name=again")[0] == 0
    (run,) = (home / "runs" / "again").iterdir()
    _, _, before = Board(run).hparams()
    status, _, err = midigenre("train", f"resume={run}", "trainer.max_epochs=2")
    assert status == 0, err
    columns, _, after = Board(run).hparams()
    assert len(columns) > 20  # alone: all settings to choose from
    assert {name for name, shown in columns.items() if shown} == {
        "corpus", "model", "optim.lr", "seed", "tokenizer",
    }  # fmt: skip
    ((title, (_, values)),) = after.items()
    assert title == f"again {run.name.partition('-')[2]}"
    assert values["trained/train_tokens"] > before[title][1]["trained/train_tokens"]


@pytest.mark.slow
def test_compare_prints_markdown_and_writes_csv(midigenre, home):
    assert midigenre("train", "-m", *QUICK, "seed=1,2", "optim.lr=1e-3,3e-3", "name=seeds")[0] == 0
    status, out, err = midigenre("compare", "csv=a b=c.csv", "level=song", "--", "runs/seeds")
    assert status == 0, err
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len(lines) == 4  # head, rule, two learning rates
    assert lines[0].startswith("| optim.lr | seeds | song macro-F1 | best baseline |")
    rows = list(csv.DictReader((home / "a b=c.csv").open()))
    assert {row["optim.lr"] for row in rows} == {"0.001", "0.003"}
    for row in rows:
        scores = [
            json.loads((home / run / "evaluation.json").read_text())["genre"]["song"]["macro_f1"]
            for run in row["runs"].split(";")
        ]
        assert len(scores) == int(row["seeds"]) == 2
        assert float(row["test/genre/song/macro_f1"]) == pytest.approx(sum(scores) / 2)
    # The names of shipped choices stand for their settings.
    midigenre("train", *QUICK, "tokenizer=cp", "optim.lr=1e-3", "name=other")
    _, out, _ = midigenre("compare", "--", "runs/seeds", "runs/other")
    assert out.startswith("| tokenizer | optim.lr | seeds |")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["RUN_OR_FOLDER"]),
        (["--", "nowhere"], ["nowhere", "no such folder"]),
        (["--", "."], ["holds no run"]),
        (["level=bar", "--", "."], ["level=bar", "phrase, song"]),
        (["metric=loss", "--", "."], ["metric=loss", "macro_f1"]),
    ],
)
def test_compare_refuses_in_one_line(arguments, words, midigenre, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = midigenre("compare", *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1, err
    assert all(word in err for word in words), err


def test_csv_beside_tensorboard(midigenre, home):
    assert midigenre("train", *QUICK, "logger=all", "name=loggers")[0] == 0
    (run,) = (home / "runs" / "loggers").iterdir()
    rows = list(csv.DictReader((run / "csv" / "metrics.csv").open()))
    final = [row for row in rows if row["hparam/test_song_macro_f1"]]
    evaluation = json.loads((run / "evaluation.json").read_text())["genre"]
    assert float(final[-1]["hparam/test_song_macro_f1"]) == evaluation["song"]["macro_f1"]
    assert OmegaConf.load(run / "csv" / "hparams.yaml").tokenizer == "remi"
    ((settings, values),) = Board(run).hparams()[2].values()
    assert settings["tokenizer"] == "remi"
    assert values["trained/test_song_macro_f1"] == pytest.approx(evaluation["song"]["macro_f1"])


@pytest.mark.slow
def test_weights_and_biases_offline(midigenre, home, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    status, out, err = midigenre(
        "train", "-m", *QUICK, "logger=wandb", "name=offline", "model=tiny,small"
    )
    assert status == 0, err
    jobs = sorted(path for path in (home / out.strip()).iterdir() if path.is_dir())
    for model, job in zip(("tiny", "small"), jobs, strict=True):
        (path,) = job.glob("wandb/offline-run-*/*.wandb")  # each job has its own
        content = path.read_bytes()
        evaluation = json.loads((job / "evaluation.json").read_text())["genre"]
        assert wandb_value(content, "tokenizer") == "remi"
        assert wandb_value(content, "model") == model
        score = wandb_value(content, "hparam/test_song_macro_f1")
        assert score == evaluation["song"]["macro_f1"]
        assert all(
            wandb_value(content, tag) >= 0
            for tag in (*(f"hparam/{name}" for name in METRICS), "val/macro_f1")
        )
        assert f"offline/{job.name}".encode() in content


def wandb_value(content, key):
    """The last value of a key: in the protobuf, length and key, then field 16, length and JSON."""
    wanted = bytes([len(key)]) + key.encode() + b"\x82\x01"
    start = content.rindex(wanted) + len(wanted)
    return json.loads(content[start + 1 : start + 1 + content[start]])
