"""Study 09 on the toy corpus: each noise tested once, what is kept, its table and curves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

STUDY = Path(__file__).resolve().parents[2] / "experiments" / "09_noise"
QUICK = (
    "corpus=toy", "corpus.n_songs=48", "model.d_model=32", "model.n_heads=2", "model.n_layers=1",
    "model.d_ff=32", "trainer.max_epochs=1", "trainer.max_steps=2",
)  # fmt: skip


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(STUDY))
    monkeypatch.delitem(sys.modules, "study", raising=False)
    import study as module  # type: ignore[import-not-found]

    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "KINDS", {"wrong": (0.5,), "tempo": (2.0,)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MIDIGENRE_HOME", raising=False)
    return module


def test_every_noise_is_tested_once_and_kept(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []
    real = study._midigenre

    def counted(*arguments: str) -> str:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(study, "_midigenre", counted)
    monkeypatch.setattr(study.subprocess, "run", _with_commit(study.subprocess.run))
    out = tmp_path / "runs"
    found = study.study(["remi"], ["wrong", "tempo"], [0], out, QUICK)
    assert [call[0] for call in calls] == ["train", "evaluate", "evaluate"]
    assert [(row["kind"], row["strength"], row["level"]) for row in found["rows"]] == [
        (kind, strength, level)
        for kind, strength in (("", None), ("wrong", 0.5), ("tempo", 2.0))
        for level in ("phrase", "song")
    ]
    for row in found["rows"]:
        for name in ("model", "ngram_lr", "hist_gb"):
            value, low, high = row[name]
            assert low <= value <= high
    assert study.study(["remi"], ["wrong", "tempo"], [0], out, QUICK) == found
    assert len(calls) == 3  # nothing twice

    lines = study.table(found).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "none", "wrong 0.5", "tempo 2",
    ]  # fmt: skip
    figure = study.curves(found)
    assert len(figure.axes) == 4
    tempo = figure.axes[1].lines[0].get_xdata()
    assert list(tempo) == [1.0, 2.0]  # with the one without noise


def _with_commit(real: Any) -> Any:
    """``subprocess.run``, where ``git`` answers as in a checkout."""

    def run(command: list[str], **settings: Any) -> Any:
        if command[0] == "git":
            return type("Done", (), {"stdout": "abc1234\n"})()
        return real(command, **settings)

    return run
