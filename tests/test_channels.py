"""What a file's channels play, against readings event by event with mido."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from typing import NamedTuple

import mido
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from symusic.core import ScoreTick

from midi import DRUMS, smf
from midigenre.midi import read as reading
from midigenre.midi.clean import clean
from midigenre.midi.read import read_score, well_formed
from midigenre.midi.repair import END, joined, notes_ended
from midigenre.midi.song import Grid

some_examples = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Sound(NamedTuple):
    onset: int
    end: int
    pitch: int
    velocity: int
    program: int


def on(pitch: int, channel: int = 0, velocity: int = 80) -> bytes:
    return bytes((0x90 | channel, pitch, velocity))


def off(pitch: int, channel: int = 0) -> bytes:
    return bytes((0x80 | channel, pitch, 64))


def program(number: int, channel: int = 0) -> bytes:
    return bytes((0xC0 | channel, number))


def control(number: int, channel: int = 0) -> bytes:
    return bytes((0xB0 | channel, number, 0))


def port(number: int) -> bytes:
    return bytes((0xFF, 0x21, 1, number))


def file_of(*tracks: list[tuple[int, bytes]], end: int = 0, format_: int = 1) -> bytes:
    """A file of tracks of (tick, message); each ends at ``end`` or with its last event."""
    bodies = [joined(track, max([end, *(tick for tick, _ in track)])) for track in tracks]
    return smf(*bodies, format_=format_)


def sounds(score: ScoreTick) -> list[Sound]:
    return sorted(
        Sound(n.time, n.end, n.pitch, n.velocity, DRUMS if t.is_drum else t.program)
        for t in score.tracks
        for n in t.notes
    )


def read(data: bytes) -> tuple[list[tuple[int, int, int]], dict[str, int]]:
    """Onset, end and pitch of each note, and the repairs."""
    repairs: dict[str, int] = {}
    return [sound[:3] for sound in sounds(read_score(data, repairs))], repairs


AGAIN = "notes ended where their pitch was struck again"
BEFORE = "notes whose note-off stood before them"
ELSEWHERE = "notes ended by a note-off in another track"
ALL_OFF = "notes ended by All Notes Off or All Sound Off"
TRACK = "notes ended with their track"
PROGRAM = "notes given the program of their channel"

HELD = [(0, on(60)), (480, off(60)), (480, on(62)), (960, off(62)), (960, on(48)), (960, on(64))]
CASES = {
    "struck again, one note-off short": (
        [[(0, on(60)), (480, on(60)), (960, off(60)), (960, on(60)), (1440, off(60)),
          (1920, on(60)), (2400, off(60))]],
        [(0, 480, 60), (480, 960, 60), (960, 1440, 60), (1920, 2400, 60)], {AGAIN: 1},
    ),
    "struck again, as many note-offs": (
        [[(0, on(60)), (240, on(60)), (480, off(60)), (720, off(60))]],
        [(0, 240, 60), (240, 480, 60)], {AGAIN: 1},
    ),
    "struck again before the note-off of that tick": (
        [[(0, on(60)), (480, on(60)), (480, off(60)), (960, off(60))]],
        [(0, 480, 60), (480, 960, 60)], {},
    ),
    "in unison": (
        [[(0, on(60)), (0, on(60, velocity=90)), (480, off(60)), (960, off(60))]],
        [(0, 480, 60), (0, 480, 60)], {},
    ),
    "held to the end of the track": (
        [HELD], [(0, 480, 60), (480, 960, 62), (960, 1920, 48), (960, 1920, 64)], {TRACK: 2},
    ),
    "all notes off": (
        [[(0, on(60)), (0, on(64)), (0, on(40, 1)), (480, control(123)), (480, on(62)),
          (960, off(62)), (960, off(40, 1))]],
        [(0, 480, 60), (0, 480, 64), (0, 960, 40), (480, 960, 62)], {ALL_OFF: 2},
    ),
    "all sound off in another track, before the note-offs": (
        [[(0, on(60)), (960, off(60))], [(480, control(120))]], [(0, 480, 60)], {ALL_OFF: 1},
    ),
    "all notes off on another port": (
        [[(0, on(60)), (960, off(60))], [(0, port(1)), (480, control(123))]], [(0, 960, 60)], {},
    ),
    "note-off in another track": (
        [[(0, on(60)), (480, on(64)), (960, off(64))], [(480, off(60))]],
        [(0, 480, 60), (480, 960, 64)], {ELSEWHERE: 1},
    ),
    "all note-offs in another track": (
        [[(0, on(60)), (480, on(60))], [(480, off(60)), (960, off(60))]],
        [(0, 480, 60), (480, 960, 60)], {AGAIN: 1, ELSEWHERE: 1},
    ),
    "note-off on another port": (
        [[(0, on(60))], [(0, port(3)), (480, off(60))]], [(0, 1920, 60)], {TRACK: 1},
    ),
    "grace notes as music21 writes them": (
        [[(0, on(62)), (480, off(62)), (480, off(60)), (480, on(60)), (480, on(62)), (960, off(62)),
          (1440, on(60)), (1920, off(60))]],
        [(0, 480, 62), (480, 480, 60), (480, 960, 62), (1440, 1920, 60)], {BEFORE: 1},
    ),
    "a grace note twice": (
        [[(480, off(60)), (480, on(60)), (720, on(60)), (960, off(60)), (1200, off(60)),
          (1200, on(60))]],
        [(480, 480, 60), (720, 960, 60), (1200, 1200, 60)], {BEFORE: 2},
    ),
    "no length": ([[(480, on(60)), (480, off(60))]], [(480, 480, 60)], {}),
    "drums": (
        [[(0, on(36, 9)), (60, on(36, 9)), (480, on(38, 9))]],
        [(0, 60, 36), (60, 180, 36), (480, 600, 38)],
        {AGAIN: 1, "drum notes without a note-off read as sixteenths": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_each_note_ends_where_it_is_heard_to_end(kind):
    tracks, notes, repairs = CASES[kind]
    assert read(file_of(*tracks, end=1920)) == (notes, repairs)


def test_what_is_cut_off_ends_there():
    body = joined(HELD, 960)
    assert read(smf(body[: -len(END) - 1])) == (
        [(0, 480, 60), (480, 960, 62), (960, 960, 48), (960, 960, 64)],
        {"ends of tracks added": 1, TRACK: 2},
    )


# --- programs ------------------------------------------------------------------------------------

NOTE = [(100, on(60)), (200, off(60))]
PROGRAMS = {
    "setup track": ([[(0, program(40))], NOTE], [40], {PROGRAM: 1}),
    "setup track behind": ([NOTE, [(100, program(40))]], [40], {PROGRAM: 1}),
    "setup track too late": ([NOTE, [(101, program(40))]], [0], {}),
    "program 0 of one's own": ([[(0, program(40))], [(0, program(0)), *NOTE]], [0], {}),
    "one's own": ([[(0, program(40))], [(0, program(7)), *NOTE]], [7], {}),
    "one's own, later": (
        [[(0, program(40))], [*NOTE, (200, program(7)), (200, on(62)), (300, off(62))]],
        [40, 7], {PROGRAM: 1},
    ),
    "one's own stays": ([[(50, program(40))], [(0, program(7)), *NOTE]], [7], {}),
    "another channel": ([[(0, program(40, 1))], NOTE], [0], {}),
    "another port": ([[(0, port(1)), (0, program(40))], NOTE], [0], {}),
    "that port": ([[(0, port(1)), (0, program(40))], [(0, port(1)), *NOTE]], [40], {PROGRAM: 1}),
    "a change": (
        [[(0, program(40)), (150, program(41))], [*NOTE, (200, on(60)), (300, off(60))]],
        [40, 41], {PROGRAM: 2},
    ),
    "drums": ([[(0, program(40, 9))], [(0, on(36, 9)), (9, off(36, 9))]], [DRUMS], {}),
    "all programs are used": (
        [[(n, program(n)) for n in range(128)], [(128, on(60)), (200, off(60))]],
        [127], {PROGRAM: 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_belongs_to_the_channel_of_the_file(kind):
    tracks, programs, found = PROGRAMS[kind]
    repairs: dict[str, int] = {}
    assert [n.program for n in sounds(read_score(file_of(*tracks), repairs))] == programs
    assert repairs == found


# --- any file ------------------------------------------------------------------------------------

few_channels = st.sampled_from([0, 1, 9])
few_pitches = st.sampled_from([60, 61])
messages = st.one_of(
    st.builds(on, few_pitches, few_channels),
    st.builds(off, few_pitches, few_channels),
    st.builds(on, few_pitches, few_channels),
    st.builds(off, few_pitches, few_channels),
    st.builds(program, st.sampled_from([0, 5, 40]), few_channels),
    st.builds(control, st.sampled_from([120, 123, 7]), few_channels),
    st.builds(port, st.sampled_from([0, 1])),
)


@st.composite
def track_events(draw: st.DrawFn, gaps: tuple[int, ...]) -> list[tuple[int, bytes]]:
    """Any events; ``gaps`` are the ticks that may lie between two."""
    events, tick = [], 0
    for message in draw(st.lists(messages, max_size=12)):
        tick += draw(st.sampled_from(gaps))
        events.append((tick, message))
    return events


@some_examples
@given(st.lists(track_events((0, 0, 1, 5, 2100)), min_size=1, max_size=3))
def test_no_note_is_lost_against_mido(tracks):
    data = file_of(*tracks, end=4000)
    expected = defaultdict(int)
    for track in mido.MidiFile(file=io.BytesIO(data)).tracks:
        tick = 0
        for message in track:
            tick += message.time
            if message.type == "note_on" and message.velocity:
                expected[tick, message.note, message.channel == 9] += 1
    found = defaultdict(int)
    for n in sounds(read_score(data)):
        assert n.onset <= n.end
        found[n.onset, n.pitch, n.program == DRUMS] += 1
    assert found == expected


def struck(data: bytes) -> list[tuple[int, int, int, int]]:
    """Onset, end, pitch and program of the notes of one track with no two events at a tick: each
    ends with whatever comes first of a note-on, a note-off and All Notes Off."""
    file = mido.MidiFile(file=io.BytesIO(data))
    sounding: dict[tuple[int, int], tuple[int, int]] = {}
    programs = dict.fromkeys(range(16), 0) | {9: DRUMS}
    drums_end = any(
        m.type == "note_off" or (m.type == "note_on" and m.velocity == 0)
        for m in file.tracks[0]
        if not m.is_meta and m.channel == 9
    )
    notes, tick = [], 0

    def end(channel: int, pitch: int) -> None:
        onset, number = sounding.pop((channel, pitch))
        short = onset + 120 if channel == 9 and not drums_end else tick
        notes.append((onset, min(tick, short), pitch, number))

    for m in file.tracks[0]:
        tick += m.time
        if m.type == "program_change" and m.channel != 9:
            programs[m.channel] = m.program
        elif m.type in ("note_on", "note_off"):
            if (m.channel, m.note) in sounding:
                end(m.channel, m.note)
            if m.type == "note_on" and m.velocity:
                sounding[m.channel, m.note] = tick, programs[m.channel]
        elif m.type == "control_change" and m.control in (120, 123):
            for key in [key for key in sounding if key[0] == m.channel]:
                end(*key)
    for key in list(sounding):
        end(*key)
    return sorted(notes)


@some_examples
@given(track_events((1, 5, 2100)))
def test_notes_end_where_mido_sees_the_next_event_of_their_pitch(events):
    events = [event for event in events if event[1][:2] != b"\xff\x21"]
    data = file_of(events, end=30_000)
    assert [(n.onset, n.end, n.pitch, n.program) for n in sounds(read_score(data))] == struck(data)


@some_examples
@given(st.lists(track_events((0, 0, 1, 5, 2100)), min_size=1, max_size=3))
@example([[(0, on(60)), (1, on(60)), (2, off(60)), (2, on(60)), (2, off(60)), (3, off(60))]])
@example([[(0, b"\xff\x03\x02\x90\xc0"), (0, on(60)), (2100, program(5)), (2100, off(60))]])
def test_what_is_read_at_once_is_what_is_read_event_by_event(tracks):
    data = file_of(*tracks, end=4000)
    found: dict[str, int] = {}
    walked: Counter[str] = Counter()
    file = well_formed(data)
    score = reading._parsed(file.header, notes_ended(file.header, file.bodies, walked))
    assert sounds(read_score(data, found)) == sounds(score)
    assert found == +walked


def test_most_files_are_read_at_once(monkeypatch):
    def walk(*_):
        raise AssertionError("an ordinary file was read event by event")

    monkeypatch.setattr(reading, "notes_ended", walk)
    setup = [(0, control(120)), (0, control(123)), (0, program(40))]
    part = [(0, on(60)), (5000, off(60)), (5000, on(62)), (5600, on(62)), (5700, off(62))]
    part += [(9000, off(62)), (9000, control(123))]
    drums = [
        (0, on(36, 9)),
        (10, off(36, 9)),
        (20, program(5, 9)),
        (40, on(36, 9)),
        (50, off(36, 9)),
    ]
    read_score(file_of([*setup, *part]))
    other = [(tick, bytes((m[0] | 1, *m[1:]))) for tick, m in [*setup, *part]]
    read_score(file_of([*setup, *part], other, drums))
    # Deltas of 2,048 ticks and more have bytes that look like note-ons of other channels.
    noisy = [(3000 * i, m) for i in range(9) for m in (on(60), off(60))]
    read_score(file_of([(0, program(40, 7)), (0, on(60, 7)), (50, off(60, 7))], noisy))


# --- format 0 and 1 ------------------------------------------------------------------------------


@st.composite
def one_track_and_several(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """The same music in one track and in several: settings and note-offs stand in any of them."""
    events: list[tuple[int, bytes]] = []
    where: list[int] = []
    home = {0: 0, 1: 1, 9: 2}  # the track of a channel's notes
    settings_of = {channel: draw(st.sampled_from([track, 3])) for channel, track in home.items()}
    tick, free = 0, defaultdict(int)
    for _ in range(draw(st.integers(1, 12))):
        channel, pitch = draw(few_channels), draw(few_pitches)
        tick = max(tick + draw(st.integers(2, 50)), free[channel, pitch])
        if draw(st.integers(0, 3)) == 0:
            events.append((tick - 1, program(draw(st.integers(0, 127)), channel)))
            where.append(settings_of[channel])
        free[channel, pitch] = tick + draw(st.integers(1, 300))
        events += [(tick, on(pitch, channel)), (free[channel, pitch], off(pitch, channel))]
        where += [home[channel], draw(st.sampled_from([home[channel], 3]))]
    end = max(tick for tick, _ in events)
    placed = sorted(zip(events, where, strict=True), key=lambda e: e[0][0])
    tracks = [[e for e, at in placed if at == t] for t in draw(st.permutations(range(4)))]
    return (
        file_of([e for e, _ in placed], end=end, format_=0),
        file_of(*tracks, end=end),
    )


@some_examples
@given(one_track_and_several())
def test_the_same_music_in_format_0_and_1_is_the_same_song(files):
    single, several = files
    assert sounds(read_score(several)) == sounds(read_score(single))
    a, b = (clean(read_score(data), Grid()) for data in files)
    assert {k: c.tolist() for k, c in a.notes.columns().items()} == {
        k: c.tolist() for k, c in b.notes.columns().items()
    }
