"""Tables for people."""

import io

import numpy as np
from rich.console import Console

from midigenre.evaluation.report import print_scores, scores_markdown
from midigenre.evaluation.scores import evaluate_label


def evaluation(majority):
    log_probs_NC = np.log([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.2, 0.2], [0.3, 0.6, 0.1]])
    names = ["[bold]jazz", "a|b", "never"]
    baselines = {
        level: {"majority": {"accuracy": majority, "macro_f1": majority}, "hist_gb": "it is gone"}
        for level in ("phrase", "song")
    }
    return {"genre": evaluate_label(log_probs_NC, [0, 1, 1, -1], [0, 1, 1, 2], names, baselines)}


def printed(content):
    console = Console(file=io.StringIO(), width=120)
    print_scores(content, console)
    return console.file.getvalue()


def test_console_tables():
    text = printed(evaluation(0.1))
    for word in ("[bold]jazz", "a|b", "support", "precision", "0.667", "95 %", "majority", "song"):
        assert word in text
    assert "beats" not in text
    assert "no hist_gb baseline: it is gone" in text
    assert "–" in text  # recall of a class without support


def test_a_winning_baseline_is_named():
    text = printed(evaluation(0.99))
    assert "phrase level: the majority baseline beats the model on macro-F1 (0.990" in text
    assert "the majority baseline beats the model on accuracy" in scores_markdown(evaluation(0.99))


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
