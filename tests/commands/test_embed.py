"""``midigenre embed``: what the table and the projector's folder hold, and what is rejected."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from google.protobuf import text_format
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from midigenre import load
from midigenre.corpora.toy import Toy


@pytest.fixture
def folder(home, tmp_path):
    """Songs in the folders of their genres, one outside, and two files that are none."""
    songs = sorted(song.path for song in Toy(n_songs=48).songs(home / "corpora").songs)
    there = tmp_path / "my [music]"
    for path in songs[::8]:
        (there / path.parent.name / "deeper").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, there / path.parent.name / "deeper")
    shutil.copy(songs[0], there / "a tab\there.mid")
    for name in ("bad.mid", "worse.mid"):
        (there / name).write_text("no music")
    return there


def test_the_table_holds_what_the_model_says(midigenre, toy_run, home, folder, tmp_path):
    out = tmp_path / "vectors.parquet"
    status, printed, err = midigenre("embed", f"run={toy_run}", f"out={out}", "--", str(folder))
    assert status == 0, err
    assert printed == f"{out}\n"
    assert "bad.mid: unreadable" in err
    assert "worse.mid: unreadable" in err
    table = pq.read_table(out)
    rows = table.to_pylist()
    assert table.schema.names == [
        "path", "first_bar", "end_bar", "genre", "genre_predicted", "genre_probability", "emotion",
        "emotion_predicted", "emotion_probability", "vector",
    ]  # fmt: skip
    songs = {row["path"]: row for row in rows if row["first_bar"] is None}
    files = [str(p) for p in folder.rglob("*.mid") if p.name not in ("bad.mid", "worse.mid")]
    assert set(songs) == set(files)
    assert err.splitlines()[-1].startswith(f"{out}: {len(songs)} songs, {len(rows) - len(songs)} ")
    model = load(home / toy_run)
    status, printed, _ = midigenre("predict", f"run={toy_run}", "--", str(folder))
    answers = {a["path"]: a for a in map(json.loads, printed.splitlines()) if "error" not in a}
    for path, song in songs.items():
        own, expected = model.embed(path), answers[path]
        mine = [row for row in rows if row["path"] == path and row is not song]
        assert [[row["first_bar"], row["end_bar"]] for row in mine] == own.bars.tolist()
        vectors_PD = np.array([row["vector"] for row in mine])
        np.testing.assert_allclose(vectors_PD, own.phrases, atol=1e-5)
        np.testing.assert_allclose(song["vector"], vectors_PD.mean(0), atol=1e-6)
        for row, about in zip((song, *mine), (expected, *expected["phrases"]), strict=True):
            for label in ("genre", "emotion"):
                assert row[f"{label}_predicted"] == about[label]
                best = max(about["probabilities"][label].values())
                assert row[f"{label}_probability"] == pytest.approx(best)
            genre = path.removeprefix(f"{folder}/").partition("/")
            assert row["genre"] == (genre[0] if genre[1] else None)
            assert row["emotion"] is None


def test_tensorboard_shows_the_same(midigenre, toy_run, folder, tmp_path):
    out = tmp_path / "vectors.parquet"
    status, _, err = midigenre("embed", f"run={toy_run}", f"out={out}", "--", str(folder))
    assert status == 0, err
    beside = tmp_path / "vectors-projector"
    config = text_format.Parse((beside / "projector_config.pbtxt").read_text(), ProjectorConfig())
    assert [e.tensor_name for e in config.embeddings] == ["songs", "phrases"]
    rows = pq.read_table(out).to_pylist()
    for embedding, is_song in zip(config.embeddings, (True, False), strict=True):
        expected = [row for row in rows if (row["first_bar"] is None) == is_song]
        vectors = np.loadtxt(beside / embedding.tensor_path, delimiter="\t", ndmin=2)
        np.testing.assert_allclose(vectors, [row["vector"] for row in expected], rtol=1e-6)
        lines = (beside / embedding.metadata_path).read_text().splitlines()
        header, *cells = [line.split("\t") for line in lines]
        at = header.index("genre_predicted")
        assert [c[at] for c in cells] == [row["genre_predicted"] for row in expected]
        assert {len(c) for c in cells} == {len(header)}
    assert {p.name for p in beside.iterdir()} == {
        "vectors.tsv", "metadata.tsv", "phrase_vectors.tsv", "phrase_metadata.tsv",
        "projector_config.pbtxt",
    }  # fmt: skip


def test_a_table_of_many_rows_is_written_in_parts(
    midigenre, toy_run, folder, tmp_path, monkeypatch
):
    call = ("embed", f"run={toy_run}")
    midigenre(*call, f"out={tmp_path / 'a.parquet'}", "--", str(folder))
    monkeypatch.setattr("midigenre.commands.embed._ROWS_AT_ONCE", 3)
    midigenre(*call, f"out={tmp_path / 'b.parquet'}", "--", str(folder))
    one, several = (pq.read_table(tmp_path / f"{name}.parquet") for name in "ab")
    assert one.num_rows % 3
    assert one.equals(several)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["out=x.parquet"], ["FILE_OR_DIR"]),
        (["--", "x.mid"], ["out= is missing", "out=vectors.parquet"]),
        (["out=.", "--", "x.mid"], ["out=. is a folder"]),
        (["out=x.parquet", "max_seconds=0", "--", "x.mid"], ["max_seconds must be above 0"]),
        (["out=x.parquet", "--", "x.mid", "y.mid"], ["x.mid: missing", "and 1 more file"]),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(midigenre, toy_run, home, arguments, words):
    status, out, err = midigenre("embed", f"run={toy_run}", *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1, err
    assert all(word in err for word in words), err
    assert not list(home.glob("x*"))
