"""Pieces in TensorBoard during training: they are there, and training continues as without them."""

import io
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
from hydra import compose, initialize_config_dir
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.audio import metadata

from boards import Board
from midigenre.build import make_data, make_task, make_trainer, prepared
from midigenre.errors import UserError
from midigenre.generation.sampling import Sampler
from midigenre.registry import conf_dir
from midigenre.spec import UNKNOWN
from midigenre.tasks import generate
from midigenre.tasks.generate import AUDIO_RATE, GeneratedSamples

CLASSES = {"genre": ["waltz", "rock", "ballad", "swing"],
           "emotion": ["happy", "sad", "angry", "calm"]}  # fmt: skip


class Watched(GeneratedSamples):
    """Notes what training could notice."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.changes = []

    def on_validation_end(self, trainer, pl_module):
        before = self.seen(pl_module)
        super().on_validation_end(trainer, pl_module)
        after = self.seen(pl_module)
        self.changes += [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]

    def seen(self, pl_module):
        modes = torch.tensor([module.training for module in pl_module.modules()])
        numbers = torch.from_numpy(np.random.get_state()[1].astype(np.int64))  # noqa: NPY002
        weights = [p.detach().clone() for p in pl_module.parameters()]
        return [modes, torch.get_rng_state(), numbers, *weights]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """The order of a sum, and with it its last digit, depends on them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(home, folder, callback, *overrides):
    """A generator after two epochs of three steps, and its trainer."""
    with initialize_config_dir(str(conf_dir().resolve()), version_base=None):
        cfg = compose("train", [
            "corpus=toy", "corpus.n_songs=48", "tokenizer=octuple", "task=generate",
            "task.conditions=[genre,emotion]", "model.d_model=32", "model.n_heads=2",
            "model.n_layers=1", "model.d_ff=32", "model.dropout=0.1", "trainer.max_epochs=2",
            "trainer.limit_train_batches=3", "data.phrase_bars=2", "data.batch_phrases=8",
            "~callbacks.samples", "~callbacks.progress", f"home={home}", "n_workers=1", *overrides,
        ])  # fmt: skip
    shards = prepared(cfg)
    L.seed_everything(0, verbose=False)
    data = make_data(cfg, shards)
    task = make_task(cfg, shards, data)
    trainer = make_trainer(cfg, folder)
    if callback is not None:
        trainer.callbacks.insert(0, callback)
    trainer.fit(task, datamodule=data)
    return task, trainer


def events(folder):
    found = EventAccumulator(str(folder), {"images": 0, "audio": 0, "tensors": 0})
    found.Reload()
    return found


@pytest.fixture(scope="module")
def with_samples(home, _one_thread):
    callback = Watched(every_steps=1, bars=2, tokens=200)
    task, trainer = train(home, home / "with", callback)
    return task, trainer, callback


def test_each_class_is_seen_and_heard(with_samples, home):
    found = events(home / "with")
    tags = {f"val/samples/{label}/{name}" for label, names in CLASSES.items() for name in names}
    assert set(found.Tags()["images"]) == {f"{tag}/piano_roll" for tag in tags}
    silent = {tag.removesuffix("/text_summary") for tag in found.Tags()["tensors"]}
    assert {tag.removesuffix("/audio") for tag in found.Tags()["audio"]} | silent == tags
    assert len(found.Tags()["audio"]) >= 6
    for tag in found.Tags()["images"]:
        assert [image.step for image in found.Images(tag)] == [3, 6]
        assert found.Images(tag)[0].encoded_image_string.startswith(b"\x89PNG")
    for tag in found.Tags()["audio"]:
        for sound in found.Audio(tag):
            audio, rate = soundfile.read(io.BytesIO(sound.encoded_audio_string))
            assert rate == AUDIO_RATE
            assert 0.3 < np.abs(audio).max() <= 1
            assert 0.1 < len(audio) / rate < 40


def test_tensorboard_serves_every_picture_and_every_sound(with_samples, home):
    """It serves neither where a tag holds both."""
    board = Board(home / "with")
    (run,) = board.tags["scalars"]
    pictures, sounds = board.tags["images"][run], board.tags["audio"][run]
    assert set(pictures) == set(events(home / "with").Tags()["images"])
    assert set(sounds) == set(events(home / "with").Tags()["audio"])
    assert len(sounds) >= 6
    kinds = [set(board.tags[plugin].get(run, ())) for plugin in board.tags]
    assert sum(map(len, kinds)) == len(set.union(*kinds))
    for tag in sounds:
        kind, content = board.sound(run, tag)
        assert kind == "audio/wav"
        audio, rate = soundfile.read(io.BytesIO(content), dtype="int16")
        assert rate == AUDIO_RATE
        loud = np.abs(audio.astype(int))
        assert np.sqrt((loud**2).mean()) / 2**15 > 0.01  # not silence around one click
        # Full scale is not reached: what would be cut off there crackles.
        assert 0.3 < loud.max() / 2**15 < 0.999


