"""Reading and cleaning: what is refused, what is repaired and how, and what always holds."""

from __future__ import annotations

import ast
import io
from collections import Counter
from fractions import Fraction
from pathlib import Path

import mido
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from symusic.core import NoteTick, ScoreTick, TempoTick, TimeSignatureTick, TrackTick

import midigenre
from midi import DRUMS, TPQS, make_score, melody, midi_file, note, scores, to_bytes
from midigenre.errors import RejectedSongError
from midigenre.midi.clean import NEUTRAL_VELOCITY, REJECTIONS, clean
from midigenre.midi.read import read_score
from midigenre.midi.song import Grid, Song

METERS = (
    *((n, 2) for n in (1, 2, 3, 4)),
    *((n, 4) for n in (1, 2, 3, 4, 5, 6)),
    *((n, 8) for n in (1, 3, 5, 6, 7, 9, 11, 12)),
    *((n, 16) for n in (3, 5, 7)),
)
GRID = Grid(time_signatures=METERS)  # 8 positions a beat, 32 ticks a quarter
NOTE = b"\x00\x90\x3c\x40\x60\x80\x3c\x40"  # middle C at tick 0, 96 ticks long

some_examples = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def cleaned(score: ScoreTick, grid: Grid = GRID, **arguments: bool) -> Song:
    """A clean song; draws without a usable note are thrown away."""
    try:
        return clean(score, grid, **arguments)
    except RejectedSongError as error:
        assume(error.reason != "empty")
        raise


def table(song: Song) -> list[tuple[int, ...]]:
    return list(zip(*(c.tolist() for c in song.notes.columns().values()), strict=True))


def assert_same(a: Song, b: Song) -> None:
    """Equal in all but the list of repairs; tempi up to the microsecond that a file stores."""
    assert table(a) == table(b)
    assert a.tpq == b.tpq
    np.testing.assert_array_equal(a.bar_ticks, b.bar_ticks)
    np.testing.assert_array_equal(a.meters, b.meters)
    np.testing.assert_array_equal(a.tempo_ticks, b.tempo_ticks)
    np.testing.assert_allclose(a.tempo_qpm, b.tempo_qpm, rtol=1e-4)


def meters_of(song: Song) -> list[tuple[int, int]]:
    return [tuple(m) for m in song.meters.tolist()]


# --- reading -------------------------------------------------------------------------------------

GOOD = to_bytes(make_score(melody(2)))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 bytes"),
        (b"not a MIDI file, only text", "starts with b'not a MIDI"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "<!DOCTYPE"),
        (b"RIFF" + (len(GOOD) + 12).to_bytes(4, "little") + b"WAVEdata" + GOOD, "WAVE"),
        (b"\x1f\x8b\x08" + b"\xff" * 30, "damaged gzip"),
        (b"MThd" + bytes(9), "after 13 bytes"),
        (midi_file(NOTE, division=0xE02D), "32 frames a second"),
        (midi_file(NOTE, division=0), "0 ticks"),
        (midi_file(b"\x00\x3c\x40" + NOTE), "most of it is damaged"),
        (b"MThd", ""),
        (b"MThd" + bytes(40), ""),
    ],
    ids=["empty", "text", "html", "wave", "gzip", "13-bytes", "smpte", "no-division",
         "no-status", "four-bytes", "zeros"],
)  # fmt: skip
def test_unreadable_files_are_refused_with_what_was_seen(data, says):
    with pytest.raises(RejectedSongError) as caught:
        clean(read_score(data), GRID)
    assert caught.value.reason == "unreadable"
    assert says in caught.value.detail
    assert caught.value.detail
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [midi_file(b""), GOOD[:14], midi_file(b"\x00\x80\x3c\x40")])
def test_a_file_without_a_note_is_empty(data):
    with pytest.raises(RejectedSongError, match=r"empty: .*none with a note"):
        clean(read_score(data), GRID)


