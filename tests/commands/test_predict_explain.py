"""``predict``: calibrated, abstaining, explained, and safe against deadly files."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from test_predict_evaluate import answers

from midigenre.commands import predict
from midigenre.corpora.toy import Toy
from midigenre.data.sandbox import FileLimits, FileReader, Sandbox
from midigenre.errors import RejectedSongError
from midigenre.evaluation.calibration import Calibration, LevelCalibration


@pytest.fixture
def songs(home):
    return sorted(song.path for song in Toy(n_songs=48).songs(home / "corpora").songs)


@pytest.fixture
def calibrated(toy_run, home):
    """Puts a made calibration into the run, and what was there back."""
    path = home / toy_run / "calibration.json"
    before = path.read_bytes() if path.is_file() else None

    def put(temperature, max_energy=1e9, quantiles=tuple(i / 100 for i in range(101))):
        level = LevelCalibration(10, temperature, max_energy, 0.0, quantiles)
        levels = {label: {"phrase": level, "song": level} for label in ("genre", "emotion")}
        Calibration(levels).save(home / toy_run)

    yield put
    if before is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(before)


def test_a_temperature_softens_and_changes_no_label(midigenre, toy_run, songs, calibrated):
    files = [str(s) for s in songs[:3]]
    _, plain, _ = midigenre("predict", f"run={toy_run}", "calibrate=false", "--", *files)
    calibrated(4.0)
    _, soft, _ = midigenre("predict", f"run={toy_run}", "--", *files)
    for hard, softer in zip(answers(plain), answers(soft), strict=True):
        assert (hard["calibrated"], softer["calibrated"]) == (False, True)
        assert (hard["out_of_domain"], softer["out_of_domain"]) == (None, False)
        for label in ("genre", "emotion"):
            assert hard[label] == softer[label]
            most = [max(a["probabilities"][label].values()) for a in (hard, softer)]
            assert most[1] < most[0]
            assert hard["doubts"][label]["energy"] == softer["doubts"][label]["energy"]
            assert softer["doubts"][label]["max_softmax"] == pytest.approx(most[0], abs=1e-3)


def test_what_the_model_does_not_know_is_flagged(midigenre, toy_run, songs, calibrated):
    calibrated(1.0, max_energy=-1e9)
    _, out, _ = midigenre("predict", f"run={toy_run}", "--", str(songs[0]))
    assert answers(out)[0]["out_of_domain"] is True


def test_below_the_threshold_there_is_no_label(midigenre, toy_run, songs, calibrated):
    calibrated(1.0)
    file = str(songs[0])
    _, out, _ = midigenre("predict", f"run={toy_run}", "--", file)
    (always,) = answers(out)
    assert "abstained" not in always
    sure = max(always["probabilities"]["genre"].values())
    for threshold, answered in ((sure - 0.01, True), (sure + 1e-4, False)):
        if threshold > 1:
            continue
        _, out, _ = midigenre("predict", f"run={toy_run}", f"threshold={threshold}", "--", file)
        (answer,) = answers(out)
        assert (answer["genre"] is not None) == answered
        assert answer["abstained"] == (answer["genre"] is None or answer["emotion"] is None)
        assert answer["probabilities"] == always["probabilities"]


def test_a_coverage_takes_its_threshold_from_validation(midigenre, toy_run, songs, calibrated):
    calibrated(1.0)
    _, out, _ = midigenre("predict", f"run={toy_run}", "coverage=0.75", "--", str(songs[0]))
    assert answers(out)[0]["doubts"]["genre"]["threshold"] == 0.25


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (("threshold=1.5",), "threshold=1.5"),
        (("threshold=0.5", "coverage=0.5"), "give one of them"),
        (("coverage=0.5", "calibrate=false"), "calibration.json"),
        (("out=figures",), "explain=true"),
        (("batch_tokens=0",), "batch_tokens"),
        (("max_seconds=0",), "max_seconds"),
    ],
)
def test_wrong_settings_are_named(midigenre, toy_run, songs, settings, named):
    status, out, err = midigenre("predict", f"run={toy_run}", *settings, "--", str(songs[0]))
    assert (status, out) == (2, "")
    assert named in err


def test_explanations_and_figures(midigenre, toy_run, songs, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(songs[0], tmp_path / folder / "one song.mid")
    (tmp_path / "b" / "broken.mid").write_bytes(b"MThd")
    status, out, err = midigenre(
        "predict", f"run={toy_run}", "explain=true",
        f"out={tmp_path / 'figures'}", "--", str(tmp_path / "a"), str(tmp_path / "b"),
    )  # fmt: skip
    assert status == 0, err
    found = [a for a in answers(out) if "error" not in a]
    assert len(found) == 2
    assert found[0]["explanation"] == found[1]["explanation"]
    n_bars = found[0]["phrases"][-1]["bars"][1]
    for label in ("genre", "emotion"):
        about = found[0]["explanation"][label]
        assert about["class"] == found[0][label]
        assert about["method"] == "occlusion"
        assert len(about["bars"]) == n_bars
        assert any(about["bars"])
        assert len(about["programs"]) > 1
    # The very same music under the same name: two figures.
    figures = [a["figure"] for a in found]
    assert len(set(figures)) == 2
    for figure in figures:
        with open(figure, "rb") as file:
            assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_the_genre_of_a_drum_only_difference_is_the_drums(midigenre, toy_run, songs):
    """The toy corpus tells rock by its drums and its guitar, so that some program must decide."""
    rock = next(str(s) for s in songs if s.parent.name == "rock")
    _, out, _ = midigenre("predict", f"run={toy_run}", "explain=true", "--", rock)
    genre = answers(out)[0]["explanation"]["genre"]
    programs = genre["programs"]
    assert "Drums" in programs
    most_of_a_bar = max(abs(v) for v in genre["bars"] if v is not None)
    assert max(v for v in programs.values() if v is not None) > most_of_a_bar


def test_the_guard_changes_no_answer(midigenre, toy_run, songs):
    files = [str(s) for s in songs[:5]]
    outs = [
        midigenre("predict", f"run={toy_run}", f"guard={guard}", "--", *files)
        for guard in ("true", "false")
    ]
    assert [status for status, _, _ in outs] == [0, 0]
    assert outs[0][1] == outs[1][1]


def test_a_file_that_kills_the_reader_costs_itself_alone(toy_run, songs, home, tmp_path):
    """The parser of this process and its children dies where a file says so."""
    deadly = tmp_path / "deadly.mid"
    deadly.write_bytes(b"DEADLY" + songs[0].read_bytes())
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
        import os, sys
        if "midigenre.data.sandbox" in sys.orig_argv:
            import midigenre.midi.read as music
            well_formed = music.well_formed
            def dying(data, *rest):
                if data[:6] == b"DEADLY":
                    os.kill(os.getpid(), 11)
                return well_formed(data, *rest)
            music.well_formed = dying
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", "midigenre", "predict", f"run={toy_run}", "--",
         str(songs[0]), str(deadly), str(songs[1])],
        cwd=home, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [a.get("error") for a in answers(done.stdout)] == [None, "crashed", None]


def test_a_large_file_is_refused_before_it_is_read(songs):
    with (
        FileReader(FileLimits(max_file_mb=1e-5), guarded=False) as reader,
        pytest.raises(RejectedSongError, match="than max_file_mb"),
    ):
        reader.read(songs[0], None)


def test_a_pipe_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "x.mid")
    with (
        FileReader(guarded=False) as reader,
        pytest.raises(RejectedSongError, match="not_regular: a named pipe"),
    ):
        reader.read(tmp_path / "x.mid", None)


def test_what_a_folder_holds_besides_is_counted(tmp_path, capsys):
    for name in ("a.KAR", "b.mid.gz", "x.txt", "y.txt"):
        (tmp_path / name).touch()
    (tmp_path / "old").symlink_to("old")
    (tmp_path / "c.mid").symlink_to("c.mid")  # refused when its turn comes
    assert [p.name for p in predict._files([str(tmp_path)])] == ["a.KAR", "b.mid.gz", "c.mid"]
    assert "2 .txt, 1 unreadable passed over" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert list(predict._files([str(tmp_path / "empty"), "x" * 300])) == [Path("x" * 300)]
    assert capsys.readouterr().err == ""


def test_the_reader_leaves_no_process(toy_run, home):
    reader = FileReader()
    with reader:
        child = reader._sandbox._child
        assert child.poll() is None
    assert child.poll() is not None
    assert isinstance(reader._sandbox, Sandbox)
