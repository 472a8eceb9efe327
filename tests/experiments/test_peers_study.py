"""Study 08 on archives that the test makes: splits as published, cells trained once, the tables."""

from __future__ import annotations

import csv
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midigenre.corpora.toy import GENRES, toy_song
from midigenre.files import read_csv

STUDY = Path(__file__).resolve().parents[2] / "experiments" / "08_peers"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(STUDY))
    monkeypatch.delitem(sys.modules, "tables", raising=False)
    monkeypatch.delitem(sys.modules, "study", raising=False)
    import study as module  # type: ignore[import-not-found]

    (tmp_path / "results").mkdir()
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    """``pianist8.tar.xz`` in small: 36 segments of 18 pieces, two of them in two splits."""
    folder = tmp_path / "made" / "pianist8"
    folder.mkdir(parents=True)
    with (folder / "official.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "genre", "split", "piece"])
        for i in range(36):
            genre = list(GENRES)[i % 3]
            song = toy_song(np.random.default_rng([1, i]), genre, "happy")
            (folder / f"{i}.mid").write_bytes(song.dumps_midi())
            split = ("train", "train", "train", "train", "val", "test")[i // 6]
            table.writerow([f"{i}.mid", genre, split, f"piece {i % 3} {i // 6}"])
    with tarfile.open(tmp_path / "pianist8.tar.xz", "w:xz") as archive:
        archive.add(folder, "pianist8")
    for name in ("asap", "pop909"):  # music for pretraining: files alone
        with tarfile.open(tmp_path / f"{name}.tar.xz", "w:xz") as archive:
            for i in range(8):
                archive.add(folder / f"{i}.mid", f"{name}/{i}/{name}.mid")
    return tmp_path


def test_a_table_keeps_its_published_split(study: Any, peers: Path) -> None:
    work = peers / "work"
    work.mkdir()
    told = study.overrides(study.TABLES["pianist8"], peers, work)
    assert "task.labels=[composer]" in told
    rows = read_csv(work / "pianist8-composer.csv")
    assert [row["split"] for row in rows[::6]] == ["train"] * 4 + ["val", "test"]
    assert rows[7] == {
        "path": "7.mid", "composer": list(GENRES)[1], "group": "piece 1 1", "split": "train",
    }  # fmt: skip
    folds = study.overrides(study.TABLES["pianist8_cv"], peers, work)
    assert "protocol=crossval" in folds
    assert "split" not in read_csv(work / "pianist8-composer.csv")[0]


@pytest.mark.slow
def test_cells_are_trained_once_and_make_the_table(
    study: Any, peers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(peers)
    monkeypatch.setattr(study, "STEPS", {"scratch": 3, "pretrained": 3, "mlm": 3})
    monkeypatch.setattr(study, "EVERY", 3)
    arguments = ["study.py", "--peers", ".", "--only", "pianist8", "--rows"]
    monkeypatch.setattr(sys, "argv", [*arguments, "pretrained", "--seeds", "0"])
    study.main()
    assert "init_from: " in Path("runs/08_peers/pianist8/pretrained/0/config.yaml").read_text()
    assert "| encoder, pretrained | 1 |" in capsys.readouterr().out
    arguments.append("scratch")
    monkeypatch.setattr(sys, "argv", [*arguments, "--seeds", "0", "1"])
    study.main()
    out = capsys.readouterr().out
    kept = sorted(path.name for path in study.RESULTS.iterdir())
    assert kept == [f"pianist8-{cell}.json" for cell in ("pretrained-0", "scratch-0", "scratch-1")]
    assert "phrase, n = " in out
    assert "song, n = 6" in out
    assert "piece, n = 3" in out
    assert "| MidiBERT, journal version |  |  | 0.818 |" in out.replace("0.8175", "0.818")
    # Three scores and three differences; a blend is of songs and pieces.
    for row, n in (("encoder", 6), ("blend", 4)):
        (line,) = [text for text in out.splitlines() if text.startswith(f"| {row}, scratch | 2 |")]
        assert line.count("[") == n
    assert any(line.startswith("| ngram\\_lr |") for line in out.splitlines())

    def never(*command: Any, **more: Any) -> None:
        raise AssertionError(f"trained again: {command}")

    monkeypatch.setattr(subprocess, "run", never)
    study.main()
    assert capsys.readouterr().out == out
