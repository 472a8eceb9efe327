"""An exported model answers as its run does, and its card says where the scores come from."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file
from toy_runs import SMALL

from midigenre import load
from midigenre.corpora.toy import Toy
from midigenre.errors import UserError


@pytest.fixture(scope="module")
def songs(home):
    return sorted(str(song.path) for song in Toy(n_songs=48).songs(home / "corpora").songs)


@pytest.fixture
def exported(midigenre, toy_run, tmp_path):
    out = tmp_path / "exported"
    code, said, _ = midigenre("export", f"run={toy_run}", f"out={out}", "license=cc-by-4.0")
    assert (code, said.strip()) == (0, str(out))
    return out


def front(folder):
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_it_answers_as_the_run(midigenre, toy_run, exported, songs, tmp_path):
    elsewhere = tmp_path / "moved"
    exported.rename(elsewhere)
    answers = [
        midigenre("predict", f"run={run}", "--", *songs[:2])[1] for run in (toy_run, elsewhere)
    ]
    assert answers[0] == answers[1]
    first = json.loads(answers[0].splitlines()[0])
    assert first["calibrated"]
    assert load(elsewhere).predict(songs[0]) == first
    # A model of one's own may start from it.
    code, _, said = midigenre(
        "train", *SMALL, "model.intervals=false", f"init_from={elsewhere}", "trainer.max_steps=1",
        "trainer.max_epochs=1",
    )  # fmt: skip
    assert code == 0, said


def test_the_card_is_what_the_hub_reads(home, toy_run, exported):
    head, text = front(exported)
    assert head["library_name"] == "midigenre"
    assert head["license"] == "cc-by-4.0"
    genre, emotion = head["model-index"][0]["results"]
    assert genre["dataset"] == {"name": "toy", "type": "toy", "split": "test"}
    scores = json.loads((home / toy_run / "evaluation.json").read_text())
    found = {of["name"]: of["value"] for of in genre["metrics"] + emotion["metrics"]}
    for label in ("genre", "emotion"):
        assert found[f"{label}, song: macro-F1"] == scores[label]["song"]["macro_f1"]
    assert "| genre | ngram\\_lr |" in text
    assert "\n\n\n" not in text
    assert "waltz" in text
    cost = json.loads((home / toy_run / "cost.json").read_text())
    assert f"{cost['parameters']:,} parameters" in text


def test_what_was_not_tested_has_no_scores(midigenre, home, toy_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(home / toy_run, run)
    (run / "evaluation.json").unlink()
    assert midigenre("export", f"run={run}")[0] == 0
    head, text = front(run / "hub")
    assert "model-index" not in head
    assert "license" not in head
    assert "were not tested" in text
    assert "No licence was given" in text


def test_a_generator_is_exported_too(midigenre, home, toy_generator, tmp_path):
    out = tmp_path / "exported"
    assert midigenre("export", f"run={toy_generator}", f"out={out}")[0] == 0
    assert "nats per note" in front(out)[1]
    pieces = []
    for run in (home / toy_generator, out):
        load(run).generate(bars=2, seed=3).write(tmp_path / "piece.mid")
        pieces.append((tmp_path / "piece.mid").read_bytes())
    assert pieces[0] == pieces[1]


def test_what_is_there_is_not_overwritten(midigenre, toy_run, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    code, _, said = midigenre("export", f"run={toy_run}", f"out={tmp_path}")
    assert code == 2
    assert "holds something else" in said
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_export_is_not_exported_again(midigenre, exported):
    before = sorted(path.name for path in exported.iterdir())
    code, _, said = midigenre("export", f"run={exported}", f"out={exported}")
    assert code == 2
    assert "exported model already" in said
    assert sorted(path.name for path in exported.iterdir()) == before


def cut(folder):
    (folder / "model.safetensors").write_bytes(b"short")


def of_a_stranger(folder):
    about = json.loads((folder / "config.json").read_text())
    about["midigenre"]["model"]["_target_"] = "os.system"
    (folder / "config.json").write_text(json.dumps(about))


def without_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, folder / "model.safetensors")


def without_settings(folder):
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut, "is not a checkpoint of midigenre"), (of_a_stranger, "os.system"),
        (without_a_weight, "is damaged"), (without_settings, "is not a checkpoint of midigenre"),
    ],
)  # fmt: skip
def test_damage_and_strangers_are_rejected(midigenre, exported, songs, change, words):
    change(exported)
    code, _, said = midigenre("predict", f"run={exported}", "--", songs[0])
    assert code == 2
    assert words in said
    assert "Traceback" not in said


def test_it_has_one_checkpoint(midigenre, exported, songs):
    code, _, said = midigenre("predict", f"run={exported}", "ckpt=last", "--", songs[0])
    assert code == 2
    assert "no ckpt=last" in said


class Hub:
    """Stands in for the Hub: keeps what it is told."""

    def __init__(self, kept):
        self.kept = kept

    def create_repo(self, name, private, exist_ok):
        if name.count("/") != 1:
            raise ValueError(f"Repo id must be in the form 'namespace/repo_name': '{name}'.")
        self.kept |= {"name": name, "private": private, "exist_ok": exist_ok}

    def upload_folder(self, repo_id, folder_path):
        files = sorted(str(path.relative_to(folder_path)) for path in folder_path.rglob("*"))
        self.kept |= {"files": files}
        return f"https://hub.example/{repo_id}"


def test_push(midigenre, toy_run, tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(kept))
    given = ("export", f"run={toy_run}", f"out={tmp_path / 'exported'}")
    code, _, said = midigenre(*given, "push=me/toy", "private=true")
    assert code == 0
    assert "https://hub.example/me/toy" in said
    assert (kept["name"], kept["private"], kept["exist_ok"]) == ("me/toy", True, True)
    assert set(kept["files"]) >= {"README.md", "config.json", "model.safetensors"}
    code, _, said = midigenre(*given, "push=nobody")
    assert code == 2
    assert "hf auth login" in said


def test_load_from_the_hub(exported, songs, monkeypatch):
    asked = []

    def download(name):
        asked.append(name)
        if name != "me/toy":
            raise OSError("no connection to the Hub")
        return str(exported)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load("hf://me/toy").predict(songs[0])["genre"]
    assert asked == ["me/toy"]
    with pytest.raises(UserError, match="hf://me/other: no connection"):
        load("hf://me/other")
