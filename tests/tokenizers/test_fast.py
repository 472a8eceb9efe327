"""The vectorised encoders write exactly MidiTok's ids, and say what they leave to MidiTok."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from symusic.core import ScoreTick

from midi import DRUMS, make_score, melody, note, scores
from midigenre.errors import RejectedSongError
from midigenre.midi.song import NoteTable, Song
from midigenre.tokenizers import Encoded, PhraseCutter
from midigenre.tokenizers.fast import MISSING_ID, NotCoveredError, fast_encoder
from midigenre.tokenizers.miditok import MidiTokTokenizer

CONF = Path(__file__).parents[2] / "conf"
FAST = ("REMI", "CPWord", "Octuple")
METERS = [f"{n}/{d}" for d in (1, 2, 4, 8, 16) for n in (1, 2, 3, 4, 5, 6, 7, 9, 12)]


@lru_cache(maxsize=256)
def _tokenizer(settings_json: str) -> MidiTokTokenizer:
    return MidiTokTokenizer(**json.loads(settings_json))


def tokenizer(**changes: Any) -> MidiTokTokenizer:
    """A tokenizer of all tokens, with these settings changed."""
    made = {"name": "t", "cls": "REMI", "time_signatures": METERS, **changes}
    params = {"use_programs": True, "use_tempos": True, "use_time_signatures": True}
    made["params"] = {**params, **changes.get("params", {})}
    return _tokenizer(json.dumps(made))


def of_config(name: str) -> MidiTokTokenizer:
    with initialize_config_dir(str(CONF), version_base=None):
        made = OmegaConf.to_container(compose(f"tokenizer/{name}").tokenizer)
    assert isinstance(made, dict)
    del made["_target_"]
    return _tokenizer(json.dumps(made))


def class_of(path: Path) -> str:
    return str(OmegaConf.load(path).cls)


PATHS = sorted((CONF / "tokenizer").glob("*.yaml"))
NAMES = [path.stem for path in PATHS if class_of(path) in FAST]
OTHERS = [path.stem for path in PATHS if class_of(path) not in FAST]


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
    """MidiTok drops notes with no more than a warning, and numpy overflows so."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        yield


def cleaned(tok: MidiTokTokenizer, score: ScoreTick) -> Song | None:
    try:
        return tok.clean(score)
    except RejectedSongError:
        return None


