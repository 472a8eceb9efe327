"""Tables for people."""

import io

import numpy as np
from rich.console import Console

from midigenre.evaluation.report import print_scores, scores_markdown
from midigenre.evaluation.scores import evaluate_label
from midigenre.evaluation.within import Sources

SONGS = np.repeat(np.arange(40), 2)
TRUTH = SONGS % 2


def right_on(share):
    """Predictions that are right on the first songs."""
    return np.where(share * 40 > SONGS, TRUTH, 1 - TRUTH)


def evaluation(theirs, ours=0.75):
    """A model and a baseline that are right on these shares of the songs."""
    log_probs_NC = np.log(np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]])[right_on(ours)])
    names = ["[bold]jazz", "a|b", "never"]
    baselines = {
        "phrase": {"majority": right_on(theirs), "hist_gb": "it is gone"},
        "song": {"majority": right_on(theirs)[::2], "hist_gb": "it is gone"},
    }
    return {"genre": evaluate_label(log_probs_NC, TRUTH, SONGS, names, baselines)}


def printed(content):
    console = Console(file=io.StringIO(), width=120)
    print_scores(content, console)
    return console.file.getvalue()


def test_console_tables():
    text = printed(evaluation(0.1))
    for word in ("[bold]jazz", "a|b", "support", "precision", "0.750", "95 %", "majority", "song"):
        assert word in text
    assert "the model" not in text  # no note
    assert "no hist_gb baseline: it is gone" in text


def test_a_class_that_nothing_is_or_is_taken_for_is_named_once():
    text = printed(evaluation(0.1))
    assert text.count("never") == 1
    assert "genre: no song here has 'never': left out of tables and figures" in text


def test_a_winning_baseline_is_named():
    text = " ".join(printed(evaluation(0.95)).split())
    assert (
        "phrase level: the majority baseline beats the model on macro-F1 (0.950 against 0.750; "
        "model minus baseline -0.200, 95 % interval -0.3"
    ) in text
    assert "the majority baseline beats the model on accuracy" in scores_markdown(evaluation(0.95))


def test_a_baseline_within_chance_is_named():
    text = " ".join(printed(evaluation(0.725)).split())
    assert "song level: the majority baseline is not clearly beaten by the model on" in text
    assert "the majority baseline equals the model on accuracy" in scores_markdown(evaluation(0.75))


def test_default_console_is_stderr(capsys):
    print_scores(evaluation(0.1))
    captured = capsys.readouterr()
    assert not captured.out
    assert "genre" in captured.err


def test_markdown_tables_are_rectangular():
    text = scores_markdown(evaluation(0.1))
    for block in text.split("\n\n"):
        lines = [line.replace("\\|", "") for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    assert "a\\|b" in text
    assert text.endswith("\n")


def test_no_scores_at_all():
    content = {"genre": evaluate_label(np.zeros((1, 1)), [-1], [0], ["only"])}
    assert "only" in printed(content)
    assert "only" in scores_markdown(content)


def within():
    """The same with sources: two of both classes, and a baseline that knows them."""
    log_probs_NC = np.log(np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]])[right_on(0.5)])
    sources = Sources(np.array(["nott", "groove"], object)[SONGS // 20], np.ones((80, 3), bool))
    baselines = {
        "phrase": {"source_majority": np.zeros(80, int), "hist_gb": right_on(0.9)},
        "song": {"source_majority": np.zeros(40, int), "hist_gb": right_on(0.9)[::2]},
    }
    return {
        "genre": evaluate_label(
            log_probs_NC, TRUTH, SONGS, ["a", "b", "c"], baselines, sources=sources,
            temperatures={"phrase": 1.5, "song": 2.0},
        )
    }  # fmt: skip


def test_confidence_and_sources_have_tables_and_losses_are_told():
    content = within()
    console = Console(file=io.StringIO(), width=84)
    print_scores(content, console)
    text = console.file.getvalue()
    assert "…" not in text  # nothing is cut off
    for word in ("ROC-AUC", "calibrated", "nott", "groove", "all", "told", "majority"):
        assert word in text
    flat = " ".join(text.split())
    assert "genre, songs within a source: the hist_gb baseline beats the model on macro-F1" in flat
    markdown = scores_markdown(content)
    assert "| nott | 20 |" in markdown
    song = content["genre"]["song"]
    assert f"{song['calibrated']['ece']:.3f}" in markdown


def test_an_evaluation_from_before_there_was_calibration_is_printed():
    content = evaluation(0.1)
    for levels in content["genre"].values():
        for key in ("roc_auc", "nll", "brier", "calibrated", "reliability", "abstention"):
            del levels[key]
    assert "ROC-AUC" not in printed(content)
    assert "macro-F1" in scores_markdown(content)
