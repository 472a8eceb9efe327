"""``midigenre.load``: it says what the commands say, and opens without Lightning."""

import doctest
import json
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from symusic import Score

from midi import make_score, melody, to_bytes
from midigenre import load
from midigenre.corpora.toy import Toy
from midigenre.data.phrases import MemorySongs, PhraseReader
from midigenre.data.sandbox import read_song
from midigenre.errors import UserError
from midigenre.inference.classifier import Classifier
from midigenre.inference.generator import Generator
from midigenre.registry import conf_dir, find_class
from midigenre.spec import Batch
from midigenre.tasks.kinds import KINDS
from midigenre.tokenizers.base import from_spec
from test_start_from import Made


@pytest.fixture
def songs(home):
    return sorted(song.path for song in Toy(n_songs=48).songs(home / "corpora").songs)


@pytest.fixture(scope="module")
def classifier(home, toy_run):
    return load(home / toy_run)


@pytest.fixture(scope="module")
def generator(home, toy_generator):
    return load(home / toy_generator)


def test_the_examples_in_docstrings(classifier, generator, home, toy_run, tmp_path, monkeypatch):
    import midigenre

    monkeypatch.chdir(tmp_path)
    (tmp_path / "song.mid").write_bytes(to_bytes(make_score(melody(8))))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "classifier").symlink_to(home / toy_run)
    of = {load: None, Classifier: classifier, Generator: generator}
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    for documented, model in of.items():
        names = {"midigenre": midigenre, "model": model}
        for test in finder.find(documented, globs=names):
            runner.run(test)
    assert runner.tries > 10
    assert runner.failures == 0
    assert Score(tmp_path / "waltz.mid").note_num() > 0


def test_predict_says_what_the_command_prints(midigenre, classifier, toy_run, songs, tmp_path):
    (tmp_path / "bad.mid").write_text("no music")
    files = [str(songs[0]), str(tmp_path / "bad.mid"), str(songs[20])]
    status, out, _ = midigenre("predict", f"run={toy_run}", "--", *files)
    assert status == 0
    printed = [json.loads(line) for line in out.splitlines()]
    assert printed[0]["calibrated"]
    assert json.loads(json.dumps(classifier.predict(files))) == printed
    # One alone shares no batch, whose sums may differ in the last digit.
    alone = classifier.predict(songs[0])
    assert alone.keys() == printed[0].keys()
    assert alone["genre"] == printed[0]["genre"]


def test_a_checkpoint_alone_is_not_calibrated(home, toy_run, songs):
    model = load(home / toy_run / "checkpoints" / "best.ckpt")
    assert isinstance(model, Classifier)
    assert model.predict(songs[0])["calibrated"] is False


