"""``midigenre generate``: pieces from a trained run, and clear words where it cannot."""

import errno
import json

import numpy as np
import pytest
import soundfile
from mido import MidiFile
from symusic import Score

from midi import loudness_db, make_score, melody, note
from midigenre.commands.generate import piece_warnings, write_piece
from midigenre.evaluation.figures.piano_roll import piano_roll_figure
from midigenre.files import write_bytes
from midigenre.midi.clean import clean
from midigenre.midi.song import Grid


def test_noise_costs_a_generator_nats(midigenre, toy_generator, home):
    status, out, err = midigenre("evaluate", f"run={toy_generator}")
    assert status == 0, err
    own = json.loads((home / toy_generator / "evaluation.json").read_text())
    clean = json.loads((home / out.strip()).read_text())
    assert clean["tokens"]["nats_per_note"] == pytest.approx(own["tokens"]["nats_per_note"])
    assert clean["tokens"]["n_notes"] == own["tokens"]["n_notes"]
    status, out, err = midigenre("evaluate", f"run={toy_generator}", "noise.wrong=0.9")
    assert status == 0, err
    assert out.strip().endswith("evaluation/toy-test-wrong=0.9.json")
    wrong = json.loads((home / out.strip()).read_text())
    assert wrong["tokens"]["nats_per_note"] != clean["tokens"]["nats_per_note"]
    assert abs(wrong["tokens"]["n_notes"] / clean["tokens"]["n_notes"] - 1) < 0.1
    status, _, err = midigenre("evaluate", f"run={toy_generator}", "corpus=toy")
    assert status == 2
    assert "is a generator" in err


