"""``midigenre generate``: pieces from a trained run, and clear words where it cannot."""

import json

import numpy as np
import pytest
from symusic import Score

from conftest import SMALL
from midi import make_score, melody


@pytest.fixture(scope="module")
def generator(midigenre, home):
    status, out, err = midigenre(
        "train", *SMALL, "tokenizer=remi", "task=generate", "task.conditions=[genre,emotion]",
        "name=generate-pieces", "trainer.max_epochs=1", "data.phrase_bars=4",
    )  # fmt: skip
    assert status == 0, err
    assert "midigenre generate run=" in err
    return home / out.strip().splitlines()[-1]


def classes(generator):
    return json.loads((generator / "evaluation.json").read_text())


def test_pieces_and_their_account(midigenre, generator, home):
    args = ("generate", f"run={generator}", "genre=waltz", "bars=4", "n=3", "seed=5", "guidance=2")
    status, out, err = midigenre(*args)
    assert status == 0, err
    folder = home / out.strip()
    assert folder.parent == generator / "samples"
    about = json.loads((folder / "samples.json").read_text())
    assert about["conditions"] == {"genre": "waltz", "emotion": None}
    assert about["settings"]["guidance"] == 2
    assert len(about["pieces"]) == 3
    for piece in about["pieces"]:
        score = Score(folder / piece["midi"])
        assert score.note_num() == piece["notes"] > 0
        assert (folder / piece["piano_roll"]).stat().st_size > 5000
        assert piece["bars"] <= 4
        assert piece["stop"] in ("end", "bars")
    # One at a time gives the same pieces, in the folder that was asked for.
    status, out, err = midigenre(*args, "batch=1", f"out={home / 'pieces (1)'}")
    assert status == 0, err
    for one in about["pieces"]:
        first, again = (Score(path / one["midi"]) for path in (folder, home / "pieces (1)"))
        assert first.note_num() == again.note_num()


def test_a_file_is_continued(midigenre, generator, home, tmp_path):
    score = make_score(melody(6, (4, 4), start=4))  # a bar of rest first
    path = tmp_path / "my song (1).mid"
    path.write_bytes(score.dumps_midi())
    status, out, err = midigenre(
        "generate", f"run={generator}", f"prime={path}", "prime_bars=2", "bars=2", "n=2"
    )
    assert status == 0, err
    folder = home / out.strip()
    about = json.loads((folder / "samples.json").read_text())
    assert about["primer_bars"] == 2
    for piece in about["pieces"]:
        notes = Score(folder / piece["midi"]).to("quarter").tracks[0].notes.numpy()
        given = np.sort(notes["pitch"][notes["time"] < 8])
        assert sorted(given.tolist()) == sorted(int(n.pitch) for n in melody(2, (4, 4)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["genre=walz"], ["genre=walz", "did you mean waltz?"]),
        (["emotion=angri"], ["emotion=angri", "this generator knows"]),
        (["+conditions.mood=x"], ["mood=x", "genre, emotion"]),
        (["top_p=0"], ["top_p=0", "more than 0"]),
        (["bars=0"], ["bars=0"]),
        (["n=0"], ["n=0"]),
        (["prime=nowhere.mid"], ["prime=nowhere.mid", "no such file"]),
        (["ckpt=nowhere.ckpt"], ["nowhere.ckpt"]),
        (["--", "a.mid"], ["prime=FILE"]),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(midigenre, generator, arguments, words):
    status, _, err = midigenre("generate", f"run={generator}", *arguments)
    assert status == 2
    assert all(word in err for word in words), err
    assert "Traceback" not in err


def test_a_primer_without_notes_is_refused(midigenre, generator, tmp_path):
    path = tmp_path / "silent.mid"
    path.write_bytes(Score(480).dumps_midi())
    status, _, err = midigenre("generate", f"run={generator}", f"prime={path}")
    assert status == 2
    assert str(path) in err
    assert "notes" in err
