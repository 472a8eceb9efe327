"""Studies of ``midigenre tune``: their space, their trials, and what a kill leaves of them."""

import csv
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from toy_runs import SMALL, working_in

from boards import Board
from midigenre.cli import main
from midigenre.commands.tune import (
    Setting,
    as_experiment,
    sampler_of,
    space_of,
    study_figure,
    suggest,
)
from midigenre.errors import UserError
from midigenre.registry import conf_dir
from midigenre.run import RunFolder
from midigenre.tasks.callbacks import TRIAL

QUICK = (*SMALL, "trainer.max_epochs=1", "trainer.max_steps=2")
TRIED = ("optim=choice(adamw,muon)", "optim.lr=tag(log,interval(1e-3,1e-2))")


def rows_of(study):
    with (study / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def parser():
    with initialize_config_dir(str(conf_dir().resolve()), "midigenre", version_base=None):
        yield OverridesParser.create()


@pytest.fixture(scope="module")
def study(home):
    """A study of three trials."""
    with working_in(home):
        assert main(["tune", *QUICK, *TRIED, "name=three", "n_trials=3"]) == 0
    return home / "tune" / "three"


def test_a_study_leaves_its_trials_its_figure_and_its_best_settings(study):
    names = {path.name for path in study.iterdir()}
    assert names >= {"0", "1", "2", "journal.log", "study.json", "study.png", "trials.csv"}
    assert "3" not in names
    rows = rows_of(study)
    assert [row["state"] for row in rows] == ["complete"] * 3
    assert len({row["optim.lr"] for row in rows}) == 3
    assert all(1e-3 <= float(row["optim.lr"]) <= 1e-2 for row in rows)
    for number, row in enumerate(rows):
        run = RunFolder(study / str(number))
        assert run.best_score == ("val/macro_f1", pytest.approx(float(row["score"])))
        assert run.config["optim"]["lr"] == pytest.approx(float(row["optim.lr"]))


def test_only_the_best_trial_is_tested(study):
    rows = rows_of(study)
    best = max(rows, key=lambda row: (float(row["score"]), -int(row["trial"])))
    tested = [n for n in range(3) if RunFolder(study / str(n)).tested]
    assert tested == [int(best["trial"])]
    assert all(RunFolder(study / str(n)).finished for n in range(3))


def test_the_trials_are_rows_of_hparams_with_what_was_tried_as_columns(study):
    columns, _, trials = Board(study).hparams()
    assert set(columns) == {"optim", "optim.lr"}
    assert len(trials) == 3


def test_the_best_settings_are_an_experiment(study, midigenre):
    status, out, err = midigenre("train", "-cd", str(study), "experiment=best", "--cfg", "job")
    assert status == 0, err
    again, tried = OmegaConf.create(out), max(rows_of(study), key=lambda row: float(row["score"]))
    assert again.optim.lr == pytest.approx(float(tried["optim.lr"]))
    assert again.optim._target_.lower().endswith(f"{tried['optim']}settings")
    assert (again.model.d_model, again.corpus.n_songs, again.trainer.max_steps) == (32, 48, 2)
    assert again.test  # a trial is not, a run is


@pytest.mark.slow
def test_a_folder_of_ones_own_is_known_to_the_test_and_named_for_the_next_run(
    home, midigenre, tmp_path, monkeypatch
):
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "mine.yaml").write_text(
        "name: mine\nwhen: {}\nparams:\n  optim.lr: interval(0.001, 0.01)\n"
        "  model.dropout: interval(0, 0.1)\n"
    )
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "own.yaml").write_text(
        "defaults: [adamw@_here_, _self_]\n_target_: ownoptim.Own\n"
    )
    (tmp_path / "ownoptim.py").write_text(
        "from midigenre.tasks.optim import AdamWSettings\n\n\nclass Own(AdamWSettings):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    line = ("tune", "-cd", str(tmp_path), *QUICK, "search=mine", "optim=own", "n_trials=2")
    status, out, err = midigenre(*line)
    assert status == 0, err
    study = home / out.strip()
    assert study.name == "mine-toy"
    assert sum(RunFolder(study / str(n)).tested for n in range(2)) == 1
    assert f"hydra.searchpath=['file://{tmp_path}']" in err
    assert "hydra" not in (study / "experiment" / "best.yaml").read_text()
    status, out, err = midigenre(
        "train", "-cd", str(study), f"hydra.searchpath=['file://{tmp_path}']", "experiment=best",
        "name=again",
    )  # fmt: skip
    assert status == 0, err


def test_more_trials_are_added_and_none_is_run_again(study, midigenre):
    before = {n: (study / str(n) / "metrics.json").stat().st_mtime_ns for n in range(3)}
    old = rows_of(study)
    status, out, err = midigenre("tune", *QUICK, *TRIED, "name=three", "n_trials=4")
    assert status == 0, err
    assert out.strip() == "tune/three"
    rows = rows_of(study)
    assert len(rows) == 4
    assert [(row["optim"], row["optim.lr"]) for row in rows[:3]] == [
        (row["optim"], row["optim.lr"]) for row in old
    ]
    after = {n: (study / str(n) / "metrics.json").stat().st_mtime_ns for n in range(3)}
    best = max(range(4), key=lambda n: (float(rows[n]["score"]), -n))
    assert {n for n in range(3) if before[n] != after[n]} <= {best}  # which may be tested now


def test_another_study_of_the_name_is_rejected(study, midigenre):
    status, _, err = midigenre("tune", *QUICK, *TRIED, "model.dropout=0.1", "name=three")
    assert status == 2
    assert "has another study" in err
    assert "name=NEW" in err
    # What is of the machine, not of the study.
    status, _, err = midigenre("tune", *QUICK, *TRIED, "n_workers=1", "name=three", "n_trials=4")
    assert status == 0, err


def test_a_trial_that_fails_says_why_and_the_others_go_on(home, midigenre):
    status, _, err = midigenre(
        "tune", *QUICK, "model.n_heads=choice(2,3)", "name=fails", "n_trials=5", "seed=1"
    )
    assert status == 0, err
    rows = rows_of(home / "tune" / "fails")
    assert len(rows) == 5
    for row in rows:
        assert row["state"] == ("failed" if row["model.n_heads"] == "3" else "complete")
        assert ("n_heads" in row["reason"]) == (row["model.n_heads"] == "3")
    assert {row["state"] for row in rows} == {"failed", "complete"}
    assert "failed" in err


def test_a_study_whose_first_trials_all_fail_ends(home, midigenre):
    status, _, err = midigenre(
        "tune", *QUICK, "model.n_heads=3", "optim.lr=interval(1e-3,1e-2)", "name=hopeless"
    )
    assert status == 2
    assert "3 trials failed and none succeeded" in err
    assert "n_heads" in err
    assert [row["state"] for row in rows_of(home / "tune" / "hopeless")] == ["failed"] * 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((), "give search=NAME (classifier"),
        (("search=clasifier",), "did you mean classifier?"),
        (("optim.lrr=interval(0,1)",), "lrr"),
        (("optim.lr=interval(1,0)",), "interval(low, high)"),
        (("search=classifier", "n_trials=0"), "n_trials=0"),
        (("search=classifier", "n_trials=x"), "n_trials=x must be a whole number"),
        (("search=classifier", "search.params=[augment]"), "search.params="),
        (("search=classifier", "+search.param={}"), "search.param: "),
        (("search=classifier", "timeout=2h"), "days:hours:minutes:seconds"),
        (("search=classifier", "timeout=600"), "days:hours:minutes:seconds"),
        (("search=classifier", "protocol=crossval"), "protocol=crossval"),
        (("search=classifier", "trainer.devices=2"), "trainer.devices=2"),
        (("search=classifier", "storage=mysqll://me:secret@here/x"), "storage=mysqll://...@here/x"),
        (("search=classifier", "resume=runs/x"), "resume="),
        (("search=classifier", "sweep=depth"), "sweep=depth"),
        (("search=classifier", "hydra/launcher=cores"), "hydra/launcher=cores"),
        (("search=classifier", "~callbacks.early_stopping"), "~callbacks.early_stopping"),
    ],
)
def test_what_no_study_can_be_of_is_rejected_in_one_line(given, says, midigenre, home):
    status, _, err = midigenre("tune", "corpus=toy", "name=none", *given)
    assert status == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert not (home / "tune" / "none" / "0").exists()


