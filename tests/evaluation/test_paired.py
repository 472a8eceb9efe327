"""Runs compared song by song."""

import csv
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from test_compare import write_run

from midigenre.errors import UserError
from midigenre.evaluation.bootstrap import paired_bootstrap
from midigenre.evaluation.compare import (
    Paired,
    compare,
    find_runs,
    mcnemar,
    pair_up,
    to_markdown,
    to_records,
)

N = 200
RNG = np.random.default_rng(0)
TRUTH = RNG.choice(["jazz", "rock", "pop"], N)


def guesses(share, seed):
    """Right on about this share of the songs."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(N) < share, TRUTH, rng.choice(["jazz", "rock", "pop"], N))


def add_songs(folder, predicted, truth=TRUTH, order=slice(None), pieces=None):
    with (folder / "predictions_songs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["song_id", "genre", "genre_model"] + ["piece"] * (pieces is not None))
        ids = [f"s{i:03}" for i in range(len(truth))]
        more = [] if pieces is None else [pieces]
        writer.writerows(list(zip(ids, truth, predicted, *more, strict=True))[order])
        writer.writerow(["without a label", "", "rock"] + ["x"] * len(more))


def test_songs_of_a_piece_are_drawn_and_counted_together(tmp_path):
    """Five copies of each song in one piece: the pairing is that of the songs alone."""
    once = np.arange(40)
    copies = np.repeat(once, 5)
    first, second = guesses(0.9, 1)[:40], guesses(0.6, 2)[:40]
    found = {}
    for kind, rows, pieces in (
        ("alone", once, None),
        ("copies", copies, [f"p{i:02}" for i in copies]),
    ):
        for name, predicted in (("a", first), ("b", second)):
            folder = tmp_path / kind / name
            write_run(folder, 0.5, **({"trainer__max_epochs": 9} if name == "b" else {}))
            add_songs(folder, predicted[rows], TRUTH[:40][rows], pieces=pieces)
        found[kind] = compare(find_runs([tmp_path / kind])[0]).rows[1].paired["genre"]
    assert found["copies"].ci95 == pytest.approx(found["alone"].ci95)
    assert found["copies"].p == found["alone"].p
    assert found["copies"].mcnemar_p == found["alone"].mcnemar_p


def made(folder, name, share, seed=0, **more):
    write_run(folder / name, share, song=share, seed=seed, **more)
    predicted = guesses(share, hash((share, seed)) % 1000)
    add_songs(folder / name, predicted)
    return predicted


def test_one_pair_is_the_paired_bootstrap_of_its_songs(tmp_path):
    best = made(tmp_path, "a", 0.9)
    other = made(tmp_path, "b", 0.4, trainer__max_epochs=9)
    comparison = compare(find_runs([tmp_path])[0])
    a, b = comparison.rows
    assert a.paired == {"genre": None}
    expected = paired_bootstrap(TRUTH, other, best, np.arange(N))["macro_f1"]
    found = b.paired["genre"]
    assert found.difference == pytest.approx(expected["difference"])
    assert found.ci95 == pytest.approx(expected["ci95"])
    assert found.p == pytest.approx(expected["p"])
    assert found.n_songs == N
    assert found.is_clear
    up, down = (
        ((other == TRUTH) & (best != TRUTH)).sum(),
        ((other != TRUTH) & (best == TRUTH)).sum(),
    )
    exact = binomtest(int(up), int(up + down)).pvalue
    assert 0 <= found.mcnemar_p <= exact
    assert "| reference |" in to_markdown(comparison)
    records, columns = to_records(comparison)
    assert set(records[1]) <= set(columns)
    assert records[1]["paired/genre/difference"] == found.difference
    assert records[0]["paired/genre/difference"] is None
    assert Path(records[1]["paired/genre/against"]).name == "a"


def test_equal_runs_are_told_to_be_alike(tmp_path):
    same = made(tmp_path, "a", 0.8)
    write_run(tmp_path / "b", 0.8, trainer__max_epochs=9)
    add_songs(tmp_path / "b", same, order=slice(None, None, -1))  # in another order
    comparison = compare(find_runs([tmp_path])[0])
    (found,) = [row.paired["genre"] for row in comparison.rows if row.paired["genre"] is not None]
    assert (found.difference, found.ci95, found.p, found.mcnemar_p) == (0, (0, 0), 1, 1)
    assert any("not clearly different" in note for note in comparison.notes)


def test_versus_names_the_reference(tmp_path):
    for name, share, epochs in (("a", 0.9, 1), ("b", 0.5, 2), ("c", 0.3, 3)):
        made(tmp_path, name, share, trainer__max_epochs=epochs)
    runs, _ = find_runs([tmp_path])
    comparison = compare(runs, versus=tmp_path / "b")
    a, b, c = (row.paired["genre"] for row in comparison.rows)
    assert b is None
    assert a.difference > 0 > c.difference
    with pytest.raises(UserError, match="versus="):
        compare(runs, versus=tmp_path / "d")


def test_seeds_are_paired_and_averaged(tmp_path):
    ours = {s: made(tmp_path, f"a{s}", 0.85, seed=s) for s in (1, 2)}
    theirs = {s: made(tmp_path, f"b{s}", 0.6, seed=s, trainer__max_epochs=9) for s in (1, 2, 3)}
    rows = compare(find_runs([tmp_path])[0]).rows
    (found,) = [row.paired["genre"] for row in rows if row.paired["genre"] is not None]
    assert found.n_seeds == (2, 2)  # the third seed has no partner
    of_seed = [
        paired_bootstrap(TRUTH, theirs[s], ours[s], np.arange(N))["macro_f1"]["difference"]
        for s in (1, 2)
    ]
    assert found.difference == pytest.approx(np.mean(of_seed))
    assert found.ci95[0] < found.difference < found.ci95[1] < 0


def test_seeds_that_neither_shares_all_count(tmp_path):
    made(tmp_path, "a", 0.85, seed=1)
    for seed in (2, 3):
        made(tmp_path, f"b{seed}", 0.6, seed=seed, trainer__max_epochs=9)
    rows = compare(find_runs([tmp_path])[0]).rows
    assert [row.paired["genre"].n_seeds for row in rows if row.paired["genre"]] == [(2, 1)]


def test_runs_that_cannot_be_paired_say_why(tmp_path):
    made(tmp_path, "a", 0.9)
    write_run(tmp_path / "b", 0.5, trainer__max_epochs=2)
    write_run(tmp_path / "c", 0.5, trainer__max_epochs=3)
    add_songs(tmp_path / "c", guesses(0.5, 1)[:50], TRUTH[:50])
    write_run(tmp_path / "d", 0.5, trainer__max_epochs=4)
    (tmp_path / "d" / "predictions_songs.csv").write_text("song_id,emotion\ns000,Q1\n")
    write_run(tmp_path / "e", 0.5, trainer__max_epochs=5)
    add_songs(tmp_path / "e", guesses(0.5, 1)[:50], TRUTH[:50])
    comparison = compare(find_runs([tmp_path])[0])
    a, b, c, d, e = (row.paired["genre"] for row in comparison.rows)
    assert a is None
    assert b == "no predictions_songs.csv"
    assert c == e == f"tested on other songs than {tmp_path / 'a'}"
    assert "no column 'genre'" in d
    (note,) = [note for note in comparison.notes if "not compared in pairs" in note]
    assert all(name in note for name in ("/b (", f"/c, {tmp_path / 'e'} (", "/d ("))
    assert "| – |" in to_markdown(comparison)


def test_a_table_of_one_row_compares_nothing(tmp_path):
    made(tmp_path, "a", 0.9)
    comparison = compare(find_runs([tmp_path])[0])
    assert comparison.rows[0].paired == {}
    assert "difference" not in to_markdown(comparison)


@pytest.mark.parametrize(
    ("up", "down", "expected"),
    [
        # Two-sided exact p minus the probability of the table itself (Fagerland et al. 2013).
        (1, 5, 2 * (1 + 6) / 64 - 6 / 64),
        (0, 4, 2 / 16 - 1 / 16),
        (3, 3, 1 - 20 / 64 / 2),
        (0, 0, 1.0),
    ],
)
def test_mid_p_by_hand(up, down, expected):
    first = np.r_[np.ones(up), np.zeros(down), np.ones(7)]
    second = np.r_[np.zeros(up), np.ones(down), np.ones(7)]
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(second, first) == pytest.approx(expected)


def test_under_the_null_few_pairs_differ(tmp_path):
    """Two models of equal skill: the mid-p is below 0.05 in about one of twenty cases."""
    rng = np.random.default_rng(0)
    right = rng.random((400, 2, 150)) < 0.7
    low = np.mean([mcnemar(*pair) < 0.05 for pair in right])
    assert 0.01 < low < 0.08


def test_a_table_of_many_runs_is_quick(tmp_path):
    made(tmp_path, "a", 0.9)
    (run,), _ = find_runs([tmp_path])
    groups = [[replace(run, settings={**run.settings, "seed": s}) for s in range(3)]] * 8
    started = time.perf_counter()
    _, found = pair_up(groups, "genre", "macro_f1")
    assert time.perf_counter() - started < 10  # well under a second on an idle core
    assert sum(isinstance(pair, Paired) for pair in found) == 7