@pytest.mark.parametrize(
    ("data", "velocity"),
    [
        (midi_file(NOTE), 64),
        (midi_file(NOTE, length=9999), 64),  # the track says that it is longer than the file
        (midi_file(NOTE)[:-4], 64),
        (midi_file(NOTE)[:-1], 64),
        (midi_file(NOTE).replace(b"\x00\x01\x01\xe0", b"\x7f\xff\x01\xe0"), 64),
        (midi_file(NOTE, format_=2), 64),
        (midi_file(b"\x00\xc0\xff" + NOTE.replace(b"\x40", b"\xf2", 1)), 127),
        (midi_file(NOTE) + b"\x00\x00trailing bytes", 64),
    ],
    ids=["good", "wrong-length", "cut-between-events", "cut-inside-an-event", "32767-tracks",
         "format-2",
         "data-bytes-over-127", "trailing"],
)  # fmt: skip
def test_damaged_files_that_can_be_read_are_rescued(data, velocity):
    song = clean(read_score(data), GRID)
    assert table(song)[0][:4] == (0, 8, 60, velocity)
    assert 0 <= song.notes.program[0] <= 127


@settings(some_examples, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4),
    st.integers(8, len(GOOD)),
)
def test_damaged_bytes_give_a_song_or_a_reason_and_never_another_error(changes, length):
    data = bytearray(GOOD)
    for at, value in changes:
        data[at] = value
    refused, song = None, None
    try:
        song = clean(read_score(bytes(data[:length])), GRID)
    except RejectedSongError as error:
        refused = error
    if refused is not None:
        assert refused.reason in {"unreadable", "empty", "too_long", "several_songs"}
        assert refused.detail
    if song is not None:
        assert song.onsets_per_bar().sum() == len(song.notes) > 0


def test_a_truncated_file_gives_the_same_song_each_time():
    """symusic alone reads on behind the file's end: other notes each time, or a crash."""

    def result(data: bytes) -> list[tuple[int, ...]] | str:
        try:
            return table(clean(read_score(data), GRID))
        except RejectedSongError as error:
            return str(error)

    first = {n: result(GOOD[:n]) for n in range(len(GOOD))}
    other_memory = [bytes([255 - i % 256]) * (40 + i % 160) for i in range(500)]
    for _ in range(3):
        del other_memory[::3]
        for n, known in first.items():
            assert result(bytes(bytearray(GOOD[:n]))) == known
            other_memory.append(bytes([n % 256]) * (n + 30))


def _reasons_in_source() -> set[str]:
    """Reasons given to ``RejectedSongError``, to ``Unusable`` and to rows of the report."""
    used = set()
    for path in Path(midigenre.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found: list[ast.expr] = []
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in ("RejectedSongError", "refusal"):
                    found = node.args[:1]
                elif name == "Unusable":
                    found = node.args[2:3]
            elif isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                found = [v for k, v in pairs if isinstance(k, ast.Constant) and k.value == "reason"]
            used |= {a.value for a in found if isinstance(a, ast.Constant)}
    return used - {""}  # rows of songs that are used


def test_the_source_uses_every_reason_and_no_other():
    assert _reasons_in_source() == set(REJECTIONS)


def test_a_refusal_survives_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(RejectedSongError("empty", "2 tracks")))
    assert (error.reason, error.detail, str(error)) == ("empty", "2 tracks", "empty: 2 tracks")


# --- the grid ------------------------------------------------------------------------------------


def test_a_grid_must_hold_4_4_and_fit_its_resolution():
    with pytest.raises(ValueError, match="must hold 4/4"):
        Grid(time_signatures=((3, 4),))
    with pytest.raises(ValueError, match="5/7 is not a time signature"):
        Grid(time_signatures=((4, 4), (5, 7)))
    with pytest.raises(ValueError, match="1 or more"):
        Grid(beat_resolution=0)


