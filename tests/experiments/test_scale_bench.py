"""The made corpus is what its README says, and the measuring tool measures what it claims."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from midi import DRUMS, make_score, note, to_bytes
from midigenre.corpora.xmidi import XMIDI
from midigenre.files import read_csv, write_csv
from midigenre.midi.read import read_score

SCALE = Path(__file__).resolve().parents[2] / "experiments" / "04_scale"
MB = 1_000_000


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCALE / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


# make_corpus.py


def band(seed: int, meter: tuple[int, int] = (4, 4), drums: bool = True) -> bytes:
    """A song of 24 bars for four pitched instruments and, mostly, drums."""
    rng = np.random.default_rng(seed)
    programs = [0, 33, 27, 48] + [DRUMS] * drums
    notes = [
        note(at / 2, 0.5, int(rng.integers(36, 84)), program=program)
        for program in programs
        for at in range(2 * 96)
        if rng.random() < 0.7
    ]
    return to_bytes(make_score(notes, meters=[(0, *meter)]))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    for i in range(4):
        (folder / f"band-{i}.mid").write_bytes(band(i))
    (folder / "waltz.mid").write_bytes(band(9, meter=(3, 4)))
    (folder / "no-drums.mid").write_bytes(band(10, drums=False))
    (folder / "broken.mid").write_bytes(b"MThd")
    (folder / "notes.txt").write_text("not music", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def corpus(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "corpus"
    made(source, out, n=48)
    return out


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCALE))
    import make_corpus

    return make_corpus


def made(source: Path, out: Path, n: int, workers: int = 1, **more: object) -> dict[str, float]:
    flags = {"seconds": 60, "duplicates": 0.4} | more
    given = [word for name, value in flags.items() for word in (f"--{name}", value)]
    done = run(
        "make_corpus.py", "--source", source, "--out", out, "--n", n, "--workers", workers, *given
    )
    assert done.returncode == 0, done.stderr
    about: dict[str, float] = json.loads(done.stdout)
    return about


def content(corpus: Path) -> dict[str, bytes]:
    return {str(p.relative_to(corpus)): p.read_bytes() for p in corpus.rglob("*.midi")}


def lines(path: Path) -> list[tuple[list[int], list[int]]]:
    """Onsets and pitches of each pitched track."""
    tracks = [t.notes.numpy() for t in read_score(path.read_bytes()).tracks if not t.is_drum]
    return [(t["time"].tolist(), t["pitch"].tolist()) for t in tracks]


def test_files_are_xmidis_and_as_long_and_full_as_asked(corpus: Path, tmp_path: Path) -> None:
    listing = XMIDI(str(corpus)).songs(tmp_path)
    assert (len(listing.songs), listing.unusable) == (48, [])
    assert len({tuple(song.labels.values()) for song in listing.songs}) > 10
    trimmed = {r["path"] for r in read_csv(corpus / "truth.csv") if r["copy"] == "trimmed"}
    seconds, n_tracks = [], set()
    for song in listing.songs:
        score = read_score((corpus / song.song_id).read_bytes())
        if song.song_id in trimmed:
            continue
        played = score.end() / 480 * 60 / score.tempos[0].qpm
        seconds.append(played)
        n_tracks.add(len(score.tracks))
        assert sum(t.is_drum for t in score.tracks) == 1
        assert all(len(t.notes) > 0 for t in score.tracks)
        assert {(m.time, m.numerator, m.denominator) for m in score.time_signatures} == {(0, 4, 4)}
        assert 30 < played < 100
    assert 5 <= min(n_tracks) < max(n_tracks) <= 10
    assert 52 < np.mean(seconds) < 68


def test_files_are_as_dense_as_the_songs(source: Path, tmp_path: Path) -> None:
    about = made(source, tmp_path / "out", n=40, duplicates=0)
    assert about["source_songs"] == 4  # neither the waltz nor the one without drums
    assert about["planted"] == 0
    assert about["mean_notes"] / 60 == pytest.approx(about["source_notes_per_s"], rel=0.2)


def windows(tracks: list[list[int]], n: int) -> set[bytes]:
    """Windows of ``n`` steps between neighbours in a track."""
    steps = [np.diff(track) for track in tracks]
    return {s[i : i + n].tobytes() for s in steps for i in range(len(s) - n + 1)}


def test_no_two_files_share_a_passage_but_the_planted(corpus: Path) -> None:
    """Neither eight intervals, in which some notes are moved, nor the rhythm of some four bars."""
    intervals, rhythms = {}, {}
    for name in content(corpus):
        tracks = lines(corpus / name)
        intervals[name] = windows([pitches for _, pitches in tracks], 8)
        rhythms[name] = windows([onsets for onsets, _ in tracks], 20)
    of = {row["path"]: row["original"] for row in read_csv(corpus / "truth.csv")}
    for grams, most in ((intervals, 0.05), (rhythms, 0.01)):
        apart, together = [], []
        for a, b in combinations(grams, 2):
            shared = len(grams[a] & grams[b]) / len(grams[a] | grams[b])  # Jaccard
            (together if of.get(a, a) == of.get(b, b) else apart).append(shared)
        assert max(apart) < most
        assert min(together) > 0.2  # two trimmed ones have less in common than with their original


def test_copies_are_what_the_truth_says(corpus: Path) -> None:
    rows = read_csv(corpus / "truth.csv")
    assert {row["copy"] for row in rows} == {"bytes", "transposed", "tempo", "trimmed"}
    assert 10 < len(rows) < 30  # 40% of 48
    assert not {row["original"] for row in rows} & {row["path"] for row in rows}
    for row in rows:
        copy, original = corpus / row["path"], corpus / row["original"]
        assert copy.name.rsplit("_", 1)[0] == original.name.rsplit("_", 1)[0]  # same labels
        new, old = read_score(copy.read_bytes()), read_score(original.read_bytes())
        amount = float(row["amount"])
        if row["copy"] == "bytes":
            assert copy.read_bytes() == original.read_bytes()
        if row["copy"] == "tempo":
            assert new.tempos[0].qpm / old.tempos[0].qpm == pytest.approx(amount, abs=1e-3)
            assert abs(amount - 1) >= 0.05
            assert lines(copy) == lines(original)
        if row["copy"] == "transposed":
            assert amount != 0
            for (at, pitches), (at_old, pitches_old) in zip(
                lines(copy), lines(original), strict=True
            ):
                assert at == at_old
                assert np.subtract(pitches, pitches_old).tolist() == [amount] * len(at)
        if row["copy"] == "trimmed":
            assert new.tempos[0].qpm == old.tempos[0].qpm
            assert new.end() / old.end() == pytest.approx(amount, abs=0.12)
            joined = [p for _, pitches in lines(copy) for p in pitches]
            assert 0 < len(joined) < sum(len(pitches) for _, pitches in lines(original))


def test_smaller_corpus_is_the_beginning_whatever_the_workers(
    source: Path, corpus: Path, tmp_path: Path
) -> None:
    made(source, tmp_path / "out", n=20, workers=2)
    small, large = content(tmp_path / "out"), content(corpus)
    assert len(small) == 20
    assert small.items() <= large.items()
    truth = read_csv(corpus / "truth.csv")
    assert read_csv(tmp_path / "out" / "truth.csv") == [r for r in truth if r["path"] in small]


def test_a_stopped_run_goes_on(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made(source, out, n=12)
    before = content(out)
    first, second, *others = sorted(out.rglob("*.midi"))
    first.unlink()
    second.rename(second.with_name(f".{second.name}.part"))  # killed while it wrote
    times = {p: p.stat().st_mtime_ns for p in others}
    assert made(source, out, n=12)["made"] == 2
    assert content(out) == before
    assert {p: p.stat().st_mtime_ns for p in others} == times


def test_other_settings_do_not_mix(source: Path, tmp_path: Path) -> None:
    made(source, tmp_path / "out", n=4)
    done = run(
        "make_corpus.py", "--source", source, "--out", tmp_path / "out", "--n", 8, "--seed", 1
    )
    assert done.returncode == 1
    assert "settings.json" in done.stderr
    assert len(content(tmp_path / "out")) == 4


def test_folder_without_full_band_songs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mid").write_bytes(band(0, drums=False))
    done = run("make_corpus.py", "--source", tmp_path, "--out", tmp_path / "out", "--n", 4)
    assert done.returncode == 1
    assert "drums and three more tracks" in done.stderr
    assert not (tmp_path / "out").exists()


def test_moved_notes_move_by_degrees_and_stay_in_range(maker: ModuleType) -> None:
    rng = np.random.default_rng(0)
    pitch = rng.integers(0, 128, 4000)
    moved = maker._moved(pitch.copy(), 3, 0.3, rng)
    assert moved.min() >= 24
    assert moved.max() <= 107
    inside = (pitch >= 36) & (pitch <= 95)
    changed = inside & (moved != pitch)
    assert 0.25 < changed.sum() / inside.sum() < 0.31
    assert np.isin((moved[changed] - 3) % 12, maker.SCALE).all()
    assert np.abs(moved - pitch)[inside].max() <= 6


# measure.py


def measured(*arguments: object, command: str) -> dict[str, object]:
    done = run("measure.py", "--interval", 0.02, *arguments, "--", *shlex.split(command))
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


def python(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


def test_a_constant_drops_out_of_the_slopes(tmp_path: Path) -> None:
    """1,000 bytes a file in memory and 500 on disk, above 30 MB that every size needs."""
    code = (
        "import pathlib, time; base = b'x' * 30_000_000; held = b'y' * ({n} * 1000); "
        "pathlib.Path('{home}', 'out').write_bytes(bytes({n} * 500)); time.sleep(0.3)"
    )
    out = tmp_path / "out.json"
    result = measured(
        "--sizes", 20_000, 80_000, "--out", out, "--homes", tmp_path, command=python(code)
    )
    assert json.loads(out.read_text(encoding="utf-8")) == result
    small, large = result["runs"]  # type: ignore[misc]
    [slope] = result["slopes"]  # type: ignore[misc]
    assert small["peak_main"] > 50 * MB  # type: ignore[index]
    assert (small["disk_bytes"], large["disk_bytes"]) == (10 * MB, 40 * MB)  # type: ignore[index]
    assert slope["disk_bytes_per_file"] == 500  # type: ignore[index]
    assert slope["peak_main_per_file"] == pytest.approx(1000, rel=0.05)  # type: ignore[index]
    assert slope["peak_tree_per_file"] == pytest.approx(1000, rel=0.05)  # type: ignore[index]
    assert list(tmp_path.iterdir()) == [out]  # the homes are gone


@pytest.mark.skipif(
    not hasattr(psutil.Process().memory_full_info(), "pss"), reason="no PSS on this system"
)
def test_shared_pages_count_once_and_children_count() -> None:
    code = (
        "import os, time; held = b'x' * 60_000_000; pids = [os.fork() for _ in range(2)]\n"
        "if 0 in pids: own = b'y' * 20_000_000; time.sleep(0.5); os._exit(0)\n"
        "for pid in pids: os.waitpid(pid, 0)"
    )
    result = measured(command=python(code))
    # The second fork takes place in both: 4 processes, 3 of them with 20 MB of their own.
    assert result["memory"] == "pss"
    assert result["processes"] == 4
    assert 120 * MB < result["peak_tree"] < 150 * MB  # type: ignore[operator]
    assert result["peak_tree_rss"] > 300 * MB  # type: ignore[operator]
    assert result["peak_main_rss"] < 90 * MB  # type: ignore[operator]


def test_cpu_time_of_children_counts_and_waiting_does_not() -> None:
    spin = "import time\nwhile time.process_time() < 0.4: pass"
    code = (
        f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {spin!r}]); "
        "time.sleep(0.5)"
    )
    result = measured("--files", 10, command=python(code))
    assert 0.4 <= result["cpu_s"] < 0.9 < result["wall_s"]  # type: ignore[operator]
    assert result["files_per_s"] == pytest.approx(10 / result["wall_s"], abs=0.1)  # type: ignore[operator]


def test_a_failed_command_gives_no_figures() -> None:
    done = run("measure.py", "--", sys.executable, "-c", "import sys; sys.exit(3)")
    assert done.returncode == 1
    assert "ended with 3" in done.stderr
    assert done.stdout == ""


def test_recall_counts_by_kind_and_finds_wrong_links(tmp_path: Path) -> None:
    truth = [("b", "a", "bytes"), ("c", "a", "tempo"), ("e", "d", "tempo"), ("g", "f", "trimmed")]
    # e was not found, g is in another group than its original, x and y have nothing in common.
    found = {"a": "1", "b": "1", "c": "1", "f": "2", "d": "2", "g": "3", "x": "4", "y": "4"}
    write_csv(
        tmp_path / "truth.csv",
        [{"path": p, "original": o, "copy": c} for p, o, c in truth],
        ["path", "original", "copy"],
    )
    write_csv(
        tmp_path / "duplicates.csv",
        [{"song_id": song, "group": group} for song, group in found.items()],
        ["group", "song_id"],
    )
    done = run("measure.py", "--truth", tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "recall": {
            "bytes": {"found": 1, "planted": 1},
            "tempo": {"found": 1, "planted": 2},
            "trimmed": {"found": 0, "planted": 1},
        },
        "groups": 4,
        "false_links": 2,
    }


@pytest.mark.parametrize(
    "flags", [["--sizes", "1", "2", "--", "echo"], ["--sizes", "2", "1", "--", "echo", "{n}"], []]
)
def test_what_cannot_be_measured_is_refused(flags: list[str]) -> None:
    done = run("measure.py", *flags)
    assert done.returncode == 2
    assert "error:" in done.stderr