def check_same(tok: MidiTokTokenizer, song: Song) -> Encoded:
    """The fast encoder covers the song, and gives what MidiTok gives."""
    fast, wanted = tok.encode(song), tok.encode_with_miditok(song)
    assert fast.fallback == ""
    for name in ("ids_TF", "bar_steps", "bar_tempo"):
        a, b = getattr(fast, name), getattr(wanted, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert fast.ids_TF.flags.c_contiguous
    return fast


def check_song_and_phrases(tok: MidiTokTokenizer, score: ScoreTick, n_bars: int) -> None:
    song = cleaned(tok, score)
    if song is None:
        return
    encoded = check_same(tok, song)
    for first in range(0, song.n_bars, n_bars):
        end = min(first + n_bars, song.n_bars)
        phrase = song.bars(first, end)
        check_same(tok, phrase)  # also one without a note
        cut = PhraseCutter(tok.spec).cut
        cut(encoded.ids_TF, encoded.bar_steps, encoded.bar_tempo, first, end)


# --- identity ------------------------------------------------------------------------------------


def test_there_is_a_config_of_every_class():
    assert {class_of(CONF / "tokenizer" / f"{name}.yaml") for name in NAMES} == set(FAST)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_gives_miditoks_ids(name):
    tok = of_config(name)

    @examples(40)
    @given(scores(), st.integers(1, 5))
    def check(score: ScoreTick, n_bars: int) -> None:
        check_song_and_phrases(tok, score, n_bars)

    check()


@st.composite
def tokenizers(draw: st.DrawFn) -> MidiTokTokenizer:
    """Settings that a YAML file may have, of the three classes."""
    meters = draw(st.booleans())
    pitches = draw(st.sampled_from([(0, 127), (21, 108), (60, 61)]))
    drums = draw(st.sampled_from([(0, 127), (27, 88), (60, 62)]))
    params: dict[str, Any] = {
        "use_programs": draw(st.booleans()),
        "use_pitchdrum_tokens": draw(st.booleans()),
        "use_velocities": draw(st.booleans()),
        "num_velocities": draw(st.sampled_from([1, 8, 32, 127])),
        "use_tempos": draw(st.booleans()),
        "num_tempos": draw(st.sampled_from([1, 7, 32])),
        "tempo_range": draw(st.sampled_from([(40, 250), (17, 333)])),
        "log_tempos": draw(st.booleans()),
        "use_time_signatures": meters,
        "pitch_range": pitches,
        "drums_pitch_range": drums,
    }
    if draw(st.booleans()):
        params["use_note_duration_programs"] = []
    if draw(st.integers(0, 3)) == 0:
        params["programs"] = [-1, 0, 30, 33]
    few = draw(st.sets(st.sampled_from(METERS), max_size=4))
    signatures = draw(st.sampled_from([METERS, sorted({"4/4", *few}), ["4/4"]]))
    return tokenizer(
        cls=draw(st.sampled_from(FAST)),
        params=params,
        time_signatures=signatures if meters else ["4/4"],
        beat_resolution=draw(st.sampled_from([4, 6, 8, 12, 24, 48])),
        max_duration_beats=draw(st.sampled_from([1, 3, 16])),
        special_tokens=draw(st.sampled_from([["PAD"], ["PAD", "BOS", "EOS", "MASK"]])),
        tracks=draw(st.sampled_from(["all", "all", "melody", "merged"])),
        neutral=draw(st.integers(0, 4)) == 0,
    )


@examples(120)
@given(tokenizers(), scores(), st.integers(1, 5))
def test_every_setting_gives_miditoks_ids(tok, score, n_bars):
    assume(cleaned(tok, score) is not None)
    event(tok.spec.tokenizer["cls"])
    check_song_and_phrases(tok, score, n_bars)


@st.composite
def crowded(draw: st.DrawFn) -> ScoreTick:
    """Changes of tempo and of meter in most bars, empty ones too, and chords across the tracks."""
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    tpq, at = 480, 0
    meters = []
    for _ in range(draw(st.integers(1, 30))):
        numerator, denominator = (int(part) for part in str(random.choice(METERS)).split("/"))
        meters.append((at / tpq, numerator, denominator))
        at += int(random.integers(1, 4)) * numerator * 4 * tpq // denominator
    quarters = at / tpq
    spread = draw(st.sampled_from([0.1, 0.5, 1.0]))  # the music may end long before the meters
    n = draw(st.sampled_from([1, 30, 400]))
    onsets = np.sort(random.integers(0, max(1, int(quarters * spread * 4)), n)) / 4
    notes = [
        note(
            float(onset),
            float(random.choice([0, 0.25, 1, 3, 7])),
            int(random.integers(58, 64)),
            int(random.integers(1, 128)),
            int(random.choice([DRUMS, 0, 33, 127])),
        )
        for onset in onsets
    ]
    times = random.integers(0, max(1, int(quarters * 8)), draw(st.sampled_from([0, 3, 60]))) / 8
    tempi = [(float(time), float(random.integers(20, 300))) for time in times]
    return make_score(notes, meters, tempi, tpq)


@examples(60)
@given(tokenizers(), crowded(), st.integers(1, 5))
def test_many_changes_of_meter_and_tempo_give_miditoks_ids(tok, score, n_bars):
    check_song_and_phrases(tok, score, n_bars)


ALL_AT_ONCE = make_score(
    [
        note(0, 1, 60, 80, 40), note(0, 1, 64, 80, 0), note(0, 0.5, 36, 80, DRUMS),
        note(3, 1, 60, 80, 0), note(3, 1, 57, 80, 0), note(9.5, 1, 62, 80, 0),
    ],
    meters=[(0, 3, 4), (3, 6, 8), (6, 2, 4), (8, 4, 4)],
    tempi=[(0, 60), (3, 90), (4.5, 60), (9.5, 90)],
)  # fmt: skip


def test_the_order_at_one_tick_is_meter_tempo_and_notes_by_program_and_pitch():
    """And bars without a note say their own meter, a tempo between notes its own position."""
    params = {"use_velocities": False, "use_note_duration_programs": [], "num_tempos": 8}
    tok = tokenizer(params=params | {"tempo_range": (60, 130)})
    encoded = tok.encode(tok.clean(ALL_AT_ONCE))
    assert encoded.fallback == ""
    assert " ".join(tok.spec.words(encoded.ids_TF)) == (
        "Bar_None TimeSig_3/4 Position_0 Tempo_60.0 Program_-1 PitchDrum_36 Program_0 Pitch_64 "
        "Program_40 Pitch_60 "
        "Bar_None TimeSig_6/8 Position_0 Tempo_90.0 Program_0 Pitch_57 Program_0 Pitch_60 "
        "Position_24 Tempo_60.0 "
        "Bar_None TimeSig_2/4 "
        "Bar_None TimeSig_4/4 Position_12 Tempo_90.0 Program_0 Pitch_62"
    )
    assert encoded.bar_steps.tolist() == [0, 10, 20, 22, 28]
    check_same(tok, tok.clean(ALL_AT_ONCE))


@pytest.mark.parametrize("cls", FAST)
def test_empty_bars_behind_the_last_note_say_their_changes_of_meter_and_tempo(cls):
    tok = tokenizer(cls=cls)
    meters = [(0, 4, 4), (4, 3, 4), (7, 6, 8), (10, 2, 2), (14, 4, 4)]
    notes = [note(0, 1, 60), note(20, 1, 62)]
    for tempi in ([(0, 60)], [(0, 60), (5, 120)], [(0, 60), (5, 120), (11.5, 60)]):
        song = tok.clean(make_score(notes, meters, tempi))
        for first in range(song.n_bars):
            for end in range(first + 1, song.n_bars + 1):
                check_same(tok, song.bars(first, end))


@pytest.mark.parametrize("cls", FAST)
def test_a_wrong_id_would_be_seen(cls, monkeypatch):
    """The comparison is one: it sees a single other id in a long song."""
    tok = tokenizer(cls=cls)
    song = tok.clean(make_score(melody(20)))
    check_same(tok, song)
    right = tok._fast.encode(song)
    for name in ("ids_TF", "bar_steps", "bar_tempo"):
        for where in (0, len(getattr(right, name)) // 2, -1):
            values = getattr(right, name).copy()
            values[where] += 1
            wrong = replace(right, **{name: values})
            monkeypatch.setattr(tok._fast, "encode", lambda _, wrong=wrong: wrong)
            with pytest.raises(AssertionError):
                check_same(tok, song)


def test_a_melody_cut_by_a_note_on_a_finer_grid_has_a_duration_that_its_meter_can_say():
    """MidiTok has no token for 33 ticks in 4/2 and dies of it."""
    tok = tokenizer(tracks="melody")
    score = make_score([note(7, 4, 60), note(8 + 1 / 32, 1, 72)], [(0, 4, 2), (8, 4, 16)])
    song = tok.clean(score)
    assert song.notes.onset.tolist() == [224, 257]
    assert song.notes.duration.tolist() == [32, 32]
    check_same(tok, song)


# --- what is left to MidiTok ---------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
def test_other_classes_are_left_to_miditok(name):
    tok = of_config(name)
    song = tok.clean(make_score([*melody(3), *melody(3, program=40)]))
    encoded, wanted = tok.encode(song), tok.encode_with_miditok(song)
    assert encoded.fallback == f"no fast encoder for {tok.spec.tokenizer['cls']}"
    assert wanted.fallback == ""
    assert (encoded.ids_TF == wanted.ids_TF).all()


@pytest.mark.parametrize(
    ("cls", "params", "reason"),
    [
        ("REMI", {"use_rests": True}, "use_rests"),
        ("REMI", {"use_chords": True}, "use_chords"),
        ("CPWord", {"use_chords": True}, "use_chords"),
        ("REMI", {"use_sustain_pedals": True}, "use_sustain_pedals"),
        ("REMI", {"use_pitch_bends": True}, "use_pitch_bends"),
        ("REMI", {"use_pitch_intervals": True}, "use_pitch_intervals"),
        ("REMI", {"use_control_changes": True}, "use_control_changes"),
        ("REMI", {"use_key_signatures": True}, "use_key_signatures"),
        ("REMI", {"program_changes": True}, "program_changes"),
        ("REMI", {"one_token_stream_for_programs": False}, "one stream for each program"),
        ("REMI", {"use_note_duration_programs": [0, 1]}, "durations for some programs only"),
    ],
)
def test_other_tokens_are_left_to_miditok(cls, params, reason):
    tok = tokenizer(cls=cls, params=params)
    song = tok.clean(make_score(melody(3)))
    encoded, wanted = tok.encode(song), tok.encode_with_miditok(song)
    assert encoded.fallback == f"no fast encoder with {reason}"
    assert (encoded.ids_TF == wanted.ids_TF).all()


@pytest.mark.parametrize("param", ["use_bar_end_tokens", "add_trailing_bars"])
def test_other_bar_tokens_are_left_to_miditok(param):
    tok = tokenizer(params={param: True})
    assert fast_encoder(tok._tok) == (None, f"no fast encoder with {param}")


@pytest.mark.parametrize("cls", FAST)
def test_a_value_without_a_token_is_not_written(cls):
    """Neither does MidiTok write it: a song that did not come out of the tokenizer's ``clean``."""
    tok = tokenizer(cls=cls, params={"programs": [0, 1], "pitch_range": (40, 90)})
    song = tok.clean(make_score(melody(3, (3, 4)), [(0, 3, 4)], [(0, 60), (2, 120)]))
    check_same(tok, song)

    def with_note(**values: int) -> Song:
        columns = {k: v.copy() for k, v in song.notes.columns().items()}
        for name, value in values.items():
            columns[name][4] = value
        return replace(song, notes=NoteTable(**columns))

    for wrong, type_ in [
        (with_note(pitch=39), "Pitch"),
        (with_note(velocity=1), "Velocity"),
        (with_note(duration=10**6), "Duration"),
        (with_note(duration=song.notes.duration[4] + 1), "Duration"),
        (replace(song, tempo_qpm=song.tempo_qpm + 1), "Tempo"),
        (replace(song, meters=song.meters + np.array([10, 0])), "TimeSig"),
        (replace(song, notes=replace(song.notes, program=song.notes.program + 7)), "Program"),
    ]:
        with pytest.raises(NotCoveredError, match=f"^no token for a value of {type_}$"):
            tok._fast.encode(wrong)
        with pytest.raises(KeyError):
            tok.encode(wrong)


@pytest.mark.parametrize("cls", FAST)
def test_a_song_without_a_tempo_at_its_start_is_left_to_miditok(cls):
    tok = tokenizer(cls=cls)
    song = tok.clean(make_score(melody(3), tempi=[(0, 60), (5, 120)]))
    late = replace(song, tempo_ticks=song.tempo_ticks[1:], tempo_qpm=song.tempo_qpm[1:])
    encoded = tok.encode(late)
    assert encoded.fallback == "no tempo at tick 0"
    assert (encoded.ids_TF == tok.encode_with_miditok(late).ids_TF).all()


def test_more_bars_than_octuple_numbers_are_left_to_miditok():
    tok = tokenizer(cls="Octuple", max_bars=8, max_song_bars=8)
    check_same(tok, tok.clean(make_score(melody(8))))
    longer = tokenizer(cls="Octuple").clean(make_score(melody(9)))
    with pytest.raises(NotCoveredError, match="more than the 8 bars"):
        tok._fast.encode(longer)


def test_several_programs_without_program_tokens_are_left_to_miditok():
    tok = tokenizer(params={"use_programs": False})
    song = tokenizer().clean(make_score([*melody(2), *melody(2, program=5)]))
    with pytest.raises(NotCoveredError, match="several programs"):
        tok._fast.encode(song)
    assert len(set(tok.clean(make_score(melody(2, program=5))).notes.program)) == 1


def test_missing_is_no_id():
    for cls in FAST:
        vocabulary = tokenizer(cls=cls).spec.sizes
        assert max(vocabulary) < MISSING_ID
