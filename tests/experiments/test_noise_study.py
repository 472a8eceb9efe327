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
    monkeypatch.setattr(module, "KINDS", {"wrong": (0.5,)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MIDIGENRE_HOME", raising=False)
    return module


@pytest.mark.slow
def test_every_noise_is_tested_once_and_kept(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []
    real = study.midigenre

    def counted(*arguments: str) -> str:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(study, "midigenre", counted)
    monkeypatch.setattr(study, "commit", lambda: "abc1234")
    out = tmp_path / "runs"
    runs = [("remi", ["tokenizer=remi"]), (study.GENERATOR, ["task=generate"])]
    found = study.study(runs, ["wrong"], [0], out, QUICK)
    assert [call[0] for call in calls] == ["train", "evaluate"] * 2
    assert [(row["run"], row["kind"], row["level"]) for row in found["rows"]] == [
        ("remi", "", "phrase"), ("remi", "", "song"),
        ("remi", "wrong", "phrase"), ("remi", "wrong", "song"),
        ("generator", "", "note"), ("generator", "wrong", "note"),
    ]  # fmt: skip
    for row in found["rows"][:4]:
        for name in ("model", "ngram_lr", "hist_gb"):
            value, low, high = row[name]
            assert low <= value <= high
    for row in found["rows"][4:]:
        value, low, high = row["nats"]
        assert 0 < low <= value <= high
    assert study.study(runs, ["wrong"], [0], out, QUICK) == found
    assert len(calls) == 4  # nothing twice

    lines = study.table(found).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["none", "wrong 0.5"]
    assert lines[0].count("|") == 6
    figure = study.curves(found)
    assert len(figure.axes) == 3  # models, baselines, nats
    assert [list(axes.lines[0].get_xdata()) for axes in figure.axes] == [[0.0, 0.5]] * 3
