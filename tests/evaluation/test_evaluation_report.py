"""Tables for people."""

import io

import numpy as np
from rich.console import Console
from tables import evaluated

from midigenre.evaluation.metrics import METRICS
from midigenre.evaluation.report import print_scores

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
    return {"genre": evaluated(log_probs_NC, TRUTH, SONGS, names, baselines)}


def printed(content, width=140, **more):
    console = Console(file=io.StringIO(), width=width)
    print_scores(content, console, **more)
    return console.file.getvalue()


def flat(text):
    return " ".join(text.split())


def row(text, name):
    """The first line of a table that begins with a name."""
    return next(line for line in text.splitlines() if f"│ {name}" in line)


def test_one_table_a_label_fits_on_a_screen():
    """Two labels, six baselines: what a run prints at its end must not scroll away."""
    content = evaluation(0.1)["genre"]
    for level in content.values():
        theirs = level["baselines"]["majority"]
        level["baselines"] = dict.fromkeys("abcdef", theirs)
    text = printed({"genre": content, "emotion": content})
    assert len(text.splitlines()) < 40
    for metric in METRICS.values():
        assert metric.title in text


def test_every_baseline_has_its_difference_and_a_mark_where_it_is_clear():
    text = printed(evaluation(0.1))
    assert "[bold]jazz" not in text  # classes are details
    low, high = evaluation(0.1)["genre"]["song"]["ci95"]["accuracy"]
    assert f"0.750 [{low:.3f}, {high:.3f}]" in row(text, "model ")
    assert "+0.650 [+0." in row(text, "majority")
    assert row(text, "majority").count("*") == len(METRICS)
    assert "*" not in row(printed(evaluation(0.725)), "majority")
    assert "no hist_gb baseline: it is gone" in text
    assert "beats" not in text


def cells(line):
    return [cell.strip() for cell in line.split("│")[1:-1]]


def test_a_narrow_terminal_has_a_table_for_each_metric():
    wide, narrow = printed(evaluation(0.1)), printed(evaluation(0.1), width=80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert narrow.count("model minus it") == len(METRICS) == wide.count("model minus it")
    for name in ("model ", "model, of phrases", "majority"):
        whole = cells(row(wide, name))
        folded = [cells(line) for line in narrow.splitlines() if f"│ {name}" in line]
        assert folded == [whole[:1] + whole[i : i + 2] for i in range(1, len(whole), 2)]
    assert narrow.count("excludes 0") == wide.count("excludes 0") == 1


def test_only_a_baseline_that_is_clearly_better_beats_the_model():
    text = flat(printed(evaluation(0.95)))
    assert "songs: a baseline beats the model: majority on accuracy, majority on macro-F1" in text
    for level_with_the_model in (0.75, 0.775):
        assert "beats" not in printed(evaluation(level_with_the_model))


def test_few_songs_are_said_to_be_few():
    for n, said in ((3, "only 3 test songs: intervals"), (20, None)):
        songs = np.arange(n)
        log_probs_NC = np.log(np.where(np.eye(2), 0.9, 0.1)[songs % 2])
        content = evaluated(log_probs_NC, songs % 2, songs, ["a", "b"])
        assert content["song"]["ci95"]["accuracy"] == [1, 1]
        text = flat(printed({"genre": content}))
        assert said in text and "protocol=crossval" in text if said else "only" not in text


def test_details_are_the_classes_and_the_phrases():
    text = printed(evaluation(0.1), details=True)
    for word in ("[bold]jazz", "a|b", "support", "precision", "scores of phrases"):
        assert word in text
    assert text.count("never") == 1
    assert "genre: no song here has 'never': left out of tables and figures" in text


def test_default_console_is_stderr(capsys):
    print_scores(evaluation(0.1))
    captured = capsys.readouterr()
    assert not captured.out
    assert "genre" in captured.err


def test_no_scores_at_all():
    content = {"genre": evaluated(np.zeros((1, 1)), [-1], [0], ["only"])}
    assert "only" in printed(content, details=True)


def test_confidence_and_sources_have_lines_and_losses_are_named():
    log_probs_NC = np.log(np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]])[right_on(0.5)])
    baselines = {
        "phrase": {"source_majority": np.zeros(80, int), "hist_gb": right_on(0.9)},
        "song": {"source_majority": np.zeros(40, int), "hist_gb": right_on(0.9)[::2]},
    }
    content = {
        "genre": evaluated(
            log_probs_NC, TRUTH, SONGS, ["a", "b", "c"], baselines,
            source=np.array(["nott", "groove"])[SONGS // 20], allowed=np.ones((80, 3), bool),
            temperatures={"phrase": 1.5, "song": 2.0},
        )
    }  # fmt: skip
    text = printed(content, details=True)
    assert "…" not in text  # nothing is cut off
    assert "best baseline" in text
    assert "20" in row(text, "nott")
    song = content["genre"]["song"]
    assert f"ECE {song['ece']:.3f}, {song['calibrated']['ece']:.3f} at the temp" in flat(text)
    assert "songs within a source: a baseline beats the model: hist_gb on" in flat(text)
