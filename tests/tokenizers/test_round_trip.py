"""Every tokenizer of conf/tokenizer says exactly the music it was given, phrase by phrase."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from symusic.core import ScoreTick

from midi import DRUMS, make_score, melody, note, scores
from midigenre.build import make_tokenizer
from midigenre.errors import RejectedSongError, UserError
from midigenre.midi.song import Song
from midigenre.spec import Field, TokenSpec
from midigenre.tokenizers import Encoded, PhraseCutter, Tokenizer, from_spec
from midigenre.tokenizers.base import phrase_cutter
from midigenre.tokenizers.miditok import MidiTokTokenizer

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "tokenizer").glob("*.yaml"))
MAIN = ("remi", "cp", "octuple")

every_tokenizer = pytest.mark.parametrize("name", NAMES)
main_tokenizers = pytest.mark.parametrize("name", MAIN)


def examples(n: int):  # type: ignore[no-untyped-def]
    """Hypothesis settings: the same ``n`` examples in each run."""
    return settings(
        max_examples=n,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """MidiTok cuts songs and drops notes with no more than a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        yield


@lru_cache(maxsize=64)
def tokenizer(name: str, *overrides: str) -> MidiTokTokenizer:
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("prepare", [f"tokenizer={name}", *overrides])
    made = make_tokenizer(cfg)
    assert isinstance(made, MidiTokTokenizer)
    return made


def cleaned(tok: Tokenizer, score: ScoreTick) -> Song | None:
    """The song, or None where none of its notes can be used (hypothesis may draw such)."""
    try:
        return tok.clean(score)
    except RejectedSongError as error:
        assert error.reason == "empty"  # noqa: PT017
        return None


def phrase_ids(tok: Tokenizer, song: Song, encoded: Encoded, first: int, end: int) -> np.ndarray:
    """A phrase's tokens as the loader gets them."""
    if tok.spec.bars == "none":
        return tok.encode(song.bars(first, end)).ids_TF.astype(np.int64)
    ids, stop = PhraseCutter(tok.spec).cut(
        encoded.ids_TF, encoded.bar_steps, encoded.bar_tempo, first, end
    )
    assert stop == end
    return ids


def phrases(song: Song, n_bars: int) -> Iterator[tuple[int, int, Song]]:
    for first in range(0, song.n_bars, n_bars):
        end = min(first + n_bars, song.n_bars)
        yield first, end, song.bars(first, end)


def rows(score: ScoreTick) -> list[tuple[int, ...]]:
    """Every note as (onset, program, pitch, duration, velocity), sorted."""
    return sorted(
        (n.time, DRUMS if track.is_drum else track.program, n.pitch, n.duration, n.velocity)
        for track in score.tracks
        for n in track.notes
    )


def phrase_rows(song: Song) -> list[tuple[int, ...]]:
    n = song.notes
    return sorted(
        zip(
            *(c.tolist() for c in (n.onset, n.program, n.pitch, n.duration, n.velocity)),
            strict=True,
        )
    )


def in_force(changes: list[tuple], tick: int):  # type: ignore[no-untyped-def]
    """The value of the last of (tick, value) at or before ``tick``."""
    return [value for at, value in sorted(changes, key=lambda c: c[0]) if at <= tick][-1]


