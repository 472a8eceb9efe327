"""Comparing runs: folders written by hand, numbers computed apart."""

import json
import os

import numpy as np
import pytest

from midigenre.errors import UserError
from midigenre.evaluation.compare import compare, find_runs, to_markdown, to_records

# Quantiles of Student's t from printed tables (two-sided 95 %, n - 1 degrees of freedom).
T975 = {3: 4.303, 4: 3.182}


def level(score, n, baseline=0.2):
    return {
        "n": n, "accuracy": score + 0.01, "macro_f1": score,
        "ci95": {"accuracy": [score - 0.1, score + 0.1], "macro_f1": [score - 0.2, score + 0.05]},
        "baselines": {"majority": {"accuracy": 0.3, "macro_f1": 0.1},
                      "hist_gb": {"accuracy": 0.25, "macro_f1": baseline}, "ngram_lr": None},
    }  # fmt: skip


def write_run(folder, phrase, song=0.9, labels=("genre",), n=100, when=None, **settings):
    config = {
        "name": "x", "home": str(folder), "seed": 0, "split": {"seed": 0}, "n_workers": None,
        "corpus": {"_target_": "midigenre.corpora.toy.Toy", "limit": None},
        "tokenizer": {"_target_": "a.B", "name": "remi", "cls": "REMI", "params": {"x": 1}},
        "model": {"_target_": "a.B", "name": "tiny", "d_model": 128, "lr": 0.001},
        "task": {"name": "genre"}, "optim": {"_target_": "a.B", "lr": None},
        "precision": {"precision": "32-true"}, "trainer": {"devices": 1, "max_epochs": 6},
        "logger": {"csv": {"name": str(folder)}},
    }  # fmt: skip
    for key, value in settings.items():
        group, _, name = key.partition("__")
        if name:
            config[group][name] = value
        else:
            config[group] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    evaluation = {lab: {"phrase": level(phrase, n), "song": level(song, 10)} for lab in labels}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "metrics.json").write_text(json.dumps({"parameters": 1000}))
    if when is not None:
        os.utime(folder / "metrics.json", (when, when))
    cost = {"parameters": 1000, "fit_seconds": 10 + 100 * phrase, "train_tokens": 5000}
    (folder / "cost.json").write_text(json.dumps(cost))


def table_of(folder, **options):
    runs, unfinished = find_runs([folder])
    assert unfinished == []
    return compare(runs, **options)


PHRASE = "test/genre/phrase/macro_f1"


@pytest.mark.parametrize("values", [(0.5, 0.6, 0.65), (0.81, 0.82, 0.85, 0.8)])
def test_seeds_fold_into_mean_and_t_interval(values, tmp_path):
    for seed, value in enumerate(values):
        write_run(tmp_path / str(seed), value, seed=seed)
    comparison = table_of(tmp_path)
    (row,) = comparison.rows
    score = row.scores[PHRASE]
    half = T975[len(values)] * np.std(values, ddof=1) / np.sqrt(len(values))
    assert score.mean == pytest.approx(np.mean(values))
    assert score.low == pytest.approx(np.mean(values) - half, rel=1e-3)
    assert score.high == pytest.approx(np.mean(values) + half, rel=1e-3)
    assert (score.over, len(row.runs)) == ("seeds", len(values))
    assert row.costs["fit_seconds"] == pytest.approx(np.mean([10 + 100 * v for v in values]))
    assert comparison.settings == ()


@pytest.mark.parametrize("values", [(0.738, 1.0), (0.1, 0.9, 1.0), (0.0, 0.0, 0.4)])
def test_no_interval_leaves_the_range_of_the_score(values, tmp_path):
    for seed, value in enumerate(values):
        write_run(tmp_path / str(seed), value, seed=seed)
    comparison = table_of(tmp_path, levels=["phrase"])
    text, ((record,), _) = to_markdown(comparison), to_records(comparison)
    ends = record[f"{PHRASE}/low"], record[f"{PHRASE}/high"]
    if len(values) == 2:
        assert "| 0.869 (0.738, 1.000) |" in text
        assert "two seeds say too little for an interval" in text
        assert ends == (None, None)
    else:
        assert 0 in ends or 1 in ends
        assert 0 <= ends[0] < np.mean(values) < ends[1] <= 1
        assert rf"\[{ends[0]:.3f}, {ends[1]:.3f}] |" in text
        assert "cut to 0 to 1" in text
    assert (record["seeds"], record[f"{PHRASE}/over"]) == (len(values), "seeds")