def test_without_optuna_it_says_what_to_install(midigenre, monkeypatch):
    monkeypatch.delitem(sys.modules, "midigenre.commands.tune")
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, _, err = midigenre("tune", "search=classifier")
    assert status == 2
    assert 'pip install "midigenre[tune]"' in err


def test_a_killed_study_resumes_its_trial_and_repeats_none(home, midigenre):
    line = [
        "tune", *SMALL, "trainer.max_epochs=8", "callbacks.early_stopping=null", *TRIED,
        "name=killed", "n_trials=2",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "midigenre", *line],
        cwd=home,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    folder = home / "tune" / "killed"
    deadline = time.monotonic() + 120
    while not list(folder.glob("1/checkpoints/last.ckpt")):  # the second is being trained
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not RunFolder(folder / "1").finished
    first = (folder / "0" / "metrics.json").read_bytes()
    rate = RunFolder(folder / "1").config["optim"]["lr"]
    status, _, err = midigenre(*line)
    assert status == 0, err
    rows = rows_of(folder)
    assert [row["state"] for row in rows] == ["complete"] * 2
    assert float(rows[1]["optim.lr"]) == pytest.approx(rate)
    assert "resumes after" in (folder / "1" / "console.log").read_text()
    if not RunFolder(folder / "0").tested:
        assert (folder / "0" / "metrics.json").read_bytes() == first


