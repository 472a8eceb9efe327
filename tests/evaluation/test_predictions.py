"""Tables of predictions say exactly what the scores count."""

from dataclasses import replace

import numpy as np
import pytest
from tables import levels_of

from midigenre.data.splits import Fold
from midigenre.errors import UserError
from midigenre.evaluation.bootstrap import paired_bootstrap
from midigenre.evaluation.crossval import PartRun, by_part, pool
from midigenre.evaluation.predictions import (
    TABLES_FILE,
    concat,
    pieces_of,
    read_tables,
    write_predictions,
    write_tables,
)
from midigenre.evaluation.scores import evaluate
from midigenre.files import read_csv, write_json

CLASSES = ("jazz, swing", 'the "blues"', "rock")


def made(seed=0, first=0, **more):
    """The tables of 30 songs of four phrases each."""
    rng = np.random.default_rng(seed)
    songs = np.repeat(np.arange(30) + first, 4)
    truth = np.repeat(rng.integers(-1, 3, 30), 4)
    logits = rng.normal(size=(120, 3)) + 2 * np.eye(3)[truth]
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    baselines = {
        level: {"hist_gb": rng.integers(0, 3, n), "metadata": "one class only"}
        for level, n in (("phrase", 120), ("song", 30))
    }
    levels = levels_of(log_probs, truth, songs, CLASSES, baselines, **more)
    ids = np.array([f"song {i:02}" for i in songs], object)
    bars = {"first_bar": np.tile([0, 4, 8, 12], 30)}
    return {
        "phrase": replace(levels["phrase"], song_N=songs, where={"song_id": ids} | bars),
        "song": replace(levels["song"], song_N=songs[::4], where={"song_id": ids[::4]}),
    }


@pytest.fixture
def written(tmp_path):
    levels = made()
    path = tmp_path / "predictions.csv"
    write_predictions(path, {"genre": levels})
    assert len(read_csv(tmp_path / "predictions_songs.csv")) == 30
    phrases = levels["phrase"]
    return read_csv(path), phrases.log_probs_NC, phrases.truth_N, evaluate(phrases, seed=2)


def test_columns_and_rows(written):
    rows, log_probs, truth, _ = written
    assert list(rows[0]) == [
        "song_id", "first_bar", "genre", "genre_model", "genre_hist_gb",
        *(f"genre_log_prob_{name}" for name in CLASSES),
    ]  # fmt: skip
    assert len(rows) == 120
    assert rows[5]["song_id"] == "song 01"
    assert rows[5]["first_bar"] == "4"
    assert [row["genre"] for row in rows] == [(*CLASSES, "")[t] for t in truth]
    for c, name in enumerate(CLASSES):
        values = [float(row[f"genre_log_prob_{name}"]) for row in rows]
        assert values == pytest.approx(log_probs[:, c], abs=1e-5)


def test_the_table_adds_up_to_the_confusion_matrix_and_the_comparison(written):
    rows, _, _, scores = written
    rows = [row for row in rows if row["genre"]]
    confusion = np.zeros((3, 3), int)
    for row in rows:
        confusion[CLASSES.index(row["genre"]), CLASSES.index(row["genre_model"])] += 1
    assert confusion.tolist() == scores["confusion"]
    columns = [[row[c] for row in rows] for c in ("genre", "genre_model", "genre_hist_gb")]
    found = paired_bootstrap(*columns, [row["song_id"] for row in rows], seed=2)
    theirs = scores["baselines"]["hist_gb"]
    for metric, values in found.items():
        assert values["second"] == theirs[metric]
        assert {k: values[k] for k in ("difference", "ci95", "p")} == theirs["versus_model"][metric]