def test_pieces_and_their_account(midigenre, toy_generator, home):
    run = f"run={toy_generator}"
    args = ("generate", run, "genre=waltz", "bars=4", "n=3", "seed=5", "guidance=2")
    status, out, err = midigenre(*args)
    assert status == 0, err
    folder = home / out.strip()
    assert folder.parent == home / toy_generator / "samples"
    about = json.loads((folder / "samples.json").read_text())
    assert about["conditions"] == {"genre": "waltz", "emotion": None}
    assert about["settings"]["guidance"] == 2
    assert len(about["pieces"]) == 3
    for piece in about["pieces"]:
        score = Score(folder / piece["midi"])
        assert score.note_num() == piece["notes"] > 0
        assert (folder / piece["piano_roll"]).stat().st_size > 5000
        assert piece["bars"] == piece["bars_asked"] == 4
        assert MidiFile(folder / piece["midi"]).length >= piece["seconds"] - 0.01
        assert piece["short"] is None
        audio, rate = soundfile.read(folder / piece["audio"])
        assert audio.shape[1] == 2
        assert len(audio) / rate > score.to("second").end() - 0.01
        assert -60 < piece["loudness_db"] < -3
        assert piece["peak_db"] == pytest.approx(20 * np.log10(np.abs(audio).max()), abs=0.06)
        assert piece["silent"] is False
        # It sounds where there are notes: loudness over time, not only somewhere.
        loud = loudness_db(audio.astype("float32"), rate, 0.5)
        onsets = np.concatenate([t.notes.numpy()["time"] for t in score.to("second").tracks])
        assert (loud[np.unique(onsets // 0.5).astype(int)] > -70).mean() > 0.8
        assert piece["stop"] in ("end", "bars")
    # One at a time gives the same pieces, in the folder that was asked for.
    status, out, err = midigenre(*args, "batch=1", "audio=null", f"out={home / 'pieces (1)'}")
    assert status == 0, err
    assert {p.suffix for p in (home / "pieces (1)").iterdir()} == {".json", ".mid", ".png"}
    assert "audio" not in json.loads((home / "pieces (1)/samples.json").read_text())["pieces"][0]
    for one in about["pieces"]:
        first, again = (Score(path / one["midi"]) for path in (folder, home / "pieces (1)"))
        assert first.note_num() == again.note_num()


def test_a_file_is_continued(midigenre, toy_generator, home, tmp_path):
    score = make_score(melody(6, (4, 4), start=4))  # a bar of rest first
    path = tmp_path / "my song (1).mid"
    path.write_bytes(score.dumps_midi())
    status, out, err = midigenre(
        "generate", f"run={toy_generator}", f"prime={path}", "prime_bars=2", "bars=2", "n=2",
        "audio=mp3",
    )  # fmt: skip
    assert status == 0, err
    folder = home / out.strip()
    about = json.loads((folder / "samples.json").read_text())
    assert about["primer_bars"] == 2
    for piece in about["pieces"]:
        assert piece["bars"] == piece["bars_asked"] == 4
        notes = Score(folder / piece["midi"]).to("quarter").tracks[0].notes.numpy()
        assert soundfile.info(folder / piece["audio"]).format == "MP3"
        given = np.sort(notes["pitch"][notes["time"] < 8])
        assert sorted(given.tolist()) == sorted(int(n.pitch) for n in melody(2, (4, 4)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["genre=walz"], ["genre=walz", "did you mean waltz?"]),
        (["genre=R&B (slow), 'live'"], ["genre=R&B (slow), 'live'", "this generator knows"]),
        (["genre=007"], ["genre=007", "this generator knows"]),
        (["seconds=soon"], ["seconds=soon is not a number"]),
        (["emotion=angri"], ["emotion=angri", "this generator knows"]),
        (["+conditions.mood=x"], ["mood=x", "genre, emotion"]),
        (["top_p=0"], ["top_p=0", "more than 0"]),
        (["bars=0"], ["bars=0"]),
        (["n=0"], ["n=0"]),
        (["quantize=int4"], ["quantize=int4", "int8"]),
        (["prime=nowhere.mid"], ["prime=nowhere.mid", "no such file"]),
        (["ckpt=nowhere.ckpt"], ["nowhere.ckpt"]),
        (["audio=ogg"], ["audio=ogg", "wav, mp3"]),
        (["soundfont=no where.sf2"], ["soundfont=no where.sf2: no such file", "give an SF2 file"]),
        (["--", "a.mid"], ["prime=FILE"]),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(midigenre, toy_generator, arguments, words):
    status, _, err = midigenre("generate", f"run={toy_generator}", *arguments)
    assert status == 2
    assert all(word in err for word in words), err
    assert "Traceback" not in err


def test_a_bad_soundfont_is_refused_before_the_model_is_opened(midigenre, home, tmp_path):
    path = tmp_path / "a [font].sf2"
    path.write_bytes(b"RIFF" + bytes(100))
    status, _, err = midigenre("generate", "run=nowhere", f"soundfont={path}")
    assert status == 2
    assert f"soundfont={path}" in err
    status, _, err = midigenre("generate", "run=nowhere", f"soundfont={path}", "audio=null")
    assert status == 2
    assert "run=nowhere" in err


def test_silent_pieces_are_named(tmp_path):
    listed = []
    for name, notes in {
        "heard": melody(1), "above": [note(0, 1, 120)], "long": [note(0, 1, 60), note(9000, 1, 60)],
    }.items():  # fmt: skip
        score = make_score(notes)
        listed.append(write_piece(tmp_path, name, score, clean(score, Grid()), name, "wav", None))
    listed.append(write_piece(tmp_path, "empty", Score(480), None, "empty", "wav", None))
    assert [about.get("silent") for about in listed] == [False, True, None, None]
    assert listed[1]["unheard_notes"] == 1
    assert listed[1]["loudness_db"] is None
    assert listed[2]["audio"] is None
    assert sorted(p.name for p in tmp_path.glob("*.wav")) == ["above.wav", "heard.wav"]
    lines = piece_warnings(listed)
    assert len(lines) == 3
    assert [line.rpartition(": ")[2] for line in lines] == ["above", "long", "empty"]


def test_bars_of_rest_at_the_end_are_bars(tmp_path):
    """Files, account and picture agree; the console says how much of a piece is silent."""
    grid = Grid()
    listed = []
    for name, n_bars, more in (
        ("full", 2, {}), ("rests", 5, {}), ("primer", 3, {"drawn_steps": 0}),
        ("cut", 2, {"short": "ended at the token limit (tokens=9)", "bars_asked": 4}),
        ("soon", 2, {"short": "ended by the end token before seconds=60", "bars_asked": None}),
    ):  # fmt: skip
        score = clean(make_score(melody(2), tempi=[(0, 90)]), grid).to_score()
        song = clean(score, grid)
        about = write_piece(tmp_path, name, score, song, name, None, None, n_bars, 1)
        listed.append(about | more)
        assert (about["bars"], about["rest_bars"]) == (n_bars, n_bars - 2)
        assert about["seconds"] == round(n_bars * 4 * 60 / 90, 2)
        length = MidiFile(tmp_path / f"{name}.mid").length
        assert length == pytest.approx(about["seconds"], abs=0.09)  # a tick
    assert piece_warnings(listed) == [
        "1 with rests at the end: rests (3 bars)",
        "1 with nothing but rests after the primer: primer",
        "1 shorter than asked, ended at the token limit (tokens=9): cut (2 of 4 bars)",
        "1 shorter than asked, ended by the end token before seconds=60: soon (5.33 s)",
    ]
    song = clean(make_score(melody(4)), grid)
    figure = piano_roll_figure(
        song.notes, song.bar_ticks, song.tpq, "of rock", song.file_seconds, primer_bars=2
    )
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "of rock (bars 1 to 2 are the primer)"
    assert [line.get_xdata()[0] for line in axes.lines] == [song.bar_ticks[2]]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["1\n0:00", "2\n0:02", "3\n0:04", "4\n0:06"]


def test_a_piece_that_is_cut_is_told(midigenre, toy_generator, home):
    args = ("generate", f"run={toy_generator}", "n=1", "audio=null")
    status, out, err = midigenre(*args, "bars=4", "tokens=100")
    assert status == 0, err
    (piece,) = json.loads((home / out.strip() / "samples.json").read_text())["pieces"]
    assert piece["bars"] < piece["bars_asked"] == 4
    assert piece["short"] == "ended at the token limit (tokens=100)"
    assert f"{piece['short']}: piece-seed0-000 ({piece['bars']} of 4 bars)" in err
    assert "1 piece," in err
    status, out, err = midigenre(*args, "bars=null", "tokens=100")  # that was asked for
    (piece,) = json.loads((home / out.strip() / "samples.json").read_text())["pieces"]
    assert piece["short"] is None


def test_a_folder_that_cannot_be_written_is_named(midigenre, toy_generator, tmp_path, monkeypatch):
    args = ("generate", f"run={toy_generator}", "n=2", "bars=2", "audio=null")
    (tmp_path / "a file").write_text("")
    status, _, err = midigenre(*args, f"out={tmp_path / 'a file' / 'x'}")
    assert (status, err.count("\n")) == (2, 1), err
    assert f"{tmp_path / 'a file' / 'x'}: not a directory" in err
    assert "give out=FOLDER" in err
    written = []

    def full(path, data):
        if len(written) == 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        write_bytes(path, data)

    monkeypatch.setattr("midigenre.commands.generate.write_bytes", full)
    status, _, err = midigenre(*args, f"out={tmp_path / 'x'}")
    assert status == 2
    assert f"{tmp_path / 'x'}: no space left on device; what was written stays" in err
    assert "Traceback" not in err
    assert sorted(p.suffix for p in (tmp_path / "x").iterdir()) == [".mid", ".png"]


def test_a_primer_without_notes_is_refused(midigenre, toy_generator, tmp_path):
    path = tmp_path / "silent.mid"
    path.write_bytes(Score(480).dumps_midi())
    status, _, err = midigenre("generate", f"run={toy_generator}", f"prime={path}")
    assert status == 2
    assert str(path) in err
    assert "notes" in err


def test_eight_bits_write_music_and_are_told_in_the_account(midigenre, toy_generator, home):
    args = ("generate", f"run={toy_generator}", "genre=waltz", "bars=2", "n=2", "audio=null")
    found = {}
    for quantize in ("null", "int8"):
        status, out, err = midigenre(*args, f"quantize={quantize}")
        assert status == 0, err
        about = json.loads((home / out.strip() / "samples.json").read_text())
        assert about["settings"]["quantize"] == (None if quantize == "null" else quantize)
        found[quantize] = [piece["notes"] for piece in about["pieces"]]
        assert all(found[quantize])