@pytest.mark.slow
def test_two_processes_share_a_study(home):
    line = [sys.executable, "-m", "midigenre", "tune", *QUICK, *TRIED, "name=two", "n_trials=5"]
    both = [
        subprocess.Popen(line, cwd=home, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    folder = home / "tune" / "two"
    rows = rows_of(folder)
    assert [row["state"] for row in rows] == ["complete"] * 5
    assert len({row["optim.lr"] for row in rows}) == 5
    assert sum(RunFolder(folder / str(n)).tested for n in range(5)) == 1


def test_a_study_may_lie_in_a_database(home, midigenre):
    storage = f"storage=sqlite:///{home}/studies.db"
    status, _, err = midigenre("tune", *QUICK, *TRIED, storage, "name=stored", "n_trials=1")
    assert status == 0, err
    assert len(rows_of(home / "tune" / "stored")) == 1
    assert not (home / "tune" / "stored" / "journal.log").exists()
    names = optuna.get_all_study_names(f"sqlite:///{home}/studies.db")
    assert list(names) == ["stored"]
    # Another study of that name, in another folder.
    status, _, err = midigenre(
        "tune", *QUICK, "optim.lr=interval(0,1)", storage, "name=stored", f"home={home}/other"
    )
    assert status == 2
    assert "has another study" in err


def test_the_pruner_ends_a_run_after_a_validation(home, midigenre):
    seen = []
    trial = SimpleNamespace(
        report=lambda value, step: seen.append((step, value)),
        should_prune=lambda: len(seen) == 3,
        set_user_attr=lambda key, value: seen.append((key, value)),
    )
    token = TRIAL.set(trial)
    try:
        status, out, err = midigenre(
            "train", *SMALL, "trainer.max_epochs=20", "callbacks.early_stopping=null", "test=false"
        )
    finally:
        TRIAL.reset(token)
    assert status == 0, err
    assert seen[1] == ("pruned", None)
    assert seen[3] == ("pruned", 2)
    assert [key for key, _ in seen] == [1, "pruned", 2, "pruned"]
    metrics = json.loads((home / out.strip() / "metrics.json").read_text())
    assert metrics["epochs"] == 2
    assert metrics["tested"] is None
    assert not (home / out.strip() / "evaluation.json").exists()


def test_a_run_without_a_test_is_tested_later(home, midigenre):
    status, out, err = midigenre("train", *QUICK, "test=false", "name=untested")
    assert status == 0, err
    run = home / out.strip()
    assert "not tested" in err
    assert f"resume={out.strip()} test=true" in err
    status, _, err = midigenre("compare", "--", str(run))
    assert status == 2
    assert "not tested" in err
    before = json.loads((run / "metrics.json").read_text())
    status, _, err = midigenre("train", f"resume={out.strip()}", "test=true")
    assert status == 0, err
    after = json.loads((run / "metrics.json").read_text())
    assert after["best"] == before["best"]
    assert after["steps"] == before["steps"]
    assert "test/genre/macro_f1" in after["test"] or after["test"]
    assert (run / "evaluation.json").is_file()
    status, _, err = midigenre("train", f"resume={out.strip()}", "test=false")
    assert status == 2
    assert "is tested already" in err
    assert (run / "evaluation.json").is_file()
    status, _, err = midigenre("train", "test=false", "protocol=crossval", *QUICK)
    assert status == 2
    assert "test=false" in err


def test_a_space_is_written_in_hydras_grammar(parser):
    space = space_of(
        {"params": {
            "a": "tag(log, interval(1e-4, 1e-2))", "b": "int(interval(1, 4))",
            "c": "range(0, 10, 5)", "d": "choice(remi, cp)", "e": "interval(0, 1)", "f": "7",
        }},
        parser.parse_overrides(["b=range(2,4)", "d=cp", "x=1"]),
        parser,
    )  # fmt: skip
    of = optuna.distributions
    assert {key: setting.distribution for key, setting in space.items()} == {
        "a": of.FloatDistribution(1e-4, 1e-2, log=True),
        "b": of.IntDistribution(2, 3),
        "c": of.IntDistribution(0, 5, step=5),
        "d": of.CategoricalDistribution(("cp",)),
        "e": of.FloatDistribution(0.0, 1.0),
        "f": of.CategoricalDistribution(("7",)),
    }


def test_a_setting_is_tried_only_where_another_has_a_value(parser):
    params = {"momentum": "interval(0,1)", "optim": "choice(adamw,muon)"}
    space = space_of({"params": params, "when": {"momentum": {"optim": "muon"}}}, [], parser)
    assert list(space) == ["optim", "momentum"]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        chosen = suggest(study.ask(), space)
        assert ("momentum" in chosen) == (chosen["optim"] == "muon")
    with pytest.raises(UserError, match="not among what is tried"):
        space_of({"params": params, "when": {"momentum": {"other": 1}}}, [], parser)
    both = {"momentum": {"optim": "muon"}, "optim": {"momentum": 0}}
    with pytest.raises(UserError, match="waits for"):
        space_of({"params": params, "when": both}, [], parser)


def test_a_trial_draws_by_its_number_whatever_process_asks(parser):
    space = space_of({"params": {"a": "interval(0,1)"}}, [], parser)

    def drawn(restarts):
        study = optuna.create_study()
        for number in range(8):
            trial = study.ask()
            study.sampler = sampler_of(3, number)
            value = suggest(trial, space)["a"]
            if restarts:  # asked again after a kill
                assert suggest(optuna.trial.Trial(study, trial._trial_id), space)["a"] == value
            study.tell(trial, value)
        return [trial.params["a"] for trial in study.trials]

    assert drawn(False) == drawn(True)
    assert len(set(drawn(False))) == 8


def test_overrides_come_back_from_the_experiment_that_is_made_of_them(parser, tmp_path):
    given = [
        "experiment=genre_best", "tokenizer=cp", "model=tiny", "optim=adamw", "optim.lr=0.003",
        "corpus=folder", "corpus.root='a, b=${c}'", "split.fractions=[0.7,0.2,0.1]",
        "callbacks.early_stopping=null", "task.labels=[genre,emotion]", "compile=false",
    ]  # fmt: skip
    path = tmp_path / "experiment" / "best.yaml"
    path.parent.mkdir()
    path.write_text(as_experiment(parser.parse_overrides(given), "A test."))
    search = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=best", "name=x", "home=."]
    made, asked = compose("train", search), compose("train", [*given, "name=x", "home=."])
    assert OmegaConf.to_container(made, resolve=False) == OmegaConf.to_container(
        asked, resolve=False
    )


def test_the_figure_has_a_panel_for_each_setting(parser, tmp_path):
    params = {"a": "tag(log,interval(0.1,1))", "b": "choice(x,y)", "c": "int(interval(1,3))"}
    space = space_of({"params": params}, [], parser)
    study = optuna.create_study(direction="maximize")
    for number in range(6):
        trial = study.ask()
        chosen = suggest(trial, space)
        if number == 4:
            trial.report(0.1, 1)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, chosen["a"])
    it = SimpleNamespace(
        optuna=study, space=space, trials=lambda *states: study.get_trials(states=states)
    )
    figure = study_figure(it)
    history, bars, *panels = figure.axes
    assert [panel.get_title(loc="left") for panel in panels] == ["a", "b", "c"]
    assert panels[0].get_xscale() == "log"
    assert {text.get_text() for text in history.get_legend().get_texts()} == {
        "pruned",
        "trained to the end",
    }
    assert bars.get_yticklabels()[0].get_text() == "a"  # the score itself


@pytest.mark.parametrize("name", sorted(path.stem for path in (conf_dir() / "search").glob("*")))
def test_every_shipped_space_composes(name, parser):
    search = OmegaConf.load(conf_dir() / "search" / f"{name}.yaml")
    assert search.name == name
    space = space_of(OmegaConf.to_container(search), [], parser)
    assert all(isinstance(setting, Setting) for setting in space.values())
    task = ["task=generate"] if name == "generator" else []
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(5):
        chosen = suggest(study.ask(), space)
        compose("train", [*task, *(f"{key}={value}" for key, value in chosen.items())])
