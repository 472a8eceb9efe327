"""Study 12 on folders of made songs: trained and played once, table, figure and page."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midigenre.corpora.toy import GENRES, toy_song

STUDY = Path(__file__).resolve().parents[2] / "experiments" / "12_twelve_models"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(STUDY))
    monkeypatch.delitem(sys.modules, "study", raising=False)
    import study as module  # type: ignore[import-not-found]

    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "SAMPLES", tmp_path / "samples")
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MIDIGENRE_HOME", raising=False)
    return module


@pytest.mark.slow
def test_models_are_trained_and_played_once(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["study.py", "--only", "rock", "pop", "--steps", "2", "--bars", "2"]
    for name, genre in zip(("rock", "pop"), GENRES, strict=False):
        folder = tmp_path / f"my {name}"
        folder.mkdir()
        for i in range(12):
            song = toy_song(np.random.default_rng([3, i]), genre, "happy")
            (folder / f"{i}.mid").write_bytes(song.dumps_midi())
        given += ["--replace", f"{name}={folder}"]
    real, calls = study.midigenre, []

    def counted(*arguments: str) -> str:
        calls.append(arguments[0])
        return real(*arguments)

    monkeypatch.setattr(study, "midigenre", counted)
    monkeypatch.setattr(sys, "argv", given)
    study.main()
    assert sorted(calls) == ["generate"] * 2 + ["train"] * 2
    out = capsys.readouterr().out
    assert "| rock |" in out
    found = json.loads((tmp_path / "results" / "models.json").read_text())
    assert [found[name]["steps"] for name in ("rock", "pop")] == [2, 2]
    low, high = found["pop"]["ci95"]
    assert 0 < low <= found["pop"]["nats_per_note"] <= high
    # The source's vocabulary, and nothing of the other folder's songs.
    spec = json.loads((tmp_path / "runs/12_twelve_models/rock/spec.json").read_text())
    assert [len(field["tokens"]) for field in spec["tokens"]["fields"]] == [291]
    assert spec["labels"] == {"genre": ["rock"]}
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"rock.mid", "pop.mid"}
    page = (tmp_path / "runs/12_twelve_models/page.html").read_text()
    samples = json.loads((tmp_path / "runs/12_twelve_models/pop/samples/samples.json").read_text())
    assert f"<dd>{samples['pieces'][0]['notes']}</dd>" in page
    assert re.findall(r'<article id="(\w+)">', page) == ["rock", "pop"]
    assert 2 <= page.count("data:audio/mpeg;base64,") <= 4
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", page)

    monkeypatch.setattr(sys, "argv", [*given, "--rebuild-page"])
    study.main()
    assert len(calls) == 4  # nothing twice
    assert (tmp_path / "runs/12_twelve_models/page.html").read_text() == page


def test_a_command_that_fails_says_why(study: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"did you mean optim\.lr"):
        study.midigenre("train", "optim.lrr=1", "corpus=toy")


def test_a_corpus_alone_is_the_twelve_without_the_others(study: Any, tmp_path: Path) -> None:
    told = study.songs_of("bach", None, tmp_path)
    assert told[0] == "corpus=twelve"
    assert len(told) == 12
    assert "labels.map.genre.bach=null" not in told
    assert "labels.map.genre.rap=null" in told


def test_the_plain_loop_learns(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "loop", raising=False)
    import loop  # type: ignore[import-not-found]
    import torch

    from midigenre.data.shards import ShardSet

    folder = study.midigenre("prepare", "corpus=toy", "corpus.n_songs=12", "tokenizer=midilike291")
    assert loop.plain(ShardSet(Path(folder)), 2) > 0
    model = loop.PlainDecoder(291).eval()
    ids = torch.arange(20)[None]
    changed = ids.clone()
    changed[0, -1] = 200
    assert torch.equal(model(ids)[0, :-1], model(changed)[0, :-1])  # it cannot see what follows


def test_the_figure_has_a_panel_for_each_model(study: Any) -> None:
    from midigenre.midi.clean import clean
    from midigenre.midi.song import Grid

    song = clean(toy_song(np.random.default_rng(0), next(iter(GENRES)), "sad"), Grid())
    figure = study.rolls(dict.fromkeys(study.CORPORA, song))
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(study.CORPORA)
    segments = figure.axes[0].collections[0].get_segments()
    assert len(segments) == len(song.notes)