@pytest.mark.parametrize(
    ("meter", "becomes"),
    [
        ((44, 32), (11, 8)),
        ((175, 4), (4, 4)),
        ((6, 8), (6, 8)),
        ((8, 16), (2, 4)),
        ((2, 1), (4, 2)),
    ],
)
def test_an_unsupported_meter_keeps_its_bar_length_if_it_can(meter, becomes):
    assert GRID.supported(*meter) == becomes
    song = clean(make_score(melody(4), meters=[(0, *meter)]), GRID)
    assert meters_of(song) == [becomes] * song.n_bars
    assert song.repairs.get("meters replaced", 0) == (meter != becomes)


# --- meters --------------------------------------------------------------------------------------


def test_without_a_time_signature_every_bar_is_4_4():
    song = clean(make_score(melody(3), meters=[]), GRID)
    assert meters_of(song) == [(4, 4)] * 3
    assert song.bar_ticks.tolist() == [0, 128, 256, 384]


def test_before_a_late_first_signature_bars_are_4_4():
    song = clean(make_score(melody(6), meters=[(8, 3, 4)]), GRID)
    assert meters_of(song) == [(4, 4)] * 2 + [(3, 4)] * 6
    assert song.bar_ticks.tolist() == [0, 128, 256, *range(352, 833, 96)]


def test_a_change_inside_a_bar_waits_for_the_barline():
    song = clean(make_score(melody(3), meters=[(0, 4, 4), (5.5, 3, 4)]), GRID)
    assert meters_of(song) == [(4, 4), (4, 4), (3, 4), (3, 4)]
    assert song.repairs["meter changes moved to a barline"] == 1


@pytest.mark.parametrize("ticks_off", [-1, 0, 1])
def test_a_change_one_tick_off_the_barline_is_not_delayed_by_a_bar(ticks_off):
    at = 4 + Fraction(ticks_off, 480)
    song = clean(make_score(melody(3), meters=[(0, 4, 4), (at, 3, 4)]), GRID)
    assert meters_of(song) == [(4, 4), (3, 4), (3, 4), (3, 4)]
    assert "meter changes moved to a barline" not in song.repairs


def test_of_two_changes_in_a_bar_the_later_wins_in_any_order():
    changes = [(0, 4, 4), (1, 3, 4), (2, 6, 8)]
    for meters in (changes, changes[::-1]):
        song = clean(make_score(melody(2), meters=meters), GRID)
        assert meters_of(song)[:2] == [(4, 4), (6, 8)]


def test_bars_of_many_meters_have_the_lengths_of_these_meters():
    wanted = [(2, 2), (3, 4), (6, 8), (7, 8), (5, 16), (4, 4)]
    lengths = [Fraction(4 * n, d) for n, d in wanted]
    starts = [sum(lengths[:i], Fraction(0)) for i in range(len(wanted))]
    score = make_score(
        [note(s, Fraction(1, 4), 60 + i) for i, s in enumerate(starts)],
        meters=[(s, *m) for s, m in zip(starts, wanted, strict=True)],
    )
    song = clean(score, GRID)
    assert meters_of(song) == wanted
    assert np.diff(song.bar_ticks).tolist() == [32 * length for length in lengths]
    assert song.onsets_per_bar().tolist() == [1] * 6
    assert song.time_signatures() == [
        (int(t), *m) for t, m in zip(song.bar_ticks, wanted, strict=False)
    ]


# --- notes ---------------------------------------------------------------------------------------


