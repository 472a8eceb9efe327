"""Sampled music is whole, is what the model says, and ends where it was told to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_grammar import NAMES, every_tokenizer, special, tokenizer

from midi import make_score, melody, note
from midigenre.generation.grammar import Grammar
from midigenre.generation.sampling import (
    Choice,
    Context,
    Sample,
    Sampler,
    SamplingSettings,
    Windows,
)
from midigenre.models import (
    LSTM,
    ConditionEmbedding,
    Encoder,
    FieldEmbedding,
    FieldHead,
    PhraseGenerator,
)
from midigenre.spec import UNKNOWN, Batch

LIKELIEST = Choice(temperature=0)


def sampler(
    name: str,
    max_tokens: int = 1024,
    bars: int = 16,
    backbone: str = "encoder",
    by: str = "prefix",
    seed: int = 0,
) -> Sampler:
    """An untrained model; its weights are large enough to have opinions."""
    torch.manual_seed(seed)
    grammar = Grammar(tokenizer(name))
    sizes = grammar.tokenizer.spec.sizes
    body = Encoder(32, 1, 2, 64, dropout=0.0) if backbone == "encoder" else LSTM(32, 1)
    model = PhraseGenerator(
        FieldEmbedding(sizes, 32, dropout=0.0),
        body,
        ConditionEmbedding({"genre": 3}, 32),
        FieldHead(sizes, 32, grammar.order),
        by,  # type: ignore[arg-type]
    )
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(1.5)
        for f, out in zip(grammar.tokenizer.spec.fields, model.head.out, strict=True):
            if f.name == "Bar":  # most numbers lie far behind
                out.bias -= 0.5 * torch.arange(len(f))
    return Sampler(model.eval(), grammar, Context(max_tokens, bars))


def check(made: Sampler, piece: Sample, n_bars: int) -> None:
    """The piece decodes whole, its notes inside the bars."""
    tok = made.grammar.tokenizer
    spec = tok.spec
    score = tok.decode(piece.ids_TF)
    starts = [f.is_type("Pitch", "PitchDrum", "NoteOn", "DrumOn") for f in spec.fields]
    n_notes = sum(int(s[piece.ids_TF[:, c] % len(s)].sum()) for c, s in enumerate(starts))
    assert score.note_num() == n_notes > 0
    song = tok.clean(score)
    assert len(song.notes) == n_notes  # nothing was doubled, cut away or mended
    assert song.n_bars <= n_bars
    # Bars behind the last note are empty and have the last meter.
    end = song.bar_ticks[-1] + (n_bars - song.n_bars) * np.diff(song.bar_ticks)[-1]
    assert (song.notes.onset + song.notes.duration).max() <= end


@every_tokenizer
def test_an_untrained_model_writes_valid_music(name):
    """84 pieces of each of six tokenizers: 504; a bar may be thousands of notes."""
    made = sampler(name, max_tokens=20_000)
    labels = {"genre": [0, 1, 2, UNKNOWN] * 7}
    for bars, settings in (
        (4, SamplingSettings(bars=4, seed=1)),
        (2, SamplingSettings(bars=2, seed=2, guidance=3.0)),
        (1, SamplingSettings(Choice(temperature=1.3, top_p=0.9), bars=1, seed=3)),
    ):
        for piece in made.sample(labels, settings, n=28):
            assert piece.stop in ("end", "bars")
            assert piece.n_bars == bars  # empty ones at the end too
            check(made, piece, bars)


@every_tokenizer
@pytest.mark.parametrize("backbone", ["encoder", "lstm"])
def test_pieces_longer_than_the_context_are_music_too(name, backbone):
    made = sampler(name, max_tokens=260, bars=4, backbone=backbone)
    for piece in made.sample({"genre": [0, 1, 2]}, SamplingSettings(bars=11), n=3):
        assert piece.stop in ("end", "bars", "context")
        assert piece.n_bars == 11 or (piece.stop, piece.n_bars < 11) == ("context", True)
        check(made, piece, 11)


def by_full_passes(made: Sampler, genre: int, guidance: float) -> list[list[int]]:
    """The likeliest piece, the whole stream recomputed at every step."""
    model, rows = made.model, made.grammar.start(1)
    bos = special(made.grammar.tokenizer, "BOS").tolist()
    rows.feed(0, np.array(bos))
    ids = list(bos)
    while not rows.done_B.all():
        chosen = torch.zeros(1, len(ids[0]), dtype=torch.int64)
        for place, column in enumerate(model.head.order):
            told = []
            for label in (genre, UNKNOWN):
                # A step more: the row before it foretells it.
                ids_NF = torch.tensor([*ids, ids[-1]])
                n, zero = len(ids_NF), torch.zeros(1, dtype=torch.int64)
                batch = Batch(
                    ids_NF, torch.tensor([0, n], dtype=torch.int32), (n,),
                    {"genre": torch.tensor([label])}, zero, zero,
                )  # fmt: skip
                h_1D = model(batch)[-1:]
                told.append(model.head.field_logits(h_1D, place, chosen).log_softmax(-1))
            logits = told[1] + guidance * (told[0] - told[1])
            allowed = rows.allowed(column, chosen)
            chosen[0, column] = logits.masked_fill(~allowed, -torch.inf).argmax()
        if rows.push(chosen)[0]:
            ids.append(chosen[0].tolist())
        if len(ids) >= 40:
            break
    return ids


@pytest.mark.parametrize(
    ("name", "backbone", "by", "guidance"),
    [
        ("remi", "encoder", "prefix", 1.0),
        ("cp", "encoder", "add", 2.5),
        ("octuple", "lstm", "prefix", 0.5),
        ("midilike", "lstm", "add", 1.0),
    ],
)
@torch.no_grad()
def test_the_likeliest_piece_is_that_of_full_passes(name, backbone, by, guidance):
    made = sampler(name, bars=64, backbone=backbone, by=by, seed=5)
    made.model.double()
    for field, out in zip(made.grammar.tokenizer.spec.fields, made.model.head.out, strict=True):
        out.bias[field.index["EOS_None"]] -= 9  # some weights would end at once
    settings = SamplingSettings(LIKELIEST, guidance=guidance, bars=None, tokens=40)
    pieces = made.sample({"genre": [2, 0]}, settings, n=2)
    for piece, genre in zip(pieces, (2, 0), strict=True):
        expected = by_full_passes(made, genre, guidance)
        n = min(len(expected), len(piece.ids_TF), 38)  # the last may be cut to whole notes
        assert n > 8
        assert piece.ids_TF[:n].tolist() == expected[:n]


def test_a_piece_is_the_same_in_any_company():
    made = sampler("remi", max_tokens=150, bars=3)
    made.model.double()
    settings = SamplingSettings(bars=5, seed=7)
    together = made.sample({"genre": [0, 1, 2, 0]}, settings, n=4)
    alone = made.sample({"genre": [2]}, settings, n=1, first=2)[0]
    assert np.array_equal(together[2].ids_TF, alone.ids_TF)
    other = made.sample({"genre": [2]}, SamplingSettings(bars=5, seed=8), n=1, first=2)[0]
    assert not np.array_equal(other.ids_TF, alone.ids_TF)
    assert not np.array_equal(together[0].ids_TF, together[3].ids_TF)


@every_tokenizer
def test_pieces_end_where_they_were_told_to(name):
    made = sampler(name, max_tokens=20_000)
    tok = made.grammar.tokenizer
    for piece in made.sample({"genre": [1] * 4}, SamplingSettings(bars=None, tokens=60), n=4):
        assert len(piece.ids_TF) <= 60 or tok.spec.bars == "none"
        assert piece.stop in ("tokens", "end")
        score = tok.decode(piece.ids_TF)
        if score.note_num():
            assert len(tok.clean(score).notes) == score.note_num()
    settings = SamplingSettings(bars=None, seconds=6.0, tokens=4000)
    pieces = made.sample({"genre": [1] * 4}, settings, n=4)
    heard = [piece for piece in pieces if tok.decode(piece.ids_TF).note_num()]
    assert heard  # six seconds may be silent
    for piece in heard:
        song = tok.clean(tok.decode(piece.ids_TF))
        at = song.bar_seconds()
        assert piece.stop in ("seconds", "end", "tokens")
        if piece.stop == "seconds":
            assert piece.n_bars >= song.n_bars
            assert song.with_rests(piece.n_bars).file_seconds[-1] > 5.9
            assert at[-2] < 6.1  # the last bar begins before; tempi are rounded


@every_tokenizer
def test_a_primer_is_kept_and_its_bars_come_on_top(name):
    made = sampler(name)
    tok = made.grammar.tokenizer
    song = tok.clean(make_score([*melody(4, (4, 4)), note(3.5, 2, 40, 90, 5)]))
    phrase = song.bars(0, 1)
    assert len(phrase.notes) > 1
    primer = tok.encode(phrase).ids_TF.astype(np.int64)
    settings = SamplingSettings(bars=2)
    pieces = made.sample({"genre": [0, 1]}, settings, n=2, primer=primer, primer_bars=phrase.n_bars)
    for piece in pieces:
        assert np.array_equal(piece.ids_TF[1 : len(primer) + 1], primer)
        assert piece.n_drawn == len(piece.ids_TF) - len(primer) - 1
        made_song = tok.clean(tok.decode(piece.ids_TF))
        assert made_song.n_bars <= piece.n_bars == phrase.n_bars + 2
        start = made_song.notes.select(made_song.notes.onset < made_song.bar_ticks[phrase.n_bars])
        assert len(start) == len(phrase.notes)


@pytest.mark.parametrize("name", NAMES)
def test_windows_are_those_that_training_cuts(name):
    """The window of a song that a row has been fed is the phrase of its last bars."""
    tok = tokenizer(name)
    grammar = Grammar(tok)
    beats = 3 if any("TimeSig" in f.types for f in tok.spec.fields) else 4
    notes = [
        note(bar * beats + beat + 0.5 * (bar % 2), 0.5, 48 + 5 * beat + bar, 64, program)
        for bar in range(8) for beat in range(2) for program in (0, 33)
    ]  # fmt: skip
    score = make_score(notes, meters=[(0, beats, 4)], tempi=[(0, 100), (6, 140)])
    song = tok.clean(score)
    ids = np.concatenate([special(tok, "BOS"), tok.encode(song).ids_TF.astype(np.int64)])
    rows = grammar.start(1)
    rows.feed(0, ids)
    windows = Windows(grammar, Context(1000, 64))
    for first in (2, 3, 5):
        found = windows.cut(ids, rows, 0, first)
        expected = tok.encode(song.bars(first, song.n_bars)).ids_TF
        assert tok.spec.words(found) == tok.spec.words(expected)
    assert windows.cut(ids, rows, 0, 0) is ids


def test_a_note_that_began_before_the_window_has_no_end_in_it():
    tok = tokenizer("midilike")
    grammar = Grammar(tok)
    song = tok.clean(make_score([note(0, 6, 60), note(4, 1, 64), note(4, 4, 60, 80, 5)]))
    ids = np.concatenate([special(tok, "BOS"), tok.encode(song).ids_TF.astype(np.int64)])
    rows = grammar.start(1)
    rows.feed(0, ids)
    words = " ".join(tok.spec.words(Windows(grammar, Context(99, 9)).cut(ids, rows, 0, 1)))
    assert words.startswith("TimeSig_4/4 Tempo_")
    assert words.count("NoteOn") == words.count("NoteOff") == 2


@pytest.mark.parametrize(
    "settings",
    [{"bars": 0}, {"seconds": -1.0}, {"tokens": 0}, {"seed": -1}, {"bars": None, "tokens": None}],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match="|".join(settings)):
        SamplingSettings(**settings)