def test_a_sound_says_what_it_is(with_samples, home):
    """TensorBoard's fast loader, which the test above has not, looks it up and adds nothing."""
    values = [
        value
        for path in (home / "with").glob("events.*")
        for raw in RawEventFileLoader(str(path)).Load()
        for value in event_pb2.Event.FromString(raw).summary.value
        if value.HasField("audio")
    ]
    assert len(values) >= 12
    for value in values:
        assert value.metadata.data_class == summary_pb2.DATA_CLASS_BLOB_SEQUENCE
        said = metadata.parse_plugin_metadata(value.metadata.plugin_data.content)
        assert said.encoding == metadata.Encoding.WAV


def test_training_does_not_notice(with_samples, home):
    task, trainer, callback = with_samples
    assert len(callback.changes) > 20
    assert not any(callback.changes)
    plain, without = train(home, home / "without", None)
    assert {k: float(v) for k, v in without.callback_metrics.items() if k.startswith("val/")} == {
        k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")
    }
    for (name, ours), theirs in zip(task.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert events(home / "without").Tags()["images"] == []


def test_they_come_every_few_steps_and_not_more_than_asked_for(home):
    callback = GeneratedSamples(every_steps=4, n_samples=3, bars=1, tokens=100, audio=False)
    train(home, home / "few", callback, "trainer.max_epochs=4")
    found = events(home / "few")
    # Validations are at 3, 6, 9 and 12; the classes of the two conditions come in turn.
    shown = [
        f"val/samples/{of}/piano_roll" for of in ("genre/waltz", "emotion/happy", "genre/rock")
    ]
    assert set(found.Tags()["images"]) == set(shown)
    assert [image.step for image in found.Images(shown[2])] == [6, 12]
    assert found.Tags()["audio"] == []
    again = GeneratedSamples()
    again.load_state_dict(callback.state_dict())
    assert again.state_dict() == {"written": 12}


def test_each_piece_is_told_its_class_alone(home, monkeypatch):
    told = []
    sample = Sampler.sample

    def spy(self, labels, settings, *, n):
        told.append(labels)
        return sample(self, labels, settings, n=n)

    monkeypatch.setattr(Sampler, "sample", spy)
    callback = GeneratedSamples(every_steps=6, n_samples=3, bars=1, tokens=50, audio=False)
    train(home, home / "told", callback)
    assert told == [{"genre": [0, UNKNOWN, 1], "emotion": [UNKNOWN, 0, UNKNOWN]}]


def test_without_conditions_there_is_one(home):
    callback = GeneratedSamples(every_steps=6, bars=1, tokens=100, audio=False)
    train(home, home / "untold", callback, "task.conditions=[]")
    assert events(home / "untold").Tags()["images"] == ["val/samples/unconditioned/piano_roll"]


def test_without_a_logger_nothing_is_drawn(home, monkeypatch):
    monkeypatch.setattr(generate, "Sampler", None)
    train(home, home / "none", GeneratedSamples(every_steps=1), "logger=none")


def test_neither_while_checking_nor_on_another_process(monkeypatch):
    monkeypatch.setattr(generate, "tensorboard_of", None)
    trainer = SimpleNamespace(
        global_step=9, sanity_checking=True, is_global_zero=True, strategy=None
    )
    callback = GeneratedSamples(every_steps=1, audio=False)
    callback.on_validation_end(trainer, None)
    assert callback.state_dict() == {"written": 0}
    trainer.sanity_checking, trainer.is_global_zero = False, False
    callback.on_validation_end(trainer, None)
    assert callback.state_dict() == {"written": 9}


def test_bad_settings_are_refused_before_training():
    with pytest.raises(UserError, match=r"soundfont=nowhere\.sf2: no such file"):
        GeneratedSamples(soundfont="nowhere.sf2")
    with pytest.raises(ValueError, match="every_steps=0"):
        GeneratedSamples(every_steps=0)
    with pytest.raises(ValueError, match="bars=0"):
        GeneratedSamples(bars=0)