def test_onsets_round_to_the_nearest_position_and_halves_go_up():
    eighth = Fraction(1, 8)
    onsets = [eighth * Fraction(n, 100) for n in (0, 149, 150, 151, 249, 250)]
    song = clean(make_score([note(o, 1, 60 + i) for i, o in enumerate(onsets)], tpq=9600), GRID)
    assert (song.notes.onset // 4).tolist() == [0, 1, 2, 2, 2, 3]


def test_a_note_just_before_the_barline_belongs_to_the_bar_in_which_it_then_stands():
    song = clean(make_score([note(0, 1, 60), note(3.99, 1, 62)]), GRID)
    assert song.notes.onset.tolist() == [0, 128]
    assert song.onsets_per_bar().tolist() == [1, 1]


def test_positions_are_counted_in_the_meter_in_force():
    # 6/8: eight positions an eighth, 2 ticks each; 4/4: eight a quarter, 4 ticks each.
    notes = [
        note(Fraction(1, 16), Fraction(1, 16), 60),
        note(4 + Fraction(1, 16), Fraction(1, 16), 60),
    ]
    song = clean(make_score(notes, meters=[(0, 4, 4), (4, 6, 8)]), GRID)
    assert song.notes.onset.tolist() == [4, 130]
    assert song.notes.duration.tolist() == [4, 2]


@pytest.mark.parametrize(
    ("quarters", "ticks"), [(0, 4), (0.01, 4), (1, 32), (16, 512), (17, 512), (963, 512)]
)
def test_durations_are_one_step_to_max_duration_beats(quarters, ticks):
    song = clean(make_score([note(0, quarters, 60)]), GRID)
    assert song.notes.duration.tolist() == [ticks]
    assert song.repairs.get("durations clamped", 0) == (quarters in (0, 0.01, 17, 963))


def test_duplicates_become_the_longest_note_at_the_loudest_velocity():
    notes = [
        note(0, 2, 60, 30),
        note(0.01, 1, 60, 90),
        note(0, 1, 60, 50, program=5),
        note(0, 1, 61),
    ]
    song = clean(make_score(notes), GRID)
    assert table(song) == [(0, 64, 60, 90, 0), (0, 32, 61, 80, 0), (0, 32, 60, 50, 5)]
    assert song.repairs["duplicate notes"] == 1


def test_overlaps_are_kept_unless_the_grid_cuts_them():
    notes = [note(0, 4, 60), note(1, 1, 60), note(1, 1, 60, program=3), note(3, 1, 60)]
    kept = clean(make_score(notes), GRID)
    assert kept.notes.duration.tolist() == [128, 32, 32, 32]
    cut = clean(make_score(notes), Grid(time_signatures=METERS, cut_overlaps=True))
    assert cut.notes.duration.tolist() == [32, 32, 32, 32]
    assert cut.repairs["overlaps cut"] == 1


def test_velocity_0_is_the_softest_and_negative_pitches_go():
    score = make_score([note(0, 1, 60, 0), note(1, 1, 62)])
    score.tracks[0].notes.append(NoteTick(0, 480, -56, 80))
    song = clean(score, GRID)
    assert table(song) == [(0, 32, 60, 1, 0), (32, 32, 62, 80, 0)]
    assert song.repairs["notes out of range"] == 1


def test_drums_keep_the_program_minus_1_whatever_their_track_says():
    score = make_score([note(0, 1, 60, program=9)])
    drums = TrackTick("", 40, True)
    drums.notes.append(NoteTick(0, 480, 36, 100))
    score.tracks.append(drums)
    song = clean(score, GRID)
    assert table(song) == [(0, 32, 36, 100, DRUMS), (0, 32, 60, 80, 9)]
    written = song.to_score()
    assert [(t.is_drum, t.program) for t in written.tracks] == [(True, 0), (False, 9)]


def test_more_than_16_tracks_and_tracks_of_one_program():
    score = make_score([note(i, 1, 60, program=i) for i in range(40)])
    twice = TrackTick("again", 7, False)
    twice.notes.append(NoteTick(0, 480, 72, 80))
    score.tracks.append(twice)
    song = clean(score, GRID)
    assert sorted(song.notes.program.tolist()) == sorted([*range(40), 7])


def test_merged_and_neutral_leave_pitch_rhythm_and_meter():
    notes = [note(0, 1, 60, 30), note(0, 2, 60, 90, program=4), note(1, 1, 38, 99, program=DRUMS)]
    score = make_score(notes, tempi=[(0, 90), (1, 180)])
    song = clean(score, GRID, tracks="merged", neutral=True)
    assert table(song) == [(0, 64, 60, NEUTRAL_VELOCITY, 0), (32, 32, 38, NEUTRAL_VELOCITY, 0)]
    assert (song.tempo_ticks.tolist(), song.tempo_qpm.tolist()) == ([0], [120.0])
    merged = clean(score, GRID, tracks="merged")
    assert merged.notes.velocity.tolist() == [90, 99]
    assert merged.tempo_qpm.round(2).tolist() == [90, 180]


# --- tempi ---------------------------------------------------------------------------------------


def test_tempi_start_at_0_do_not_repeat_and_end_with_the_notes():
    tempi = [(1, 90), (2, 90), (2.001, 100), (2.002, 110), (50, 60)]
    song = clean(make_score(melody(2), tempi=tempi), GRID)
    assert song.tempo_ticks.tolist() == [0, 32, 64]
    np.testing.assert_allclose(song.tempo_qpm, [120, 90, 110], rtol=1e-4)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(scores())
def test_bar_seconds_are_those_of_symusic(score):
    song = clean(score, GRID)
    marked = song.to_score()
    marked.tracks.clear()
    track = TrackTick("", 0, False)
    track.notes.extend([NoteTick(tick, 1, 60, 80) for tick in song.bar_ticks.tolist()])
    marked.tracks.append(track)
    expected = [n.time for n in marked.to("second").tracks[0].notes]
    found = song.bar_seconds()
    assert found.shape == (song.n_bars + 1,)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@some_examples
@given(
    tpq=st.sampled_from((96, 480, 10080)),
    silence=st.integers(0, 11),
    tempi=st.lists(st.tuples(st.integers(0, 40_000), st.integers(20_000, 4_000_000)), max_size=8),
    meters=st.lists(st.tuples(st.integers(0, 40), st.sampled_from(METERS)), max_size=3),
    neutral=st.booleans(),
)
def test_file_seconds_are_those_of_mido(tpq, silence, tempi, meters, neutral):
    """Whatever the tempo map: inside bars, beyond every vocabulary's range, before the music."""
    events = [(0, 1, mido.Message("note_on", note=60, velocity=0))]
    for k in range(silence, silence + 24):
        events.append((k * tpq, 2, mido.Message("note_on", note=60, velocity=80)))
        events.append(((k + 1) * tpq, 1, mido.Message("note_off", note=60)))
    events += [(at * tpq // 960, 0, mido.MetaMessage("set_tempo", tempo=t)) for at, t in tempi]
    for at, (n, d) in meters:
        meta = mido.MetaMessage("time_signature", numerator=n, denominator=d)
        events.append((at * tpq, 0, meta))

    def written(events):
        track, before = mido.MidiTrack(), 0
        for at, _, message in sorted(events, key=lambda e: e[:2]):
            track.append(message.copy(time=at - before))
            before = at
        return mido.MidiFile(type=0, ticks_per_beat=tpq, tracks=[track])

    data = io.BytesIO()
    written(events).save(file=data)
    song = clean(read_score(data.getvalue()), GRID, neutral=neutral)
    ticks = [int(tick) * tpq // GRID.tpq for tick in song.bar_ticks]
    assert [Fraction(int(tick) * tpq, GRID.tpq) for tick in song.bar_ticks] == ticks
    marks = [(tick, 3, mido.MetaMessage("marker", text="bar")) for tick in ticks]
    expected, now = [], 0.0
    for message in written(events + marks):
        now += message.time
        if message.type == "marker":
            expected.append(now)
    np.testing.assert_allclose(song.file_seconds, expected, rtol=1e-5, atol=1e-3)
    middle = song.n_bars // 2
    np.testing.assert_allclose(
        song.bars(middle, song.n_bars).file_seconds, np.array(expected[middle:]) - expected[middle],
        rtol=1e-5, atol=2e-3,
    )  # fmt: skip


def test_an_infinite_tempo_is_left_out():
    score = make_score(melody(2), tempi=[(0, 90)])
    endless = TempoTick(480, 120.0)
    endless.mspq = 0
    score.tempos.append(endless)
    song = clean(score, GRID)
    assert np.isfinite(song.tempo_qpm).all()
    assert song.tempo_ticks.tolist() == [0]


# --- bounds --------------------------------------------------------------------------------------


def test_a_song_of_max_song_bars_is_taken_and_a_longer_one_refused():
    grid = Grid(time_signatures=METERS, max_song_bars=5)
    assert clean(make_score(melody(5)), grid).n_bars == 5
    with pytest.raises(RejectedSongError, match="too_long: more than 5 bars"):
        clean(make_score(melody(6)), grid)
    with pytest.raises(RejectedSongError, match="too_long"):  # without making room for the bars
        clean(make_score([note(4_000_000, 1, 60)]), grid)


def test_no_notes_is_empty():
    with pytest.raises(RejectedSongError, match="empty: 0 tracks"):
        clean(make_score([]), GRID)


# --- any resolution, any order -------------------------------------------------------------------

sixths = st.integers(0, 24 * 24).map(lambda i: Fraction(i, 24))
musical_notes = st.builds(
    note,
    onset=sixths,
    duration=st.integers(0, 24 * 20).map(lambda i: Fraction(i, 24)),
    pitch=st.integers(55, 70),
    velocity=st.integers(1, 127),
    program=st.sampled_from([DRUMS, 0, 40]),
)


@some_examples
@given(
    st.lists(musical_notes, min_size=1, max_size=25),
    st.lists(st.tuples(sixths, st.sampled_from(METERS)), max_size=3, unique_by=lambda m: m[0]),
    st.lists(st.tuples(sixths, st.integers(40, 200)), max_size=3, unique_by=lambda t: t[0]),
    st.sampled_from([8, 12, 24]),
)
def test_the_same_music_at_any_resolution_gives_the_same_song(notes, meters, tempi, resolution):
    grid = Grid(beat_resolution=resolution, time_signatures=METERS)
    changes = [(at, *meter) for at, meter in meters]
    songs = [clean(make_score(notes, changes, tempi, tpq), grid) for tpq in TPQS]
    for song in songs[1:]:
        assert_same(song, songs[0])


@some_examples
@given(scores(), st.randoms(use_true_random=False))
def test_the_order_of_tracks_notes_and_changes_does_not_matter(score, random):
    # Of changes at one tick the last one wins, so that their order matters there alone.
    assume(max(Counter(e.time for e in score.time_signatures).values(), default=0) <= 1)
    assume(max(Counter(e.time for e in score.tempos).values(), default=0) <= 1)
    mixed = ScoreTick(score.ticks_per_quarter)
    for e in random.sample(list(score.time_signatures), len(score.time_signatures)):
        mixed.time_signatures.append(TimeSignatureTick(e.time, e.numerator, e.denominator))
    for e in random.sample(list(score.tempos), len(score.tempos)):
        mixed.tempos.append(TempoTick(e.time, e.qpm))
    for track in random.sample(list(score.tracks), len(score.tracks)):
        other = TrackTick("", track.program, track.is_drum)
        for n in random.sample(list(track.notes), len(track.notes)):
            other.notes.append(NoteTick(n.time, n.duration, n.pitch, n.velocity))
        mixed.tracks.append(other)
    assert_same(cleaned(mixed), cleaned(score))


# --- what always holds ---------------------------------------------------------------------------

grids = st.sampled_from([
    GRID,
    Grid(beat_resolution=12, time_signatures=METERS),
    Grid(beat_resolution=4, time_signatures=METERS, per_beat=False, cut_overlaps=True),
])  # fmt: skip


@some_examples
@given(scores(), grids)
def test_every_onset_is_on_the_grid_of_its_bars_meter(score, grid):
    song = cleaned(score, grid)
    assert song.tpq == grid.tpq
    bar = np.searchsorted(song.bar_ticks, song.notes.onset, side="right") - 1
    assert ((bar >= 0) & (bar < song.n_bars)).all()
    assert bar.max() == song.n_bars - 1, "the last bar is that of the last onset"
    meters = meters_of(song)
    assert np.diff(song.bar_ticks).tolist() == [grid.bar_ticks(m) for m in meters]
    assert song.bar_ticks[0] == 0
    step = np.array([grid.step_ticks(meters[b]) for b in bar])
    assert ((song.notes.onset - song.bar_ticks[bar]) % step == 0).all()
    assert (song.notes.duration >= (1 if grid.cut_overlaps else step)).all()
    longest = grid.max_duration_beats * grid.beat_resolution
    assert (song.notes.duration <= longest * step).all()
    assert set(meters) <= set(grid.time_signatures)
    assert song.tempo_ticks[0] == 0
    assert (np.diff(song.tempo_ticks) > 0).all()
    assert (np.diff(song.tempo_qpm) != 0).all()


@some_examples
@given(scores())
def test_no_note_moves_by_more_than_half_a_step(score):
    song = cleaned(score)
    scale = Fraction(song.tpq, score.ticks_per_quarter)
    half = max(GRID.step_ticks(m) for m in GRID.time_signatures) / 2
    for track in score.tracks:
        program = DRUMS if track.is_drum else track.program
        for n in track.notes:
            same = (song.notes.pitch == n.pitch) & (song.notes.program == program)
            assert np.abs(song.notes.onset[same] - float(n.time * scale)).min() <= half


@some_examples
@given(scores(), grids)
def test_cleaning_twice_is_cleaning_once(score, grid):
    song = cleaned(score, grid)
    again = clean(song.to_score(), grid)
    assert_same(again, song)
    assert again.repairs == {}, "there is nothing left to repair"


@some_examples
@given(scores(), grids, st.integers(1, 5))
def test_phrases_part_the_notes_and_restore_meter_and_tempo(score, grid, n_bars):
    song = cleaned(score, grid)
    assert song.onsets_per_bar().sum() == len(song.notes)
    assert len(song.onsets_per_bar()) == song.n_bars
    parts, tempo_at = [], {}
    for first in range(0, song.n_bars, n_bars):
        end = min(first + n_bars, song.n_bars)
        start = int(song.bar_ticks[first])
        phrase = song.bars(first, end)
        assert phrase.n_bars == end - first
        assert phrase.bar_ticks[0] == 0
        assert phrase.onsets_per_bar().tolist() == song.onsets_per_bar()[first:end].tolist()
        np.testing.assert_array_equal(phrase.bar_ticks + start, song.bar_ticks[first : end + 1])
        np.testing.assert_array_equal(phrase.meters, song.meters[first:end])
        assert phrase.tempo_ticks[0] == 0
        assert (np.diff(phrase.tempo_ticks) > 0).all()
        assert (phrase.tempo_ticks < phrase.bar_ticks[-1]).all()
        for onset in phrase.notes.onset.tolist():
            i = np.searchsorted(phrase.tempo_ticks, onset, side="right") - 1
            tempo_at[start + onset] = phrase.tempo_qpm[i]
        parts += [(onset + start, *rest) for onset, *rest in table(phrase)]
    assert parts == table(song)
    for onset, qpm in tempo_at.items():
        assert qpm == song.tempo_qpm[np.searchsorted(song.tempo_ticks, onset, side="right") - 1]


@some_examples
@given(scores())
@example(make_score([note(0, 0, 0), note(0, 963, 0)], meters=[(5, 175, 4)]))
def test_a_song_survives_being_written_as_a_file(score):
    """Without overlaps of one pitch, which note-offs cannot tell apart."""
    grid = Grid(time_signatures=METERS, cut_overlaps=True)
    song = cleaned(score, grid)
    assert_same(clean(read_score(to_bytes(song.to_score())), grid), song)