def test_a_single_seed_has_the_bootstrap_interval_and_says_so(tmp_path):
    write_run(tmp_path / "a", 0.75)
    comparison = table_of(tmp_path)
    score = comparison.rows[0].scores[PHRASE]
    assert (score.low, score.high, score.over) == (pytest.approx(0.55), pytest.approx(0.8), "songs")
    assert r"0.750 \[0.550, 0.800]\*" in to_markdown(comparison)
    assert "bootstrap interval over the test songs" in to_markdown(comparison)


def test_only_settings_that_differ_are_shown(tmp_path):
    write_run(tmp_path / "a", 0.5, trainer__max_epochs=6)
    write_run(tmp_path / "b", 0.6, trainer__max_epochs=9, trainer__devices=[3])
    comparison = table_of(tmp_path)
    assert comparison.settings == ("trainer.max_epochs",)
    assert len(comparison.rows) == 2


def test_a_setting_that_a_run_lacks_is_one_that_is_not_set(tmp_path):
    write_run(tmp_path / "a", 0.5)
    write_run(tmp_path / "b", 0.5, trainer__max_time=None, fold=None)
    write_run(tmp_path / "c", 0.5, trainer__y=0)
    assert table_of(tmp_path).settings == ("trainer.y",)


def test_a_choice_as_shipped_is_told_by_its_name_alone(tmp_path):
    octuple = {"_target_": "a.B", "name": "octuple", "cls": "Octuple", "params": {"x": 2}}
    write_run(tmp_path / "a", 0.5)
    write_run(tmp_path / "b", 0.6, tokenizer=octuple)
    own = {"remi": {"tokenizer.cls": "REMI", "tokenizer.params.x": 1},
           "octuple": {"tokenizer.cls": "Octuple", "tokenizer.params.x": 2}}  # fmt: skip

    def shipped(group, choice):
        return own.get(choice, {})

    assert table_of(tmp_path, shipped=shipped).settings == ("tokenizer",)
    # An override of the choice is no longer told by the name.
    write_run(tmp_path / "c", 0.6, tokenizer=octuple | {"params": {"x": 5}})
    assert table_of(tmp_path, shipped=shipped).settings == ("tokenizer", "tokenizer.params.x")


def test_the_learning_rate_is_the_one_that_was_used(tmp_path):
    write_run(tmp_path / "a", 0.5)
    write_run(tmp_path / "b", 0.6, optim__lr=0.01)
    write_run(tmp_path / "c", 0.6, optim__lr=0.001, seed=1)  # the model's own, given by hand
    comparison = table_of(tmp_path)
    assert comparison.settings == ("optim.lr",)
    assert {r.settings["optim.lr"]: len(r.runs) for r in comparison.rows} == {0.001: 2, 0.01: 1}


def test_optimizers_with_equal_settings_are_no_seeds_of_one_row(tmp_path):
    for seed, name in enumerate(("AdamW", "Muon")):
        target = f"midigenre.tasks.optim.{name}Settings"
        write_run(tmp_path / name, 0.5, seed=seed, optim={"_target_": target, "lr": None})
    comparison = table_of(tmp_path)
    assert comparison.settings == ("optim",)
    assert {row.settings["optim"] for row in comparison.rows} == {"adamw", "muon"}


def test_the_best_baseline_stands_beside_each_score(tmp_path):
    write_run(tmp_path / "a", 0.15)
    comparison = table_of(tmp_path)
    score = comparison.rows[0].scores[PHRASE]
    assert (score.baseline_name, score.baseline) == ("hist_gb", 0.2)
    # By accuracy another one is the best.
    by_accuracy = table_of(tmp_path, metric="accuracy")
    assert by_accuracy.rows[0].scores["test/genre/phrase/accuracy"].baseline_name == "majority"
    assert comparison.notes == (
        f"{PHRASE}: a baseline (hist_gb) is as good as or better than 1 of 1 configuration",
    )


def test_other_test_sets_are_flagged(tmp_path):
    write_run(tmp_path / "a", 0.5)
    write_run(tmp_path / "b", 0.6, seed=1)
    assert table_of(tmp_path).n_test_sets == 1
    write_run(tmp_path / "c", 0.6, split={"seed": 1})
    write_run(tmp_path / "d", 0.6, n=101)
    comparison = table_of(tmp_path)
    assert comparison.n_test_sets == 3
    assert "3 different test sets" in comparison.notes[0]
    assert "| split.seed | test set |" in to_markdown(comparison)