def test_what_cannot_be_read_is_said_in_one_line(classifier, tmp_path):
    (tmp_path / "bad.mid").write_text("no music")
    for call in (classifier.predict, classifier.embed):
        with pytest.raises(UserError, match=r"bad\.mid: unreadable.*; a MIDI file starts"):
            call(tmp_path / "bad.mid")
        with pytest.raises(UserError, match=r"nowhere\.mid: missing"):
            call(tmp_path / "nowhere.mid")
        with pytest.raises(UserError, match="a folder, not a regular file"):
            call(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "nowhere"}, "run=nowhere: no such folder"),
        ({"ckpt": "nowhere.ckpt"}, "ckpt=nowhere.ckpt: no such file"),
        ({"device": "tpu"}, "device=tpu; choose cpu or cuda"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_line(change, words, home, toy_run):
    with pytest.raises(UserError, match=words):
        load(**{"path": home / toy_run} | change)


def test_a_masked_model_neither_predicts_nor_generates(tmp_path):
    Made("task=mlm").save(tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"is a masked model .* needs a classifier"):
        load(tmp_path / "best.ckpt")


def test_vectors_are_those_of_the_encoder(classifier, songs):
    trained = classifier.trained
    song, encoded = read_song(songs[5].read_bytes(), from_spec(trained.tokens))
    memory = MemorySongs([(song, encoded)])
    read = PhraseReader(memory, trained.tokens, trained.data["max_tokens"], trained.data["marks"])
    found = classifier.embed(songs[5])
    assert found.bars[0, 0] == 0
    assert found.bars[-1, 1] == song.n_bars
    phrases = [read(0, first, end)[0] for first, end in found.bars.tolist()]
    n = np.arange(len(phrases))
    with torch.no_grad():
        h_BD, _ = trained.classifier.encode(Batch.from_phrases(phrases, {}, n, n))
    np.testing.assert_allclose(found.phrases, h_BD.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.song, h_BD.mean(0).numpy(), atol=1e-5)
    assert found.phrases.dtype == found.song.dtype == np.float32


def test_a_piece_is_the_one_that_the_command_writes(midigenre, generator, toy_generator, tmp_path):
    settings = {"bars": 3, "seed": 5, "top_p": 0.9}
    given = [f"{name}={value}" for name, value in settings.items()]
    status, _, err = midigenre(
        "generate", f"run={toy_generator}", "genre=waltz", "n=2", "audio=null", *given,
        f"out={tmp_path / 'pieces'}",
    )  # fmt: skip
    assert status == 0, err
    first, second = sorted((tmp_path / "pieces").glob("*.mid"))
    piece = generator.generate(genre="waltz", **settings)
    piece.write(tmp_path / "piece.mid")
    assert (tmp_path / "piece.mid").read_bytes() == first.read_bytes() != second.read_bytes()
    assert len(piece.notes) == piece.score.note_num() > 0
    assert piece.sample.n_bars == 3


def test_a_file_is_continued(generator, tmp_path):
    (tmp_path / "a.mid").write_bytes(to_bytes(make_score(melody(6))))
    with pytest.warns(UserWarning, match="has 6 bars of music, not prime_bars=9"):
        piece = generator.generate(bars=1, prime=tmp_path / "a.mid", prime_bars=9)
    assert piece.sample.n_bars == 7
    with pytest.raises(UserError, match=r"prime=.*nowhere\.mid: missing"):
        generator.generate(prime=tmp_path / "nowhere.mid")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"genre": "walz"}, "genre=walz: did you mean waltz"),
        ({"mood": "calm"}, "mood=calm: .* its conditions are genre, emotion"),
        ({"bars": "many"}, "bars=many is not a number"),
        ({"top_p": 2}, "top_p=2 must be"),
    ],
)
def test_a_wrong_setting_is_said_in_one_line(generator, settings, words):
    with pytest.raises(UserError, match=words):
        generator.generate(**settings)


SLOW = ("lightning", "torchmetrics", "tensorboard", "matplotlib", "music21", "hydra", "sklearn")
"""What inference must not wait for."""


def loaded_by(code, folder):
    """Modules that a fresh process has after some code."""
    code = textwrap.dedent(code) + "\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_nothing_slow_is_imported(home, toy_run, toy_generator, songs, tmp_path):
    assert not {"torch", "numpy", *SLOW} & loaded_by("import midigenre", tmp_path)
    shutil.copy(songs[0], tmp_path / "song.mid")
    answered = loaded_by(
        f"""
        import midigenre
        model = midigenre.load({str(home / toy_run)!r})
        assert model.predict("song.mid")["genre"]
        model.embed("song.mid")
        """,
        tmp_path,
    )
    assert "torch" in answered
    assert not set(SLOW) & answered
    written = loaded_by(
        f"""
        import midigenre
        model = midigenre.load({str(home / toy_generator)!r})
        model.generate(bars=1, tokens=50, prime="song.mid", prime_bars=1).write("piece.mid")
        """,
        tmp_path,
    )
    assert "torch" in written
    assert not set(SLOW) & written


def test_every_task_trains_its_kind_of_model():
    """The kinds that are known without importing their tasks are those that the tasks name."""
    named = {
        line.split()[1] for path in (conf_dir() / "task").glob("*.yaml")
        for line in path.read_text().splitlines() if line.startswith("_target_:")
    }  # fmt: skip
    assert named == set(KINDS)
    for name, kind in KINDS.items():
        assert find_class("task", name).kind is kind