def of_pieces(levels):
    """The tables with the level of pieces: songs 0 to 2, 3 to 5, ..., and the last three alone."""
    phrases, songs = levels["phrase"], levels["song"]
    first = np.where(songs.song_N < 27, songs.song_N // 3 * 3, songs.song_N)
    names = np.array([f"piece {i:02}" for i in first], object)
    songs = replace(songs, piece_N=first, where=songs.where | {"piece": names})
    phrases = replace(phrases, piece_N=np.repeat(first, 4))
    guesses = {"hist_gb": np.log(np.random.default_rng(3).dirichlet(np.ones(3), 30))}
    return {"phrase": phrases, "song": songs, "piece": pieces_of(songs, guesses)}, guesses


def test_a_piece_is_the_mean_of_its_songs():
    levels, guesses = of_pieces(made())
    songs, pieces = levels["song"], levels["piece"]
    assert pieces.song_N.tolist() == [*range(0, 27, 3), 27, 28, 29]
    assert pieces.where["piece"].tolist()[1] == "piece 03"
    for i, name in enumerate(pieces.song_N.tolist()):
        inside = songs.select(songs.piece_N == name)
        mean = inside.log_probs_NC.mean(0)
        assert pieces.log_probs_NC[i] == pytest.approx(mean - np.log(np.exp(mean).sum()))
        assert pieces.baselines["hist_gb"][i] == (
            guesses["hist_gb"][songs.piece_N == name].sum(0).argmax()
        )
        classes = {c for c in inside.truth_N.tolist() if c >= 0}
        assert pieces.truth_N[i] == (classes.pop() if len(classes) == 1 else -1)
    assert pieces.missing == {"metadata": "one class only"}
    assert evaluate(pieces)["n"] == (pieces.truth_N >= 0).sum()


def test_intervals_are_over_pieces():
    """Copies of a song in its piece say nothing new: the interval is that of the songs alone."""
    songs = made()["song"]
    known = songs.select(songs.truth_N >= 0)
    copies = known.select(np.repeat(np.arange(len(known)), 5))
    alone, copied = evaluate(known), evaluate(copies)
    for score in ("accuracy", "macro_f1"):
        assert copied["ci95"][score] == pytest.approx(alone["ci95"][score])
        of = [found["baselines"]["hist_gb"]["versus_model"][score] for found in (alone, copied)]
        assert of[0]["ci95"] == pytest.approx(of[1]["ci95"])
    assert copied["ci95"]["roc_auc"] == pytest.approx(alone["ci95"]["roc_auc"])
    assert (copied["n"], copied["n_pieces"]) == (5 * len(known), len(known))
    apart = evaluate(replace(copies, piece_N=np.arange(len(copies))))
    wide, narrow = (of["baselines"]["hist_gb"]["ci95"]["accuracy"] for of in (copied, apart))
    assert 0 < np.ptp(narrow) < 0.6 * np.ptp(wide)


def test_pieces_come_back_and_have_a_csv(tmp_path):
    levels, _ = of_pieces(made())
    write_tables(tmp_path / "p.npz", {"genre": levels, "emotion": made(1)})
    found = read_tables(tmp_path / "p.npz", ["genre", "emotion"])
    assert_same(found["genre"]["piece"], levels["piece"])
    assert list(found["emotion"]) == ["phrase", "song"]
    write_predictions(tmp_path / "a-test.csv", {"genre": levels})
    rows = read_csv(tmp_path / "a-test_pieces.csv")
    assert [row["piece"] for row in rows] == levels["piece"].where["piece"].tolist()
    assert "song_id" not in rows[0]
    assert read_csv(tmp_path / "a-test_songs.csv")[4]["piece"] == "piece 03"


def assert_same(one, other):
    for name, column in one._columns().items():
        assert np.array_equal(column, other._columns()[name]), name
    assert (one.classes, one.missing) == (other.classes, other.missing)


def test_tables_come_back_in_full_precision(tmp_path):
    tables = {"genre": made(temperatures={"phrase": 1.3, "song": 0.7}), "emotion": made(1)}
    write_tables(tmp_path / "p.npz", tables)
    found = read_tables(tmp_path / "p.npz", ["genre", "emotion"])
    for label, levels in tables.items():
        for level, table in levels.items():
            assert_same(table, found[label][level])
    first = (tmp_path / "p.npz").read_bytes()
    write_tables(tmp_path / "p.npz", tables)
    assert (tmp_path / "p.npz").read_bytes() == first
    (tmp_path / "p.npz").write_bytes(first[:500])
    with pytest.raises(UserError, match=r"p\.npz cannot be read"):
        read_tables(tmp_path / "p.npz", ["genre"])


def test_joined_tables_score_as_one():
    later, earlier = (made(seed, first)["phrase"] for seed, first in ((0, 30), (1, 0)))
    joined = concat([later, earlier], ["b", "a"])
    assert joined.song_N.tolist() == sorted(joined.song_N.tolist())
    assert (joined.where["part"][:120] == "a").all()
    assert_same(joined.select(joined.where["part"] == "a"), concat([earlier], ["a"]))
    for name, table in (("a", earlier), ("b", later)):
        assert evaluate(table)["macro_f1"] == by_part(joined)[name]["macro_f1"]
    # What one lacks is left out, with the reason.
    alone = replace(later, baselines={}, temperature_N=np.ones(120))
    found = concat([later, alone], ["a", "b"])
    assert found.missing == {"hist_gb": "not fitted in b", "metadata": "one class only"}
    assert found.temperature_N is None


def test_a_part_of_another_split_is_noticed(tmp_path):
    """Of a folder that a person has put there, whose songs another part may test, too."""
    runs = []
    for number, first in ((1, 0), (2, 30)):
        rows = {"test": np.arange(30) + first}
        run = PartRun(number, Fold(f"fold-{number}-of-2", rows), tmp_path / str(number))
        run.folder.mkdir()
        write_json(run.folder / "evaluation.json", {"genre": {"phrase": {}, "song": {}}})
        write_tables(run.folder / TABLES_FILE, {"genre": made(number, first=first)})
        runs.append(run)
    assert pool(runs, tmp_path)["genre"]["song"]["parts"][1]["part"] == 2
    joined = read_tables(tmp_path / TABLES_FILE, ["genre"])["genre"]["song"]
    assert set(joined.where["part"]) == {"fold-1-of-2", "fold-2-of-2"}
    write_tables(runs[1].folder / TABLES_FILE, {"genre": made(2, first=29)})
    with pytest.raises(UserError, match=r"2 has tested songs that fold-2-of-2 does not test"):
        pool(runs, tmp_path)