def test_a_repeated_seed_counts_once(tmp_path):
    write_run(tmp_path / "a", 0.5, when=2000)
    write_run(tmp_path / "b", 0.7, when=1000)
    write_run(tmp_path / "c", 0.9, seed=1)
    comparison = table_of(tmp_path)
    assert comparison.rows[0].scores[PHRASE].mean == pytest.approx(0.7)  # of 0.5 and 0.9
    assert any("1 run repeats a seed" in note for note in comparison.notes)


def test_sorting(tmp_path):
    for name, value, epochs in (("a", 0.5, 9), ("b", 0.8, 10), ("c", 0.6, 2)):
        write_run(tmp_path / name, value, trainer__max_epochs=epochs)
    comparison = table_of(tmp_path)

    def order(column):
        return [row.runs[0].folder.name for row in comparison.sorted_by(column).rows]

    assert order(None) == order(PHRASE) == ["b", "c", "a"]
    assert order("fit_seconds") == ["a", "c", "b"]
    assert order("trainer.max_epochs") == ["c", "a", "b"]
    with pytest.raises(UserError, match=r"sort=loss.*test/genre/phrase/macro_f1.*fit_seconds"):
        comparison.sorted_by("loss")


def test_runs_of_several_tasks(tmp_path):
    write_run(tmp_path / "a", 0.5)
    write_run(tmp_path / "b", 0.6, labels=("genre", "emotion"), task={"name": "genre_emotion"})
    comparison = table_of(tmp_path)
    assert len(comparison.columns) == 4
    text = to_markdown(comparison.sorted_by("test/emotion/song/macro_f1"))
    assert text.index("genre\\_emotion") < text.index("– | – | –")
    (genre,) = [row for row in comparison.rows if row.settings["task"] == "genre"]
    assert genre.costs == {"fit_seconds": 60, "train_tokens": 5000, "parameters": 1000}
    assert table_of(tmp_path, labels=["emotion"], levels=["song"]).columns == (
        "test/emotion/song/macro_f1",
    )
    with pytest.raises(UserError, match=r"label=mood.*genre, emotion"):
        table_of(tmp_path, labels=["mood"])


def test_names_cannot_break_the_table(tmp_path):
    write_run(tmp_path / "a", 0.5, corpus__limit="x|y\n*z*")
    write_run(tmp_path / "b", 0.6, corpus__limit="plain")
    lines = to_markdown(table_of(tmp_path)).splitlines()
    assert r"x\|y \*z\*" in "\n".join(lines)
    bars = {line.replace(r"\|", "").count("|") for line in lines if line.startswith("|")}
    assert len(bars) == 1


def test_records_are_not_rounded(tmp_path):
    write_run(tmp_path / "a", 0.123456789, trainer__max_epochs=3)
    write_run(tmp_path / "b", 0.2, trainer__max_epochs=4)
    records, columns = to_records(table_of(tmp_path))
    assert records[0][PHRASE] == 0.123456789
    assert records[0]["trainer.max_epochs"] == "3"
    assert all(set(record) <= set(columns) for record in records)


def test_unfinished_runs_tell_why(tmp_path):
    write_run(tmp_path / "done", 0.5)
    (tmp_path / "done" / "wandb").mkdir()
    (tmp_path / "done" / "wandb" / "config.yaml").write_text("not: ours")
    write_run(tmp_path / "stopped", 0.5)
    (tmp_path / "stopped" / "metrics.json").unlink()
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "failed.txt").write_text("out of memory\n\nTraceback ...")
    write_run(tmp_path / "damaged", 0.5)
    (tmp_path / "damaged" / "evaluation.json").write_text("{")
    runs, unfinished = find_runs([tmp_path, tmp_path / "done"])
    assert [run.folder.name for run in runs] == ["done"]
    reasons = {other.folder.name: other.reason for other in unfinished}
    assert set(reasons) == {"stopped", "failed", "damaged"}
    assert reasons["failed"] == "out of memory"
    assert "train resume=" in reasons["stopped"]
    assert "JSON" in reasons["damaged"]


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        find_runs([tmp_path])
    with pytest.raises(UserError, match="no such folder"):
        find_runs([tmp_path / "nothing"])


