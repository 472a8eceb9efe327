"""Augmenting the tokens of a phrase equals encoding the augmented phrase."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from symusic.core import ScoreTick

from midi import DRUMS, make_score, melody, note, scores
from midigenre.build import make_tokenizer
from midigenre.data.augment import AugmentSettings
from midigenre.data.augment.notes import NoteAugmenter
from midigenre.data.augment.tokens import TokenAugmenter, why_not
from midigenre.errors import RejectedSongError
from midigenre.midi.song import Song
from midigenre.tokenizers import PhraseCutter, Tokenizer
from midigenre.tokenizers.miditok import MidiTokTokenizer
from midigenre.tokenizers.notes import NoteFinder

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "tokenizer").glob("*.yaml"))
MORE = {
    "bare remi": ("remi", "tokenizer.tracks=merged", "tokenizer.neutral=true"),
    "bare cp": ("cp", "tokenizer.tracks=merged", "tokenizer.neutral=true"),
    "bare octuple": ("octuple", "tokenizer.tracks=merged", "tokenizer.neutral=true"),
    "narrow remi": ("remi", "+tokenizer.params.pitch_range=[55,65]"),
    "one kind of pitch": ("octuple", "tokenizer.params.use_pitchdrum_tokens=false"),
    "few velocities": ("cp", "tokenizer.params.num_velocities=3", "tokenizer.beat_resolution=12"),
}
OPERATIONS: dict[str, dict[str, Any]] = {
    "transpose": {"transpose": (-24, 24)},
    "tempo": {"tempo": (-6, 6)},
    "velocity": {"velocity": (-4, 4), "velocity_noise": 2},
    "jitter": {"jitter": 0.7},
    "duration": {"duration": (0.3, 3.0)},
    "drop": {"drop": 1.0},
    "solo": {"solo": 1.0},
    "all": {
        "transpose": (-12, 12), "tempo": (-2, 2), "velocity": (-3, 3), "velocity_noise": 1,
        "jitter": 0.5, "duration": (0.5, 2.0), "drop": 0.4, "solo": 0.3,
    },
}  # fmt: skip


@lru_cache(maxsize=64)
def tokenizer(name: str) -> Tokenizer:
    base, *overrides = MORE.get(name, (name,))
    with initialize_config_dir(str(CONF), version_base=None):
        return make_tokenizer(compose("prepare", [f"tokenizer={base}", *overrides]))


@lru_cache(maxsize=512)
def augmenters(name: str, operation: str) -> tuple[TokenAugmenter, NoteAugmenter]:
    made = AugmentSettings(**OPERATIONS[operation])
    spec = tokenizer(name).spec
    return TokenAugmenter(spec, made), NoteAugmenter(spec, made)


TOKENS = [name for name in [*NAMES, *MORE] if not why_not(tokenizer(name).spec)]


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """MidiTok drops notes with no more than a warning, and numpy overflows so."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        yield


