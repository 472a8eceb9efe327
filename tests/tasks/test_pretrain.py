"""Masked modelling: what its scores mean, and that they compare."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))  # for toysongs.py

from toysongs import prepared

from midigenre.arrays import song_keys
from midigenre.corpora.toy import Toy
from midigenre.data.datamodule import PhraseDataModule
from midigenre.evaluation import tokens as tokens_module
from midigenre.evaluation.tokens import (
    MaskedMetrics,
    chosen_notes,
    evaluate_masked,
    phrase_keys,
)
from midigenre.models import Encoder, FieldEmbedding, MaskedHead, MaskedModel, Masking
from midigenre.tasks.optim import AdamWSettings
from midigenre.tasks.pretrain import PretrainTask
from midigenre.tokenizers.notes import NoteFinder

KINDS = ("remi", "cp", "octuple")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def shards(home):
    return {kind: prepared(Toy(n_songs=32), home, kind).folder for kind in (*KINDS, "tsd")}


def data_of(shards, kind, **settings):
    return PhraseDataModule(shards[kind], **{"phrase_bars": 4} | settings)


def made(data, seed=0, **masking):
    torch.manual_seed(seed)
    spec = data.shards.tokens
    chooser = Masking(spec, **masking)
    return MaskedModel(
        FieldEmbedding(spec.sizes, 16),
        Encoder(16, 1, 2, 16),
        chooser,
        MaskedHead(spec.sizes, 16, chooser.fields),
    )


def chosen(data, split="train"):
    """Song id, bar in the song, position, pitch and program of every note that is hidden."""
    find = NoteFinder(data.shards.tokens)
    ids = data.shards.manifest.column("song_id")
    found_all, n_notes = [], 0
    for batch in data.eval_dataloader(split):
        found = find(batch.ids_NF.numpy(), batch.cu_seqlens[:-1].numpy().astype(np.int64))
        n_notes += len(found)
        song, start = batch.song_B.numpy(), batch.start_B.numpy()
        hidden = chosen_notes(found, song_keys(ids)[song], start)
        found_all += [
            (ids[song[p]], *map(int, place))
            for p, *place in zip(
                found.phrase[hidden], (found.bar + start[found.phrase])[hidden],
                found.position[hidden], found.pitch[hidden], found.program[hidden], strict=True,
            )
        ]  # fmt: skip
    return sorted(found_all), n_notes


def test_the_same_notes_are_hidden_for_every_tokenizer_and_phrase_length(shards):
    notes, n_notes = chosen(data_of(shards, "remi"))
    assert len(notes) / n_notes == pytest.approx(0.15, abs=0.02)
    assert len({note[0] for note in notes}) > 10
    for kind, settings in (
        ("cp", {}), ("octuple", {}), ("octuple", {"phrase_bars": 3}),
        ("remi", {"phrase_bars": 7, "eval_batch_phrases": 3, "marks": True,
                  "max_tokens": 4096}),
    ):  # fmt: skip
        assert chosen(data_of(shards, kind, **settings)) == (notes, n_notes), (kind, settings)


def test_which_notes_are_hidden_never_changes():
    """Figures of different versions compare only while this holds."""
    assert song_keys(["a", "b/ü.mid"]).tolist() == [3405396810240292928, 7034253261291996130]
    latin_1 = b"b/\xfc.mid".decode(errors="surrogateescape")  # a name that is no UTF-8
    assert len({*song_keys([latin_1, "b/ü.mid"]).tolist()}) == 2

    class Notes:
        bar = np.arange(40) // 10
        position = np.arange(40) % 8
        pitch = 60 + np.arange(40) % 13
        program = np.where(np.arange(40) % 3 == 0, -1, 5)
        phrase = np.arange(40) // 20

    keys, start = song_keys(["a", "b/ü.mid"]), np.array([0, 12])
    assert np.flatnonzero(chosen_notes(Notes, keys, start, 0.15)).tolist() == [
        0,
        4,
        13,
        17,
        20,
        21,
        36,
        38,
    ]
    everything = chosen_notes(Notes, keys, start, 1.0)
    assert everything.all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_knows_nothing_scores_the_sum_of_the_logarithms(kind, shards):
    data = data_of(shards, kind)
    model = made(data)
    for weight in model.head.out.parameters():
        torch.nn.init.zeros_(weight)
    found = evaluate_masked(model, data, "test")
    spec = data.shards.tokens
    sizes = (
        [spec.sizes[0]] * 4 if len(spec.fields) == 1
        else [len(f) for f in spec.fields if f.name in ("Pitch", "Velocity", "Duration", "Program")]
    )  # fmt: skip
    assert found["nats_per_note"] == pytest.approx(sum(map(math.log, sizes)), rel=1e-5)
    for bound in found["ci95"]["nats_per_note"]:
        assert bound == pytest.approx(found["nats_per_note"])
    notes, _ = chosen(data, "test")
    assert found["n_notes"] == len(notes) > 10
    assert [row["n"] for row in found["attributes"].values()] == [len(notes)] * 4
    assert {"Pitch", "Velocity", "Duration", "Program"} == set(found["attributes"])
    assert {"Pitch", "Velocity", "Duration", "Program"} == set(found["fields"])
    for name, row in found["fields"].items():
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"])), name


@pytest.mark.parametrize("kind", KINDS)
def test_scores_do_not_hang_on_the_batches(kind, shards):
    """Also: parts of the nats of a note add up, and its interval holds it."""
    data = data_of(shards, kind)
    model = made(data, strategy="bar")
    whole = evaluate_masked(model, data, "test")
    single = evaluate_masked(model, data_of(shards, kind, eval_batch_phrases=1), "test")

    def same(one, other):
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
        return one == pytest.approx(other, rel=1e-5)

    assert same(whole, single)
    parts = sum(row["nats_per_note"] for row in whole["attributes"].values())
    assert whole["nats_per_note"] == pytest.approx(parts)
    low, high = whole["ci95"]["nats_per_note"]
    assert low < whole["nats_per_note"] < high


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_hidden_note_but_its_onset_is_seen(kind, shards, monkeypatch):
    data = data_of(shards, kind)
    model = made(data)
    seen = []

    def predict(self, batch, hidden_NF):
        seen.append((batch, hidden_NF))
        return original(self, batch, hidden_NF)

    original = MaskedModel.predict
    monkeypatch.setattr(MaskedModel, "predict", predict)
    found = evaluate_masked(model, data, "test")
    assert sum(int(hidden.sum()) for _, hidden in seen) == 4 * found["n_notes"]
    for batch, hidden in seen:
        masked = model.masking.hide(batch.ids_NF, hidden)
        of_mask = masked == torch.tensor(data.shards.tokens.special("MASK"))
        assert torch.equal(of_mask, hidden)
        types = [np.array(f.types) for f in data.shards.tokens.fields]
        for f, of_field in enumerate(types):
            assert set(of_field[batch.ids_NF[hidden[:, f], f]]) <= {
                "Pitch", "PitchDrum", "Velocity", "Duration", "Program",
            }  # fmt: skip


def test_where_notes_cannot_be_found_the_scores_say_why(shards):
    data = data_of(shards, "tsd")
    found = evaluate_masked(made(data), data, "test")
    assert found["nats_per_note"] is None
    assert "bars cannot be found" in found["why"]
    assert found["n_notes"] == 0
    assert found["loss"] > 0
    outcome = PretrainTask.test(made(data), data, None, {"eval_share": 0.3})
    assert "test/nats_per_note" not in outcome.scores
    assert outcome.evaluation["masked"]["share"] == 0.3


def test_metrics_are_those_of_the_tokens(shards):
    data = data_of(shards, "octuple")
    model = made(data)
    metrics = MaskedMetrics(model.masking)
    rows = []
    with torch.no_grad():
        for batch in data.eval_dataloader("val"):
            nats, hits, hidden = model.loss(batch, 0.15, phrase_keys(batch))
            attribute = model.masking.attributes_NF(batch.ids_NF)
            metrics.update(nats, hits, hidden, attribute)
            rows.append(torch.stack([nats[hidden], hits[hidden], attribute[hidden]], 1))
    nats, hits, attribute = torch.cat(rows).double().unbind(1)
    found = metrics.compute()
    assert float(found["loss"]) == pytest.approx(float(nats.mean()))
    assert float(found["perplexity"]) == pytest.approx(math.exp(float(nats.mean())))
    assert float(found["accuracy"]) == pytest.approx(float(hits.mean()))
    for a, name in enumerate(model.masking.attributes):
        of = attribute == a
        assert float(found[f"{name}/accuracy"]) == pytest.approx(float(hits[of].mean()))
        assert float(found[f"{name}/perplexity"]) == pytest.approx(float(nats[of].mean().exp()))
        assert metrics.fields()[name]["n"] == int(of.sum())


def test_training_hides_other_tokens_and_validation_does_not(shards):
    data = data_of(shards, "octuple")
    model = made(data)
    about = {"task": {"eval_share": 0.15}}
    task = PretrainTask(model, AdamWSettings(1e-3), about)
    task.log = lambda *_, **__: None
    task.count = lambda _: None
    batch = next(iter(data.eval_dataloader("val")))
    model.eval()  # of the losses only what is hidden may differ
    with torch.no_grad():
        torch.manual_seed(0)
        one, other = (float(task.training_step(batch, 0)) for _ in range(2))
        torch.manual_seed(0)
        again = float(task.training_step(batch, 0))
        assert one == again != other
        sums = []
        for _ in range(2):
            task.validation_step(batch, 0)
            sums.append(task.val_metrics.sums_A3.clone())
            task.val_metrics.reset()
    assert torch.equal(*sums)


def test_the_songs_choose_the_notes_and_not_their_number(shards, monkeypatch):
    """A key is that of the song's id, whatever its row."""
    data = data_of(shards, "octuple")
    ids = data.shards.manifest.column("song_id")
    assert len(set(song_keys(ids).tolist())) == len(ids)
    assert song_keys(ids[::-1]).tolist() == song_keys(ids).tolist()[::-1]
    assert tokens_module.NOTE_SHARE == 0.15