def write_pretrained(folder, seed, **settings):
    write_run(folder, 0.5, seed=seed, task__name="mlm", **settings)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").touch()
    return str(folder)


def test_seeds_of_a_recipe_that_pretrains_fold_into_one_row(tmp_path):
    started, scratch = tmp_path / "runs" / "started", tmp_path / "runs" / "scratch"
    for seed, (ours, theirs) in enumerate([(0.6, 0.5), (0.8, 0.5)]):
        source = write_pretrained(tmp_path / "mlm" / str(seed), seed)
        write_run(started / str(seed), ours, seed=seed, init_from=source)
        write_run(scratch / str(seed), theirs, seed=seed)
    comparison = table_of(tmp_path / "runs")
    assert [len(row.runs) for row in comparison.rows] == [2, 2]
    assert comparison.settings == ("init_from",)
    began = [row.settings.get("init_from") for row in comparison.rows]
    assert began == [None, f"{tmp_path}/mlm/0 and 1 more"]
    assert comparison.rows[1].scores[PHRASE].mean == pytest.approx(0.7)


def test_every_pair_of_seeds_counts_and_none_is_taken_for_a_repeat(tmp_path):
    sources = [write_pretrained(tmp_path / "mlm" / str(s), s) for s in range(3)]
    for i, source in enumerate(sources):
        for seed in range(2):
            write_run(tmp_path / "runs" / f"{i}{seed}", 0.5, seed=seed, init_from=source)
    comparison = table_of(tmp_path / "runs")
    assert [len(row.runs) for row in comparison.rows] == [6]
    assert not any("repeat a seed" in note for note in comparison.notes)


@pytest.mark.parametrize("other", [{"trainer__max_epochs": 7}, {"model__d_model": 64}])
def test_what_started_from_other_trainings_stays_apart(other, tmp_path):
    for seed, settings in enumerate([{}, other]):
        source = write_pretrained(tmp_path / "mlm" / str(seed), seed, **settings)
        write_run(tmp_path / "runs" / str(seed), 0.5, seed=seed, init_from=source)
    assert [len(row.runs) for row in table_of(tmp_path / "runs").rows] == [1, 1]


def test_a_chain_of_trainings_counts_as_a_whole(tmp_path):
    for seed, epochs in enumerate([6, 6, 7]):
        first = write_pretrained(tmp_path / "first" / str(seed), seed, trainer__max_epochs=epochs)
        then = write_pretrained(tmp_path / "then" / str(seed), 0, init_from=first)
        write_run(tmp_path / "runs" / str(seed), 0.5, seed=0, init_from=then)
    assert sorted(len(row.runs) for row in table_of(tmp_path / "runs").rows) == [1, 2]


def test_a_checkpoint_of_the_run_is_another_start_than_its_best(tmp_path):
    source = tmp_path / "mlm"
    best, last = write_pretrained(source, 0), source / "checkpoints" / "last.ckpt"
    last.touch()
    write_run(tmp_path / "runs" / "best", 0.5, seed=0, init_from=best)
    write_run(tmp_path / "runs" / "last", 0.5, seed=1, init_from=str(last))
    assert [len(row.runs) for row in table_of(tmp_path / "runs").rows] == [1, 1]


def test_a_start_that_is_gone_is_told_apart_by_its_path(tmp_path):
    for seed in range(2):
        write_run(tmp_path / "runs" / str(seed), 0.5, seed=seed, init_from=f"gone/{seed}")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.yaml").write_text("task: [")
    for seed in range(2):
        write_run(tmp_path / "runs" / f"d{seed}", 0.5, seed=seed, init_from=str(damaged))
    assert [len(row.runs) for row in table_of(tmp_path / "runs").rows] == [1, 1, 2]


def test_averaged_weights_are_a_setting(tmp_path):
    for decay in (None, 0.995):
        average = {"average": {"_target_": "a.B", "decay": decay}}
        write_run(tmp_path / "runs" / str(decay), 0.5, callbacks=average)
    comparison = table_of(tmp_path / "runs")
    assert comparison.settings == ("callbacks.average.decay",)
    assert len(comparison.rows) == 2


def test_a_run_that_starts_from_itself_ends(tmp_path):
    folder = tmp_path / "runs" / "a"
    write_run(folder, 0.5, init_from=str(folder))
    assert [len(row.runs) for row in table_of(tmp_path / "runs").rows] == [1]
