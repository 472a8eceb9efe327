"""Attribution finds what decided, where a made classifier says what that was."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from midi import DRUMS, make_score, note
from midigenre.build import make_tokenizer
from midigenre.data.phrases import MemorySongs, consecutive, phrase_length
from midigenre.models import Encoder, FieldEmbedding, LabelHead, PhraseClassifier, Pooling
from midigenre.tasks.explain import Explainer, log_odds

CONF = Path(__file__).parents[2] / "conf"
DATA = {"phrase_bars": 4, "phrase_seconds": None, "max_tokens": 512, "marks": False}
SLICED = ("remi", "cp", "octuple")
PITCHES = ("Pitch", "PitchDrum", "NoteOn", "DrumOn")


@lru_cache(maxsize=8)
def tokenizer(name):
    with initialize_config_dir(str(CONF), version_base=None):
        return make_tokenizer(compose("prepare", [f"tokenizer={name}"]))


class Counting(nn.Module):
    """Its log-odds of class 0 are the sum of a weight for each pitch token of the phrase."""

    def __init__(self, spec, weight_of):
        super().__init__()
        self.embedding = _Weights(spec, weight_of)

    def label_heads(self):
        return {"genre": nn.Identity()}

    def encode(self, batch):
        h = self.embedding(batch.ids_NF)
        phrase = torch.repeat_interleave(torch.arange(batch.n_phrases), torch.tensor(batch.lengths))
        return h.new_zeros(batch.n_phrases, 1).index_add(0, phrase, h), h

    def logits(self, h_B1):
        return {"genre": torch.cat([h_B1, torch.zeros_like(h_B1)], 1)}

    def forward(self, batch):
        return self.logits(self.encode(batch)[0])


class _Weights(nn.Module):
    def __init__(self, spec, weight_of):
        super().__init__()
        self.tables = nn.ModuleList()
        for field in spec.fields:
            rows = [
                weight_of(type_, int(value)) if type_ in PITCHES else 0.0
                for type_, value in zip(field.types, field.values, strict=True)
            ]
            self.tables.append(nn.Embedding.from_pretrained(torch.tensor(rows)[:, None]))

    def forward(self, ids_NF):
        return sum(table(ids) for table, ids in zip(self.tables, ids_NF.T, strict=True))


def band(bars, drums_at=(), seed=0):
    """Bars of two notes of piano and one of bass, with a snare where ``drums_at`` says so."""
    draw = np.random.default_rng(seed)
    notes = []
    for bar in range(bars):
        notes += [note(4 * bar + beat, 1, int(draw.integers(60, 72))) for beat in (0, 2)]
        notes.append(note(4 * bar + 1, 1, int(draw.integers(40, 52)), program=33))
        if bar in drums_at:
            notes.append(note(4 * bar + 3, 0.5, 38, program=DRUMS))
    return make_score(notes)


def explain(tok, model, scores, targets=None, data=DATA, **bounds):
    songs = MemorySongs([(s, tok.encode(s)) for s in map(tok.clean, scores)])
    phrases = consecutive(songs, np.arange(len(songs)), phrase_length(data, tok.spec))
    chosen = {k: targets or [0] * len(songs) for k in model.label_heads()}
    explainer = Explainer(model, tok.spec, data, **bounds)
    return explainer(songs, phrases, chosen)


def is_snare(type_, pitch):
    return 3.0 if type_ in ("PitchDrum", "DrumOn") and pitch == 38 else 0.0


@pytest.mark.parametrize("name", [*SLICED, "midilike", "tsd"])
def test_one_bar_and_one_program_decide(name):
    tok = tokenizer(name)
    (found,) = explain(tok, Counting(tok.spec, is_snare), [band(8, drums_at=[5])])
    genre = found["genre"]
    # Two phrases: the mean halves what one of them says.
    assert genre.log_odds == pytest.approx(1.5, abs=1e-5)
    assert genre.bars == pytest.approx([0, 0, 0, 0, 0, 1.5, 0, 0], abs=1e-5)
    assert genre.programs == pytest.approx({DRUMS: 1.5, 0: 0, 33: 0}, abs=1e-5)


def test_the_other_class_is_decided_against():
    tok = tokenizer("octuple")
    model = Counting(tok.spec, is_snare)
    (found,) = explain(tok, model, [band(8, drums_at=[5])], targets=[1])
    assert found["genre"].bars[5] == pytest.approx(-1.5, abs=1e-5)
    assert found["genre"].programs[DRUMS] == pytest.approx(-1.5, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(SLICED),
    bars=st.integers(2, 11),
    seed=st.integers(0, 999),
    drums=st.sets(st.integers(0, 10)),
)
def test_a_linear_model_adds_up(name, bars, seed, drums):
    tok = tokenizer(name)
    weights = np.random.default_rng(seed).normal(size=(2, 128)) * 0.3
    model = Counting(
        tok.spec, lambda type_, pitch: float(weights[int(type_ == "PitchDrum")][pitch])
    )
    data = DATA | {"phrase_bars": bars}  # no phrase vanishes
    score = band(bars, drums, seed)
    occluded = explain(tok, model, [score], data=data)[0]["genre"]
    assert occluded.bars.sum() == pytest.approx(occluded.log_odds, abs=1e-4)
    assert sum(occluded.programs.values()) == pytest.approx(occluded.log_odds, abs=1e-4)


@pytest.mark.parametrize("name", SLICED)
def test_a_constant_model_gives_nothing(name):
    tok = tokenizer(name)
    (found,) = explain(tok, Counting(tok.spec, lambda *_: 0.0), [band(9, drums_at=[2])])
    assert not found["genre"].bars.any()
    assert not any(found["genre"].programs.values())


def test_a_bar_that_is_a_phrase_leaves_the_mean_to_the_others():
    tok = tokenizer("octuple")
    (found,) = explain(tok, Counting(tok.spec, is_snare), [band(5, drums_at=[0, 4])])
    # Phrases say 3 and 3; without bar 4 there is only the first, without bar 0 the mean is 1.5.
    assert found["genre"].bars == pytest.approx([1.5, 0, 0, 0, 0], abs=1e-5)
    assert found["genre"].programs[DRUMS] == pytest.approx(3, abs=1e-5)


def test_where_nothing_is_left_nothing_is_said():
    tok = tokenizer("remi")
    score = make_score([note(0, 1, 60), note(1, 1, 62)])
    (found,) = explain(tok, Counting(tok.spec, lambda *_: 1.0), [score])
    assert np.isnan(found["genre"].bars).all()
    assert np.isnan(found["genre"].programs[0])


def test_bars_that_the_model_did_not_see_are_nan():
    tok = tokenizer("octuple")
    model = Counting(tok.spec, lambda *_: 1.0)
    # Three notes a bar: two bars fit.
    (found,) = explain(tok, model, [band(4)], data=DATA | {"max_tokens": 7})
    assert np.isnan(found["genre"].bars).tolist() == [False, False, True, True]
    assert found["genre"].bars[:2] == pytest.approx([3, 3], abs=1e-5)


def test_empty_bars_said_nothing():
    tok = tokenizer("remi")
    score = make_score([note(0, 1, 60), note(12, 1, 62)])
    (found,) = explain(tok, Counting(tok.spec, lambda *_: 1.0), [score])
    assert found["genre"].bars == pytest.approx([1, 0, 0, 1], abs=1e-5)


def encoder_of(spec, pooling="attention", n_classes=3):
    torch.manual_seed(1)
    names = [f"c{i}" for i in range(n_classes)]
    heads = [LabelHead("genre", names, 16), LabelHead("emotion", ["a", "b"], 16)]
    model = PhraseClassifier(
        FieldEmbedding(spec.sizes, 16), Encoder(16, 2, 2, 32), Pooling(pooling, 16), heads
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_company_and_batches_do_not_matter(pooling):
    tok = tokenizer("remi")
    model = encoder_of(tok.spec, pooling)
    scores = [band(n, drums_at=range(0, n, 2), seed=n) for n in (3, 9, 14)]
    targets = [1, 0, 1]
    alone = [
        explain(tok, model, [score], targets=[target])[0]
        for score, target in zip(scores, targets, strict=True)
    ]
    together = explain(tok, model, scores, targets=targets, batch_phrases=3, batch_tokens=90)
    for one, same in zip(alone, together, strict=True):
        for label in ("genre", "emotion"):
            assert one[label].log_odds == pytest.approx(same[label].log_odds, abs=3e-5)
            assert one[label].bars == pytest.approx(same[label].bars, abs=3e-5)
            assert one[label].programs == pytest.approx(same[label].programs, abs=3e-5)
            assert np.abs(one[label].bars).max() > 3e-4


def test_log_odds():
    p = np.array([0.2, 0.5, 0.3])
    for target in range(3):
        expected = np.log(p[target] / (1 - p[target]))
        assert log_odds(np.log(p), target) == pytest.approx(expected)
        assert log_odds(np.log(p) + 7, target) == pytest.approx(expected)  # up to a constant
    assert log_odds(np.zeros(1), 0) == 0


def test_a_vocabulary_without_programs_names_none():
    with initialize_config_dir(str(CONF), version_base=None):
        tok = make_tokenizer(compose("prepare", ["tokenizer=remi", "tokenizer.tracks=merged"]))
    (found,) = explain(tok, Counting(tok.spec, lambda *_: 1.0), [band(4)])
    assert found["genre"].programs == {}
    assert found["genre"].bars == pytest.approx([3, 3, 3, 3], abs=1e-5)


def test_marks_belong_to_no_bar():
    tok = tokenizer("remi")
    data = DATA | {"marks": True}
    (found,) = explain(tok, Counting(tok.spec, is_snare), [band(4, [3])], data=data)
    assert found["genre"].bars == pytest.approx([0, 0, 0, 3], abs=1e-5)