def as_octuple_says(phrase: Song) -> Song:
    """The phrase with the meters that Octuple's steps state.

    A bar without a note states no meter: it takes that of the last bar with one, at the start that
    of the first. Where these are the true meters, as in nearly all music, this is the phrase.
    """
    filled = np.flatnonzero(phrase.onsets_per_bar())
    if len(filled) == 0:
        return phrase
    source = filled[np.maximum(np.searchsorted(filled, np.arange(phrase.n_bars), "right") - 1, 0)]
    meters = phrase.meters[source]
    ticks = np.r_[0, np.cumsum(meters[:, 0] * phrase.tpq * 4 // meters[:, 1])].astype(np.int32)
    bar = np.searchsorted(phrase.bar_ticks, phrase.notes.onset, "right") - 1
    onset = phrase.notes.onset - phrase.bar_ticks[bar] + ticks[bar]
    return replace(phrase, meters=meters, bar_ticks=ticks, notes=replace(phrase.notes, onset=onset))


def as_note_offs_say(phrase: Song, tok: Tokenizer) -> Song:
    """The phrase as note-offs can say it: those behind its last bar lie on that bar's grid.

    The song may have a meter of another denominator there, which the phrase does not state.
    """
    start, end = phrase.bar_ticks[-2:]
    step = tok.grid.step_ticks(tuple(phrase.meters[-1].tolist()))
    ends = phrase.notes.onset + phrase.notes.duration
    rounded = start + np.floor((ends - start) / step + 0.5).astype(int) * step
    duration = np.where(ends > end, rounded, ends) - phrase.notes.onset
    return replace(phrase, notes=replace(phrase.notes, duration=duration))


# --- a: decoding what was encoded ----------------------------------------------------------------


@every_tokenizer
def test_a_phrase_decodes_to_exactly_its_music(name):
    """Notes, and at every bar with a note its meter and tempo where the vocabulary has them.

    MIDI-like gets fewer examples: MidiTok's decoder takes 50 ms for anything. Two cannot say all:
    Octuple is compared with :func:`as_octuple_says`, which moves bars, and only where a phrase has
    an empty one; note-offs with :func:`as_note_offs_say`, which moves ends by half a step, and only
    behind the phrase where the meter's denominator changes there.
    """
    tok = tokenizer(name)

    @examples(12 if "midilike" in name else 60)
    @given(scores(), st.integers(1, 5))
    def check(score: ScoreTick, n_bars: int) -> None:
        phrases_decode(tok, score, n_bars)

    check()


def phrases_decode(tok: Tokenizer, score: ScoreTick, n_bars: int) -> None:
    """Every phrase of the score decodes to its music."""
    types = {t for f in tok.spec.fields for t in f.types}
    song = cleaned(tok, score)
    if song is None:
        return
    encoded = tok.encode(song)
    for first, end, phrase in phrases(song, n_bars):
        if len(phrase.notes) == 0:
            continue  # see test_a_phrase_without_a_note
        ids = phrase_ids(tok, song, encoded, first, end)
        for column, field in enumerate(tok.spec.fields):
            assert ids[:, column].min() >= 0
            assert ids[:, column].max() < len(field), "an id that a model has no row for"
        decoded = tok.decode(ids)
        wanted = as_octuple_says(phrase) if tok.spec.name == "octuple" else phrase
        wanted = as_note_offs_say(wanted, tok) if tok.grid.cut_overlaps else wanted
        assert decoded.ticks_per_quarter == tok.grid.tpq
        assert rows(decoded) == phrase_rows(wanted)
        if "TimeSig" in types:
            stated = [(s.time, (s.numerator, s.denominator)) for s in decoded.time_signatures]
            for bar in np.flatnonzero(wanted.onsets_per_bar()):
                assert in_force(stated, wanted.bar_ticks[bar]) == tuple(wanted.meters[bar])
        if "Tempo" in types:
            said = [(t.time, t.qpm) for t in decoded.tempos]
            tempi = list(zip(phrase.tempo_ticks, phrase.tempo_qpm, strict=True))
            onsets = zip(phrase.notes.onset, wanted.notes.onset, strict=True)
            for true_onset, onset in set(onsets):
                assert in_force(said, onset) == pytest.approx(in_force(tempi, true_onset), rel=1e-3)


@every_tokenizer
def test_a_whole_song_decodes_to_exactly_its_music(name):
    tok = tokenizer(name)
    notes = [*melody(3, (3, 4)), *melody(4, (6, 8), 24, start=9), note(21, 1, 36, 99, DRUMS)]
    notes += [note(21, Fraction(1, 4), 60, 50), note(23, 4, 60, 120, 100)]
    score = make_score(
        notes, meters=[(0, 3, 4), (9, 6, 8), (21, 4, 4)], tempi=[(0, 60), (4, 200), (21.5, 90)]
    )
    song = tok.clean(score)
    ids_TF = tok.encode(song).ids_TF
    assert rows(tok.decode(ids_TF)) == phrase_rows(song)
    # Special tokens, which a generator puts around the music, are no music.
    special = [tok.spec.special(s) for s in ("BOS", "EOS", "PAD")]
    assert all(special)
    framed = np.concatenate([[special[0]], ids_TF, [special[1]], [special[2]] * 3])
    assert rows(tok.decode(framed)) == phrase_rows(song)


@every_tokenizer
def test_a_phrase_without_a_note_can_be_encoded_and_decoded(name):
    """Also one with a change of tempo or meter in it, which some tokenizers write and some not."""
    tok = tokenizer(name)
    notes = [note(0, 1, 60), note(16, 1, 62)]
    score = make_score(notes, meters=[(0, 4, 4), (8, 3, 4), (11, 5, 4)], tempi=[(0, 90), (9, 60)])
    song = tok.clean(score)
    encoded = tok.encode(song)
    for first, end in [(1, 2), (1, 3), (2, 3), (0, 3), (0, 2)]:
        phrase = song.bars(first, end)
        assert rows(tok.decode(tok.encode(phrase).ids_TF)) == phrase_rows(phrase)
        assert rows(tok.decode(phrase_ids(tok, song, encoded, first, end))) == phrase_rows(phrase)


def test_octuple_places_the_first_note_after_a_change_of_meter_where_miditok_does_not():
    """Hence a decoder of our own: MidiTok still counts its position in the old meter's bars."""
    tok = tokenizer("octuple")
    notes = [note(0, 1, 60), note(3.5, 0.5, 62), note(4, 1, 64)]
    song = tok.clean(make_score(notes, meters=[(0, 3, 4), (3, 6, 8)]))
    ids_TF = tok.encode(song).ids_TF
    assert [onset for onset, *_ in rows(tok.decode(ids_TF))] == [0, 112, 128]
    assert [onset for onset, *_ in rows(tok._tok.decode(ids_TF.tolist()))] == [0, 128, 128]


def test_octuple_cannot_say_the_meter_of_an_empty_bar():
    """The one exclusion from the exact round trip, as small as it is."""
    tok = tokenizer("octuple")
    meters = [(0, 4, 4), (4, 3, 4), (7, 4, 4)]
    song = tok.clean(make_score([note(0, 1, 60), note(8, 1, 62)], meters=meters))
    decoded = tok.decode(tok.encode(song).ids_TF)
    assert [onset for onset, *_ in phrase_rows(song)] == [0, 256]
    assert [onset for onset, *_ in rows(decoded)] == [0, 288]  # the empty bar is read as 4/4


def test_note_offs_behind_a_change_of_meter_lie_on_the_new_grid():
    """Off it, MidiTok drops what no time shift can say, and all later notes come too early."""
    tok = tokenizer("midilike")
    notes = [note(0, 2 + Fraction(1, 16), 60), note(3, 1, 62), note(4, 1, 64)]
    song = tok.clean(make_score(notes, meters=[(0, 4, 8), (2, 4, 4)]))
    assert phrase_rows(song) == [(0, 0, 60, 68, 79), (96, 0, 62, 32, 79), (128, 0, 64, 32, 79)]
    assert rows(tok.decode(tok.encode(song).ids_TF)) == phrase_rows(song)
    other = tok.clean(make_score([note(0, 4.0625, 60), note(0, 4.25, 62)], meters=[(0, 4, 4)]))
    assert rows(tok.decode(tok.encode(other).ids_TF)) == phrase_rows(other)


def test_note_offs_behind_a_phrase_lie_on_the_grid_of_its_last_bar():
    tok = tokenizer("midilike")
    ends = [4 + Fraction(i, 32) for i in (1, 3, 6, 9)]  # ticks of the 16ths' grid that follows
    notes = [note(0, end, 60 + i) for i, end in enumerate(ends)]
    score = make_score([*notes, note(4, 1, 72)], meters=[(0, 4, 4), (4, 4, 16)])
    song = tok.clean(score)
    assert [row[3] for row in phrase_rows(song)[:4]] == [129, 131, 134, 137]
    phrase = song.bars(0, 1)
    decoded = rows(tok.decode(tok.encode(phrase).ids_TF))
    assert decoded == phrase_rows(as_note_offs_say(phrase, tok))
    assert [row[3] for row in decoded] == [128, 132, 136, 136]


# --- b: a slice is the phrase encoded on its own -------------------------------------------------

sliced = pytest.mark.parametrize("name", [n for n in NAMES if tokenizer(n).spec.bars != "none"])


def test_which_tokenizers_can_be_sliced():
    kinds = {name: tokenizer(name).spec.bars for name in NAMES}
    known = {
        "remi": "token", "cp": "token", "mumidi": "token", "octuple": "field",
        "midilike": "none", "midilike291": "none", "tsd": "none",
    }  # fmt: skip
    assert known.items() <= kinds.items()
    assert {n for n in NAMES if phrase_cutter(tokenizer(n).spec) is None} == {
        n for n, bars in kinds.items() if bars == "none"
    }
    spec = tokenizer("remi").spec
    assert phrase_cutter(replace(spec)) is phrase_cutter(spec)  # one for equal vocabularies
    with pytest.raises(ValueError, match="not slices"):
        PhraseCutter(tokenizer("tsd").spec)


@sliced
def test_a_slice_equals_encoding_the_phrase_on_its_own(name):
    """Up to the empty bars after the last note, which an encoder does not write."""
    tok = tokenizer(name)
    cutter = PhraseCutter(tok.spec)

    @examples(60)
    @given(scores(), st.integers(1, 5), st.data())
    def check(score: ScoreTick, n_bars: int, data: st.DataObject) -> None:
        song = cleaned(tok, score)
        if song is None:
            return
        encoded = tok.encode(song)
        steps = encoded.bar_steps
        assert len(steps) == song.n_bars + 1
        assert (steps[0], steps[-1]) == (0, len(encoded.ids_TF))
        assert (np.diff(steps) >= 0).all()
        for first, end, phrase in phrases(song, n_bars):
            ids = phrase_ids(tok, song, encoded, first, end)
            own = tok.encode(phrase).ids_TF
            filled = np.flatnonzero(phrase.onsets_per_bar())
            if len(filled) == phrase.n_bars:
                assert tok.spec.words(ids) == tok.spec.words(own)
            elif len(filled):
                assert tok.spec.words(ids[: len(own)]) == tok.spec.words(own)
                rest = rows(tok.decode(ids)), rows(tok.decode(own))
                assert rest[0] == rest[1], "only empty bars may follow"
        max_tokens = data.draw(st.integers(1, len(encoded.ids_TF) + 4))
        first = data.draw(st.integers(0, song.n_bars - 1))
        cut = (encoded.ids_TF, steps, encoded.bar_tempo, first)
        ids, stop = cutter.cut(*cut, song.n_bars, max_tokens)
        assert first < stop <= song.n_bars
        assert len(ids) <= max_tokens
        whole, _ = cutter.cut(*cut, stop)
        if len(whole) <= max_tokens:
            assert (ids == whole).all(), "a phrase ends with a whole bar"
        else:
            assert stop == first + 1, "only the first bar may be cut inside"
            assert (ids == whole[:max_tokens]).all()
        if stop < song.n_bars:
            assert len(cutter.cut(*cut, stop + 1)[0]) > max_tokens, "the next bar would have fitted"

    check()


@main_tokenizers
def test_a_phrase_restates_the_tempo_in_force(name):
    tok = tokenizer(name)
    score = make_score(melody(4), tempi=[(0, 60), (6, 200), (12, 90)])
    song = tok.clean(score)
    encoded = tok.encode(song)
    wanted = [60, 60, 200, 90]
    for bar, qpm in enumerate(wanted):
        decoded = tok.decode(phrase_ids(tok, song, encoded, bar, bar + 1))
        assert decoded.tempos[0].time == 0
        assert decoded.tempos[0].qpm == pytest.approx(qpm, abs=4)  # tempi are binned


@sliced
def test_max_tokens_cuts_after_the_last_whole_bar_that_fits(name):
    tok = tokenizer(name)
    song = tok.clean(make_score(melody(4)))
    encoded = tok.encode(song)
    cutter = PhraseCutter(tok.spec)
    cut = (encoded.ids_TF, encoded.bar_steps, encoded.bar_tempo, 1)
    lengths = [len(cutter.cut(*cut, end)[0]) for end in (2, 3, 4)]
    assert lengths == sorted(lengths)
    for max_tokens, stop, length in [
        (None, 4, lengths[2]),
        (lengths[2], 4, lengths[2]),
        (lengths[2] - 1, 3, lengths[1]),
        (lengths[1], 3, lengths[1]),
        (lengths[1] - 1, 2, lengths[0]),
        (lengths[0] - 1, 2, lengths[0] - 1),
        (1, 2, 1),
    ]:
        ids, end = cutter.cut(*cut, 4, max_tokens)
        assert (end, len(ids)) == (stop, length), f"max_tokens={max_tokens}"


# --- c: the spec ---------------------------------------------------------------------------------

SONG = make_score(
    [*melody(5, (3, 4)), *melody(3, (4, 4), DRUMS, 15), *melody(3, (4, 4), 50, 15)],
    meters=[(0, 3, 4), (15, 4, 4)],
    tempi=[(0, 90), (6, 140)],
)


@every_tokenizer
def test_the_spec_goes_through_json_and_rebuilds_the_tokenizer(name):
    tok = tokenizer(name)
    spec = TokenSpec.from_dict(json.loads(json.dumps(tok.spec.to_dict())))
    assert spec == tok.spec
    assert spec.fingerprint() == tok.spec.fingerprint()
    rebuilt = from_spec(spec)
    assert rebuilt is not tok
    assert rebuilt.grid == tok.grid
    ids = rebuilt.encode(rebuilt.clean(SONG)).ids_TF
    assert (ids == tok.encode(tok.clean(SONG)).ids_TF).all()


def test_fingerprints_tell_vocabularies_and_settings_apart():
    specs = [tokenizer(name).spec for name in NAMES]
    specs += [tokenizer("remi", "tokenizer.beat_resolution=12").spec]
    specs += [tokenizer("remi", "tokenizer.max_song_bars=100").spec]
    assert len({s.fingerprint() for s in specs}) == len(specs)
    assert replace(specs[0], name="other").fingerprint() == specs[0].fingerprint()


@every_tokenizer
def test_a_changed_vocabulary_is_refused(name):
    spec = tokenizer(name).spec
    field = spec.fields[-1]
    changed = (
        Field(field.name, (*field.tokens, "New_1")),
        Field(field.name, (*field.tokens[:-2], field.tokens[-1], field.tokens[-2])),
    )
    for other in changed:
        with pytest.raises(UserError, match=f"'{name}'.*another vocabulary.*constraints.txt"):
            from_spec(replace(spec, fields=(*spec.fields[:-1], other)))


# --- d: long songs -------------------------------------------------------------------------------


@every_tokenizer
def test_a_song_of_more_bars_than_the_vocabulary_numbers_is_encoded_whole(name):
    """MidiTok's Octuple would cut it at 60 bars with a warning; warnings are errors here."""
    tok = tokenizer(name)
    n_bars = 3 * tok.spec.max_bars + 8
    song = tok.clean(make_score(melody(n_bars)))
    assert song.n_bars == n_bars
    encoded = tok.encode(song)
    for k in (1, 4, tok.spec.max_bars):
        for first in {0, 7, n_bars // 2, n_bars - k}:
            ids = phrase_ids(tok, song, encoded, first, first + k)
            for column, field in enumerate(tok.spec.fields):
                assert ids[:, column].max() < len(field)
                words = [field.tokens[i].split("_") for i in ids[:, column]]
                bars = [int(v) for t, v in words if t in ("Bar", "BarPosEnc") and v != "None"]
                assert not bars or (min(bars), max(bars)) == (0, k - 1)
    k = 4 if "midilike" in name else tok.spec.max_bars
    last = song.bars(n_bars - k, n_bars)
    ids = phrase_ids(tok, song, encoded, n_bars - k, n_bars)
    assert rows(tok.decode(ids)) == phrase_rows(last)


# --- e: the vocabulary of the twelve-corpora experiment -------------------------------------------


def test_midilike291_has_exactly_291_tokens():
    tok = tokenizer("midilike291")
    (field,) = tok.spec.fields
    assert len(field) == tok.spec.n_tokens == 291
    assert field.tokens[:3] == ("PAD_None", "BOS_None", "EOS_None")
    assert tok.spec.special("MASK") is None
    for type_ in ("NoteOn", "NoteOff"):
        assert [v for t, v in zip(field.types, field.values, strict=True) if t == type_] == [
            str(pitch) for pitch in range(128)
        ]
    shifts = [v for t, v in zip(field.types, field.values, strict=True) if t == "TimeShift"]
    sixteenths = [4 * int(beats) + int(rest) for beats, rest, _ in (v.split(".") for v in shifts)]
    assert sixteenths == list(range(1, 33))
    assert {v.split(".")[2] for v in shifts} == {"4"}
    assert tok.grid.tpq == 4


def test_midilike291_merges_all_tracks():
    notes = [note(0, 1, 60), note(1, 1, 60, program=40), note(2, 8, 36, 127, DRUMS)]
    tok = tokenizer("midilike291")
    song = tok.clean(make_score(notes, tempi=[(0, 60), (1, 200)]))
    assert tok.spec.words(tok.encode(song).ids_TF) == [
        "NoteOn_60", "TimeShift_1.0.4", "NoteOff_60", "NoteOn_60", "TimeShift_1.0.4",
        "NoteOff_60", "NoteOn_36", "TimeShift_8.0.4", "NoteOff_36",
    ]  # fmt: skip


# --- f: resolutions ------------------------------------------------------------------------------


@main_tokenizers
@pytest.mark.parametrize("resolution", [12, 24, 48])
def test_finer_grids_hold_triplets_exactly(name, resolution):
    tok = tokenizer(name, f"tokenizer.beat_resolution={resolution}")
    third = Fraction(1, 3)
    triplets = [note(i * third, third, 48 + i) for i in range(24)]
    straight = [note(8 + i * Fraction(1, 4), Fraction(1, 4), 60 + i) for i in range(12)]
    score = make_score([*triplets, *straight], meters=[(0, 4, 4), (8, 3, 4)])
    song = tok.clean(score)
    decoded = tok.decode(tok.encode(song).ids_TF)
    tpq = decoded.ticks_per_quarter
    times = [
        (Fraction(onset, tpq), Fraction(duration, tpq))
        for onset, _, _, duration, _ in rows(decoded)
    ]
    assert times == [(n.onset, n.duration) for n in [*triplets, *straight]]


def test_the_default_grid_does_not_hold_triplets():
    song = tokenizer("remi").clean(make_score([note(Fraction(1, 3), 1, 60)]))
    assert song.notes.onset.tolist() == [12]  # 3/8 of a quarter


# --- g: mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["tokenizer.cls=Remi"], r"tokenizer\.cls=Remi: MidiTok has .*CPWord.*Octuple.*REMI.*TSD"),
        (["tokenizer.cls=TokenizerConfig"], "MidiTok has .*REMI"),
        (["+tokenizer.params.num_velocites=3"], "num_velocites: MidiTok has .*num_velocities"),
        (["tokenizer.params.num_velocities=many"], "tokenizer 'remi'"),
        (["+tokenizer.params.pitch_range=[60,40]"], "tokenizer 'remi': .*pitch_range"),
        (["+tokenizer.wrong=1"], "tokenizer.*wrong"),
        (["tokenizer.time_signatures=[4/4,three]"], "'three' is not written as '3/4'"),
        (["tokenizer.time_signatures=[4/4,3/4/4]"], "'3/4/4' is not written as '3/4'"),
        (["tokenizer.time_signatures=[4/4,5/7]"], "5/7 is not a time signature"),
        (["tokenizer.time_signatures=[3/4]"], "must hold 4/4"),
        (["tokenizer.beat_resolution=0"], "1 or more"),
        (["tokenizer.tracks=drums"], r"tokenizer\.tracks=drums: choose all, melody, merged"),
        (["tokenizer.cls=PerTok"], "ticks_per_quarter"),
        (["tokenizer.cls=Structured"], r"Structured has no time sig.*time_signatures=\[4/4\]"),
        (["tokenizer.params.use_time_signatures=false"], r"bars of 4/4; set .*=\[4/4\]"),
        *(
            ([f"+tokenizer.params.{name}=1"], f"{name}: set tokenizer.beat_resolution, .time_sig")
            for name in ("beat_res", "time_signature_range", "special_tokens", "max_bar_embedding")
        ),
    ],
)  # fmt: skip
def test_mistakes_are_the_users_and_say_what_there_is(overrides, says):
    with pytest.raises(UserError, match=says) as caught:
        tokenizer("remi", *overrides)
    assert "\n" not in str(caught.value)


def test_notes_outside_the_vocabulary_are_counted_and_an_empty_rest_is_refused():
    tok = tokenizer("remi", "+tokenizer.params.pitch_range=[40,80]")
    song = tok.clean(make_score([note(0, 1, 60), note(1, 1, 39), note(9, 1, 81)]))
    assert phrase_rows(song) == [(0, 0, 60, 32, 79)]
    assert song.n_bars == 1
    assert song.repairs["notes outside the vocabulary"] == 2
    assert rows(tok.decode(tok.encode(song).ids_TF)) == phrase_rows(song)
    with pytest.raises(RejectedSongError, match="empty: no note in the tokenizer's pitches"):
        tok.clean(make_score([note(0, 1, 20)]))


def test_a_song_that_is_too_long_is_refused():
    tok = tokenizer("remi", "tokenizer.max_song_bars=100")
    assert tok.clean(make_score(melody(100))).n_bars == 100
    with pytest.raises(RejectedSongError, match="too_long"):
        tok.clean(make_score(melody(101)))


# --- h: MidiTok as the oracle --------------------------------------------------------------------


@main_tokenizers
def test_ids_are_those_of_miditoks_own_path(name):
    """On a file that lies on the grid, MidiTok's preprocessing and ours are the same."""
    tok = tokenizer(name)
    parts = st.tuples(
        st.integers(0, 16 * 8 - 1), st.integers(1, 60), st.integers(0, 127), st.integers(1, 127),
        st.sampled_from([DRUMS, 0, 33, 118]),
    )  # fmt: skip

    @examples(40)
    @given(
        st.lists(parts, min_size=1, max_size=40, unique_by=lambda p: (p[0], p[2], p[4])),
        st.floats(40, 250),
        st.floats(40, 250),
    )
    def check(notes: list, qpm: float, later_qpm: float) -> None:
        score = make_score(
            # MidiTok keeps the file's order of tracks and of notes at one onset.
            [
                note(at / 8, steps / 8, *rest)
                for at, steps, *rest in sorted(notes, key=lambda p: (p[4], p[0], p[2]))
            ],
            meters=[(0, 3, 4), (6, 4, 4), (10, 2, 4)],
            tempi=[(0, qpm), (5, later_qpm)],
        )
        own = tok._tok(score.copy())
        own = own[0] if isinstance(own, list) else own
        ids_TF = tok.encode(tok.clean(score)).ids_TF
        theirs = np.array(own.ids).reshape(-1, ids_TF.shape[1])
        # `clean` leaves out changes of meter and tempo after the last onset, which change no note.
        rest = " ".join(tok.spec.words(theirs[len(ids_TF) :]))
        assert "Pitch" not in rest
        theirs = theirs[: len(ids_TF)]
        assert tok.spec.words(ids_TF) == tok.spec.words(theirs)

    check()


# --- i: merged and neutral -----------------------------------------------------------------------


@every_tokenizer
def test_merged_and_neutral_music_has_no_program_velocity_or_tempo(name):
    tok = from_spec(_with(tokenizer(name).spec, tracks="merged", neutral=True))
    types = {t for f in tok.spec.fields for t in f.types}
    assert not types & {"Velocity", "Tempo"}
    if name != "mumidi":  # its steps always say the program, if only program 0
        assert "Program" not in types
    assert tok.spec.n_tokens <= tokenizer(name).spec.n_tokens
    song = tok.clean(SONG)
    assert set(song.notes.program.tolist()) == {0}
    assert len(set(song.notes.velocity.tolist())) == 1
    assert len(song.tempo_qpm) == 1
    encoded = tok.encode(song)
    for first, end, phrase in phrases(song, 3):
        ids = phrase_ids(tok, song, encoded, first, end)
        assert rows(tok.decode(ids)) == phrase_rows(phrase)
        assert (ids == tok.encode(phrase).ids_TF).all()


@pytest.mark.parametrize("tracks", ["melody", "merged"])
@every_tokenizer
def test_melody_and_merged_phrases_decode_to_exactly_their_music(name, tracks):
    tok = tokenizer(name, f"tokenizer.tracks={tracks}")
    assert from_spec(tok.spec).spec == tok.spec
    types = {t for f in tok.spec.fields for t in f.types}
    if name != "mumidi":
        assert "Program" not in types
    assert tok.spec.fields == tokenizer(name, "tokenizer.tracks=merged").spec.fields

    @examples(3 if "midilike" in name else 15)
    @given(scores())
    def check(score: ScoreTick) -> None:
        song = cleaned(tok, score)
        assert song is None or set(song.notes.program.tolist()) == {0}
        if song is not None and tracks == "melody":
            assert (np.diff(song.notes.onset) > 0).all()
            assert ((song.notes.onset + song.notes.duration)[:-1] <= song.notes.onset[1:]).all()
        phrases_decode(tok, score, 3)

    check()


def test_a_vocabulary_without_programs_reads_all_tracks_as_merged():
    score = make_score([note(0, 1, 60), note(0, 1, 72, program=40), note(0, 1, 81, program=DRUMS)])
    found = {
        tracks: tokenizer("midilike291", f"tokenizer.tracks={tracks}").clean(score).notes.pitch
        for tracks in ("all", "melody", "merged")
    }
    assert found["all"].tolist() == found["merged"].tolist() == [60, 72, 81]
    assert found["melody"].tolist() == [72]


def _with(spec: TokenSpec, **changes: bool | str) -> TokenSpec:
    """The spec of the same tokenizer with other settings."""
    arguments = dict(spec.tokenizer) | changes
    arguments.pop("_target_")
    return MidiTokTokenizer(**arguments).spec


# --- j: drums ------------------------------------------------------------------------------------


@main_tokenizers
def test_drums_have_pitches_of_their_own(name):
    tok = tokenizer(name)
    song = tok.clean(make_score([note(0, 1, 36), note(0, 1, 36, program=DRUMS)]))
    words = " ".join(tok.spec.words(tok.encode(song).ids_TF)).split()
    assert words.count("Pitch_36") == words.count("PitchDrum_36") == 1
    tokens = {t for f in tok.spec.fields for t in f.tokens}
    assert {f"{kind}_{p}" for kind in ("Pitch", "PitchDrum") for p in range(128)} <= tokens