def examples(n: int):  # type: ignore[no-untyped-def]
    """Hypothesis settings: the same ``n`` examples in each run."""
    return settings(
        max_examples=n,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def cleaned(tok: Tokenizer, score: ScoreTick) -> Song | None:
    try:
        return tok.clean(score)
    except RejectedSongError:
        return None


def phrases_of(tok: Tokenizer, song: Song, n_bars: int) -> list[tuple[np.ndarray, Song]]:
    """The phrases with a note, as slices and as notes."""
    e, cutter = tok.encode(song), PhraseCutter(tok.spec)
    bounds = [(b, min(b + n_bars, song.n_bars)) for b in range(0, song.n_bars, n_bars)]
    cut = ((cutter.cut(e.ids_TF, e.bar_steps, e.bar_tempo, *b)[0], song.bars(*b)) for b in bounds)
    return [(ids, phrase) for ids, phrase in cut if len(phrase.notes)]


def keys(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 2**64 - 1, n, np.uint64)


def split(ids_NF: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    assert lengths.sum() == len(ids_NF)
    return np.split(ids_NF, np.cumsum(lengths)[:-1])


def check_same(tok: Tokenizer, name: str, operation: str, score: ScoreTick, n_bars: int, seed: int):
    """All phrases of a song as one batch, and each one's notes."""
    song = cleaned(tok, score)
    if song is None or not (phrases := phrases_of(tok, song, n_bars)):
        return
    on_tokens, on_notes = augmenters(name, operation)
    key = keys(len(phrases), seed)
    lengths = np.array([len(ids) for ids, _ in phrases])
    found = split(*on_tokens(np.concatenate([ids for ids, _ in phrases]), lengths, key))
    bar_types = {"Bar", "TimeSig", "BarPosEnc", "PositionPosEnc", "Family", "Ignore", "PAD"}
    for (ids, phrase), augmented, k in zip(phrases, found, key.tolist(), strict=True):
        changed = on_notes(phrase, k)
        own = tok.encode(changed)
        assert not own.fallback or "no fast encoder" in own.fallback
        own_ids = own.ids_TF.astype(np.int64)
        assert tok.spec.words(augmented[: len(own_ids)]) == tok.spec.words(own_ids)
        # An encoder does not write the empty bars behind the last note.
        for column, field in enumerate(tok.spec.fields):
            assert {field.types[i] for i in augmented[len(own_ids) :, column]} <= bar_types
        if len(augmented) != len(ids) or (augmented != ids).any():
            event("changed")


PAIRS = [(name, operation) for name in TOKENS if name in NAMES for operation in OPERATIONS]
PAIRS += [(name, "all") for name in MORE] + [("narrow remi", "transpose"), ("bare cp", "drop")]


@pytest.mark.parametrize(("name", "operation"), PAIRS)
def test_augmenting_tokens_equals_encoding_the_augmented_phrase(name, operation):
    tok = tokenizer(name)

    @examples(20 if operation == "all" else 8)
    @given(scores(), st.integers(1, 5), st.integers(0, 2**16))
    def check(score: ScoreTick, n_bars: int, seed: int) -> None:
        check_same(tok, name, operation, score, n_bars, seed)

    check()


@examples(25)
@given(scores(), st.sampled_from(TOKENS), st.integers(-12, 12), st.integers(1, 5))
def test_transposing_tokens_equals_transposing_the_score_and_encoding_it(score, name, by, n_bars):
    """The score itself: before it is cleaned, and by other code."""
    tok = tokenizer(name)
    on_tokens = TokenAugmenter(tok.spec, AugmentSettings(transpose=(by, by)))
    low, high = (55, 65) if name == "narrow remi" else (0, 127)
    merged = name.startswith("bare")  # the drums, too, are notes of the one piano there
    for track in score.tracks:  # none leaves the range
        for n in track.notes:
            if merged or not track.is_drum:
                n.pitch = min(max(n.pitch, low + max(0, -by)), high - max(0, by))
    moved = score.copy()
    for track in moved.tracks:
        if merged or not track.is_drum:
            for n in track.notes:
                n.pitch += by
    song, other = cleaned(tok, score), cleaned(tok, moved)
    if song is None or other is None or abs(by) > high - low - 1:
        return
    if len(song.notes) != len(other.notes):  # the narrow vocabulary lost others of them
        return
    pairs = zip(phrases_of(tok, song, n_bars), phrases_of(tok, other, n_bars), strict=True)
    for (ids, _), (wanted, _) in pairs:
        found, lengths = on_tokens(ids, np.array([len(ids)]), keys(1, 0))
        assert lengths.tolist() == [len(wanted)]
        assert tok.spec.words(found) == tok.spec.words(wanted)


SONG = make_score(
    [*melody(6), *melody(4, program=40, start=4), *melody(6, program=DRUMS), note(0, 2, 90)],
    tempi=[(0, 100), (6.5, 140), (9, 60)],
)


def batch(name: str, n_bars: int = 2) -> tuple[Tokenizer, np.ndarray, np.ndarray]:
    tok = tokenizer(name)
    cut = [ids for ids, _ in phrases_of(tok, tok.clean(SONG), n_bars)]
    return tok, np.concatenate(cut), np.array([len(ids) for ids in cut])


@pytest.mark.parametrize("name", TOKENS)
def test_a_phrase_without_a_key_stays_and_the_input_is_not_written_to(name):
    _, ids, lengths = batch(name)
    on_tokens, on_notes = augmenters(name, "all")
    before = ids.copy()
    found, found_lengths = on_tokens(ids, lengths, np.zeros(len(lengths), np.uint64))
    assert (found == before).all()
    assert found_lengths.tolist() == lengths.tolist()
    on_tokens(ids, lengths, keys(len(lengths), 1))
    assert (ids == before).all()
    phrase = tokenizer(name).clean(SONG).bars(0, 2)
    assert on_notes(phrase, 0) is phrase


@pytest.mark.parametrize("name", TOKENS)
def test_a_phrase_does_not_depend_on_its_batch(name):
    _, ids, lengths = batch(name)
    on_tokens, _ = augmenters(name, "all")
    key = keys(len(lengths), 5)
    together = split(*on_tokens(ids, lengths, key))
    order = np.arange(len(lengths))[::-1]
    parts = split(ids, lengths)
    turned = split(
        *on_tokens(np.concatenate([parts[i] for i in order]), lengths[order], key[order])
    )
    for i, part in enumerate(parts):
        (alone,) = split(*on_tokens(part, lengths[i : i + 1], key[i : i + 1]))
        assert alone.tolist() == together[i].tolist() == turned[len(parts) - 1 - i].tolist()
    other = split(*on_tokens(ids, lengths, keys(len(lengths), 6)))
    assert any(a.tolist() != b.tolist() for a, b in zip(together, other, strict=True))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_does_what_it_says(operation):
    """On the notes that are found in the tokens, whatever the note level does."""
    tok, ids, lengths = batch("octuple", 6)
    find = NoteFinder(tok.spec)
    on_tokens, _ = augmenters("octuple", operation)
    columns = {f.name: i for i, f in enumerate(tok.spec.fields)}
    before, seen = find(ids), set()
    for seed in range(30):
        found, _ = on_tokens(ids, lengths, keys(1, seed))
        after = find(found)
        seen.add(found.tobytes())

        def others_same(column: int, found: np.ndarray = found) -> bool:
            return bool((np.delete(found, column, 1) == np.delete(ids, column, 1)).all())

        assert len(found) > 0
        if operation in ("drop", "solo"):
            left, all_ = set(after.program.tolist()), set(before.program.tolist())
            assert len(left) == (1 if operation == "solo" else len(all_) - 1)
            kept = np.isin(before.program, list(left))
            assert (found == ids[kept]).all()
        elif operation == "transpose":
            by = after.pitch - before.pitch
            assert set(by[before.program == DRUMS]) <= {0}
            assert len(set(by[before.program != DRUMS])) == 1
            assert others_same(columns["Pitch"])
        elif operation == "jitter":
            assert set(after.position - before.position) <= {-1, 0, 1}
            assert others_same(columns["Position"])
            where = after.bar * 100 + after.position
            assert (np.diff(where) >= 0).all()
            assert ((np.diff(where) > 0) == (np.diff(before.bar * 100 + before.position) > 0)).all()
        elif operation != "all":
            assert others_same(columns[operation.capitalize()])
    assert len(seen) > 2


def test_a_shift_goes_only_as_far_as_all_notes_fit():
    tok, ids, lengths = batch("remi", 6)
    find = NoteFinder(tok.spec)
    top = find(ids).pitch[find(ids).program != DRUMS].max()
    for by, wanted in ((24, 24), (-24, -24)):
        augment = TokenAugmenter(tok.spec, AugmentSettings(transpose=(by, by)))
        found, _ = augment(ids, lengths, keys(1, 0))
        after = find(found)
        assert after.pitch[after.program != DRUMS].max() - top == wanted
    high = make_score([note(0, 1, 120), note(1, 1, 10), note(2, 1, 30, program=DRUMS)])
    song = tok.clean(high)
    ((high_ids, _),) = phrases_of(tok, song, 4)
    for by, wanted in ((24, 7), (-24, -10), (5, 5)):
        augment = TokenAugmenter(tok.spec, AugmentSettings(transpose=(by, by)))
        found, _ = augment(high_ids, np.array([len(high_ids)]), keys(1, 0))
        assert find(found).pitch.tolist() == [120 + wanted, 10 + wanted, 30]


def test_a_dropped_programs_positions_go_and_changes_of_tempo_stay():
    tok = tokenizer("remi")
    score = make_score([note(0, 1, 60), note(1, 1, 62, program=5), note(2, 1, 64, program=5),
                        note(4, 1, 65)], tempi=[(0, 60), (2, 90)])  # fmt: skip
    ((ids, _),) = phrases_of(tok, tok.clean(score), 2)
    augment = TokenAugmenter(tok.spec, AugmentSettings(drop=1.0))
    for seed in range(20):
        found, _ = augment(ids, np.array([len(ids)]), keys(1, seed))
        words = " ".join(tok.spec.words(found))
        if "Program_5" not in words:
            assert words == (
                "Bar_None TimeSig_4/4 Position_0 Tempo_60.32 Program_0 Pitch_60 Velocity_79 "
                "Duration_1.0.8 Position_16 Tempo_87.42 Bar_None TimeSig_4/4 Position_0 "
                "Program_0 Pitch_65 Velocity_79 Duration_1.0.8"
            )
            return
    pytest.fail("program 5 was never drawn")


def test_phrases_cut_inside_a_bar_and_marks_are_augmented_too():
    for name in TOKENS:
        tok, ids, _ = batch(name, 6)
        marked = np.concatenate([[tok.spec.special("BOS")], ids, [tok.spec.special("EOS")]])
        for operation in OPERATIONS:
            on_tokens, _ = augmenters(name, operation)
            whole, _ = on_tokens(ids, np.array([len(ids)]), keys(1, 2))
            found, _ = on_tokens(marked, np.array([len(marked)]), keys(1, 2))
            assert (found[1:-1] == whole).all()
            assert (found[[0, -1]] == marked[[0, -1]]).all()
            for n in range(1, len(ids), 7):
                part, lengths = on_tokens(ids[:n], np.array([n]), keys(1, n))
                assert 0 < len(part) <= n
                assert lengths.sum() == len(part)


def test_vocabularies_that_tokens_cannot_serve_say_why():
    assert "from their notes" in why_not(tokenizer("tsd").spec)
    chords = MidiTokTokenizer("chords", "REMI", {"use_chords": True})
    assert "Chord tokens" in why_not(chords.spec)
    mumidi = MidiTokTokenizer(
        "tempi", "MuMIDI", {"use_programs": True, "use_tempos": True, "use_time_signatures": False}
    )
    assert "each of its steps says a tempo" in why_not(mumidi.spec)
    with pytest.raises(ValueError, match="no augmentation of tokens"):
        TokenAugmenter(chords.spec, AugmentSettings(transpose=(1, 1)))
    assert set(TOKENS) == {"remi", "cp", "octuple", "mumidi", *MORE}


@pytest.mark.parametrize("name", ["midilike", "midilike291", "tsd"])
def test_phrases_of_notes_are_augmented_and_stay_what_the_vocabulary_can_say(name):
    """Encoded and decoded, an augmented phrase is itself."""
    tok = tokenizer(name)
    phrase = tok.clean(SONG).bars(0, 3)
    seen = set()
    for operation, how in OPERATIONS.items():
        on_notes = NoteAugmenter(tok.spec, AugmentSettings(**how))
        for key in keys(4, 3).tolist():
            changed = on_notes(phrase, key)
            decoded = tok.decode(tok.encode(changed).ids_TF)
            notes = sorted(
                (n.time, DRUMS if t.is_drum else t.program, n.pitch, n.velocity, n.duration)
                for t in decoded.tracks
                for n in t.notes
            )
            n = changed.notes
            velocity = n.velocity if name != "midilike291" else np.full(len(n), 100)
            wanted = (n.onset, n.program, n.pitch, velocity, n.duration)
            assert notes == sorted(zip(*(c.tolist() for c in wanted), strict=True)), operation
            seen.add(tuple(notes))
    assert len(seen) > 8
