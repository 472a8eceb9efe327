"""Study 13 on folders of made songs: trained and played once; its tables and figure."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midigenre.corpora.toy import GENRES, toy_song

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "study", raising=False)
    # Its own name is that of study 12, which it imports.
    spec = importlib.util.spec_from_file_location(
        "one_model", EXPERIMENTS / "13_one_model/study.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MIDIGENRE_HOME", raising=False)
    return module


@pytest.mark.slow
def test_every_question_is_answered_once(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced = {}
    for name, genre in zip(("rock", "pop"), GENRES, strict=False):
        replaced[name] = tmp_path / f"my {name}"
        replaced[name].mkdir()
        for i in range(30):
            song = toy_song(np.random.default_rng([3, i]), genre, "happy")
            (replaced[name] / f"{i}.mid").write_bytes(song.dumps_midi())
    singles = tmp_path / "runs/12_twelve_models"
    study.twelve_models.study(list(replaced), replaced, 2, 2, singles)
    real, calls = study.midigenre, []

    def counted(*arguments: str) -> str:
        calls.append(arguments[0])
        more = ["trainer.max_steps=2"] if "data.phrase_bars=4" in arguments else []
        return real(*arguments, *more)

    monkeypatch.setattr(study, "midigenre", counted)
    monkeypatch.setattr(study, "commit", lambda: "abc1234")
    monkeypatch.setattr(sys, "argv", ["study.py", "--primers", "1", "--pieces", "2"])
    study.main()
    assert sorted(calls) == ["judge"] * 3 + ["train"] * 6
    assert "| rock |" in capsys.readouterr().out
    found = {q: json.loads((tmp_path / f"results/{q}.json").read_text()) for q in study.QUESTIONS}
    together = found["together"]
    assert {key: of["steps"] for key, of in together["cost"].items()} == {
        "together": 2, "together-long": 4,
    }  # fmt: skip
    pop = together["corpora"]["pop"]
    assert pop["single"]["more"] == 0
    # The same songs as in the single model's own test.
    own = json.loads((singles / "pop/evaluation.json").read_text())["tokens"]
    assert pop["single"]["nats_per_note"] == pytest.approx(own["nats_per_note"], abs=1e-5)
    assert pop["notes"] == own["n_notes"]
    low, high = pop["together"]["ci95"]
    assert low <= pop["together"]["more"] <= high
    shape = np.array(found["prompts"]["probability"], float).shape
    assert shape == (2, 2, 4, 2)
    assert (tmp_path / "results/prompts.png").is_file()
    vocabulary = json.loads(
        (tmp_path / "runs/13_one_model/tokens-remi-chords/spec.json").read_text()
    )
    tokens = vocabulary["tokens"]["fields"][0]["tokens"]
    assert {token.split("_")[0] for token in tokens} >= {"Chord", "Tempo", "Pitch"}
    assert not any(token.startswith("Velocity") for token in tokens)
    study.main()
    assert len(calls) == 9  # nothing twice


def test_what_moves_from_the_primer_to_the_model(study: Any) -> None:
    # Two models that turn to their own corpus in the second part, whatever the primer was.
    own, other = [0.9, 0.1], [0.1, 0.9]
    p = [[[own] * 4, [other, own, own, own]], [[own, other, other, other], [other] * 4]]
    found = {"names": ["bach", "rap"], "pieces": 3, "probability": p, "share": p}
    table = study.prompts_table(found)
    assert "| the model's corpus | 0.10 \\[0.10, 0.10] | 0.90 \\[0.90, 0.90]" in table
    assert "| the primer's corpus | 0.90 \\[0.90, 0.90] | 0.10 \\[0.10, 0.10]" in table
    made = study.figure(found)
    lines = {line.get_label(): line.get_ydata() for line in made.axes[2].lines}
    assert lines["the model's corpus"].tolist() == pytest.approx([0.1, 0.9, 0.9, 0.9])
    cells = [[text.get_text() for text in made.axes[i].texts[:4]] for i in (0, 1)]
    assert cells == [["90", "90", "90", "90"], ["90", "10", "10", "90"]]
