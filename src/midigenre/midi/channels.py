"""What the channels of a file play: when each note ends, and on which instrument.

symusic reads each track for itself, pairs note-ons with note-offs first in, first out, and drops a
note-on that is left over. What is played is this:

* A note ends at the first note-off of its pitch and channel in its track, or where its pitch is
  struck again there. So of two notes that overlap, the first note-off ends the one that sounds, and
  the second one finds nothing to end. At one tick order means little: a note-off belongs to a note
  that began earlier as long as there is one whose own has not come, and note-ons sound together.
* A note without a note-off of its own ends at one in another track that finds nothing to end there;
  or at its onset, if its note-off stands before it at that tick (music21 writes grace notes so);
  else with its track.
* All Notes Off and All Sound Off end what began before them on their channel, in every track.
* Drums have no length of their own: where a file has no note-off on the drum channel, a note is a
  sixteenth, or shorter if it is struck again.
* A program holds for its channel in every track that has set none itself so far. A port (meta event
  FF 21) has channels of its own.

Most files need no walk through their events for that. Note-offs for all pitches far behind the end
of each track, and a program that the file does not use at the start of tracks without their own,
show in symusic's answer where they took effect.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from symusic.core import NoteTickList, ScoreTick

from midigenre.errors import RefusedSongError
from midigenre.midi.repair import (
    ALL_OFF,
    END,
    FAR,
    NOTHING,
    Event,
    TrackRepair,
    WellFormed,
    count,
    joined,
    with_tracks,
)
from midigenre.midi.song import note_columns

_DRUM_CHANNEL = 9

_PROBES = tuple(
    b"".join(bytes((0, 0x80 | channel, pitch, 0)) for pitch in range(128)) for channel in range(16)
)
_FAR_BEHIND = NOTHING + b"\xc0\x80\x80\x00" + NOTHING  # FAR ticks

_OWN = ""
_AGAIN = "notes ended where their pitch was struck again"
_BEFORE = "notes whose note-off stood before them"
_ELSEWHERE = "notes ended by a note-off in another track"
_ALL_OFF = "notes ended by All Notes Off or All Sound Off"
_TRACK = "notes ended with their track"
_DRUM = "drum notes without a note-off read as sixteenths"
_PROGRAM = "notes given the program of their channel"


def played(file: WellFormed, repairs: dict[str, int]) -> ScoreTick:
    """The score of a file as its channels play it.

    Args:
        file: The file.
        repairs: How many notes ended otherwise than by a note-off of their own, and how many got
            the program of another track, is added to it.

    Raises:
        RefusedSongError: ``unreadable`` or ``too_large``, in symusic's words.
    """
    probed = _probed(file)
    if probed is not None:
        data, unused = probed
        score = _parsed(data)
        lent = unused >= 0 and any(
            track.program == unused and len(track.notes) for track in score.tracks
        )
        if not lent and _end_notes(score, repairs):
            return score
    return _parsed(_written(file, repairs))


def _parsed(data: bytes) -> ScoreTick:
    try:
        # No value is over 127 any more; sanitising is the second lock on a door that leads out of
        # the parser's memory.
        return ScoreTick.from_midi(data, sanitize_data=True)
    except MemoryError as error:
        raise RefusedSongError("too_large", "symusic needs more memory than there is") from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise RefusedSongError("unreadable", f"symusic: {error}".splitlines()[0]) from error


def _probed(file: WellFormed) -> tuple[bytes, int] | None:
    """The file with probes, and the program that stands for none; None if it must be walked.

    It looks for bytes that may be the status of a note, and takes a file with one in a critical
    place for one that must be walked, whatever that byte is.
    """
    if file.far_reaching is None:
        return None
    noted = [
        {c: body.find(0x90 | c) for c in range(16) if 0x90 | c in body} for body in file.bodies
    ]
    n_tracks = Counter(channel for firsts in noted for channel in firsts)
    used: set[int] = set()
    setting: dict[int, set[int]] = defaultdict(set)  # channel to tracks that set a program
    for i, seen in enumerate(file.far_reaching):
        for _, message in seen:
            if message[0] >= 0xC0 and message[1]:
                used.add(message[1])
                setting[message[0] & 0x0F].add(i)
    unused = next((program for program in range(1, 128) if program not in used), None)
    bodies, lent = [], False
    for i, (body, seen, firsts) in enumerate(
        zip(file.bodies, file.far_reaching, noted, strict=True)
    ):
        lasts: dict[int, int] = {}
        own: dict[int, int] = {}
        late = set()  # channels that may have notes before their first program
        for pos, message in seen:
            channel = message[0] & 0x0F
            before = firsts.get(channel, pos) < pos
            if message[0] < 0xC0:
                if n_tracks[channel] > (channel in firsts):
                    return None
                if before and channel not in lasts:
                    lasts[channel] = max(body.rfind(0x80 | channel), body.rfind(0x90 | channel))
                if before and lasts[channel] >= pos:
                    return None
            elif channel != _DRUM_CHANNEL:
                # symusic parts the notes of two programs: one might end where the other begins.
                if before and own.get(channel, 0) != message[1]:
                    return None
                if before and channel not in own:
                    late.add(channel)
                own[channel] = message[1]
        start = b""
        for channel in firsts.keys() - (own.keys() - late) - {_DRUM_CHANNEL}:
            if setting[channel] - {i}:
                if unused is None:
                    return None
                start += bytes((0, 0xC0 | channel, unused))
        lent |= bool(start)
        probes = b"".join([_PROBES[channel] for channel in firsts])
        bodies.append(start + body[: -len(END)] + _FAR_BEHIND + probes + b"\x00" + END)
    return with_tracks(file.header, bodies), unused if lent and unused else -1


def _overlapping(columns: Mapping[str, NDArray[Any]], lengths: Sequence[int]) -> bool:
    """Whether two notes of one track and pitch overlap."""
    # Keys of 16 bits are sorted by radix, four times as fast as keys that hold the onset too. These
    # need not hold it: notes that come out of order overlap by this rule as well.
    wide = np.uint16 if len(lengths) <= 2**9 else np.uint32
    key = np.repeat((np.arange(len(lengths)) << 7).astype(wide), lengths)
    key |= columns["pitch"].astype(wide)
    order = np.argsort(key, kind="stable")
    key, begins = key.take(order), columns["time"].take(order)
    ends = begins + columns["duration"].take(order)
    return bool(((begins[1:] < ends[:-1]) & (key[1:] == key[:-1])).any())


def _end_notes(score: ScoreTick, repairs: dict[str, int]) -> bool:
    """Ends the notes of a probed file where their pitch is struck again.

    Returns:
        False if there is a note without a note-off of its own; nothing is changed then.
    """
    columns, lengths = note_columns(score.tracks)
    onset, duration = columns["time"], columns["duration"]
    if len(onset) == 0:
        return True
    if duration.max() >= FAR:
        return False
    if not _overlapping(columns, lengths):
        return True
    begins = np.repeat(np.arange(len(lengths)) << 7, lengths)
    begins |= columns["pitch"]
    begins <<= 32
    begins += onset
    ends = begins + duration
    order = begins
    # Of each pitch the first end is that of the first note, and so on: first in, first out.
    begins, ends = np.sort(begins), np.sort(ends)
    next_end = ends.take(np.searchsorted(ends, begins, side="right"), mode="clip")
    next_begin = np.append(begins, 2**62)[np.searchsorted(begins, begins, side="right")]
    again = (next_begin < next_end) & (ends > begins)
    count(repairs, _AGAIN, int(again.sum()))
    ends = np.where(ends > begins, np.minimum(next_begin, next_end), ends)
    duration[np.argsort(order, kind="stable")] = ends - begins
    stop = 0
    for track, length in zip(score.tracks, lengths, strict=True):
        its = slice(stop, stop := stop + length)
        pitch, velocity = columns["pitch"][its], columns["velocity"][its]
        track.notes = NoteTickList.from_numpy(onset[its], duration[its], pitch, velocity)
    return True


@dataclass(slots=True, eq=False)
class _Note:
    """A note; ``ended`` says how, in the words of the repairs."""

    place: tuple[int, int]  # port and channel
    pitch: int
    onset: int
    end: int
    ended: str = _TRACK


def _written(file: WellFormed, repairs: dict[str, int]) -> bytes:
    """The file, event by event, with a note-off for each note and a program for each track."""
    channels = _Channels()
    tracks = []
    for body in file.bodies:
        walk = TrackRepair(body, 0, len(body), {}, keep_tempo=True)
        walk.run()
        tracks.append((walk.events, channels.read(walk.events, walk.tick), walk.tick))
    channels.end_notes(max(1, int.from_bytes(file.header[12:14], "big") // 4))
    bodies = [channels.written(i, *track) for i, track in enumerate(tracks)]
    for _, notes, _ in tracks:
        for note in notes:
            if note.ended:
                count(repairs, note.ended)
    count(repairs, _PROGRAM, channels.n_programs)
    return with_tracks(file.header, bodies)


@dataclass
class _Key:
    """The notes of one pitch and channel while a track is read.

    Attributes:
        sounding: Those that sound; they began together.
        unpaired: Those whose own note-off has not come, first in, first out.
        struck: Those that the last ones ended.
        early: Tick of the last note-off that found nothing to end.
    """

    sounding: list[_Note] = field(default_factory=list)
    unpaired: deque[_Note] = field(default_factory=deque)
    struck: list[_Note] = field(default_factory=list)
    early: int = -1

    def on(self, note: _Note) -> None:
        if not self.sounding or self.sounding[0].onset < note.onset:
            self.stop(note.onset, _AGAIN)
            self.struck, self.sounding = self.sounding, []
        self.sounding.append(note)
        self.unpaired.append(note)

    def off(self, tick: int) -> bool:
        """Whether there was a note to which it belongs."""
        paired = self.unpaired.popleft() if self.unpaired else None
        if not self.sounding:
            self.early = tick if paired is None else self.early
            return paired is not None
        if self.sounding[0].onset < tick:
            ended, self.sounding = self.sounding, []
        elif paired is self.sounding[0]:
            ended = [self.sounding.pop(0)]
        else:
            ended = [note for note in self.struck if note.end == tick]
        for note in ended:
            note.end, note.ended = tick, _OWN
        return True

    def stop(self, tick: int, ended: str) -> None:
        """Ends what sounds without a note-off."""
        for note in self.sounding:
            note.end, note.ended = tick, ended
            if self.early == note.onset:
                note.end, note.ended = note.onset, _BEFORE
                self.unpaired.remove(note)


class _Channels:
    """The notes of all tracks, and what other tracks have to say of them."""

    def __init__(self) -> None:
        self.n_programs = 0
        self._n_tracks = 0
        self._unpaired: list[_Note] = []  # of a pitch with fewer note-offs than note-ons
        self._notes: list[_Note] = []
        self._offs: dict[tuple[tuple[int, int], int], list[int]] = defaultdict(list)
        self._all_off: dict[tuple[int, int], list[int]] = defaultdict(list)
        self._programs: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
        self._drums_end = False

    def read(self, events: list[Event], end: int) -> list[_Note]:
        """The notes of the next track, each up to where that track ends it."""
        track, port = self._n_tracks, 0
        self._n_tracks += 1
        notes: list[_Note] = []
        keys: dict[tuple[int, int], _Key] = defaultdict(_Key)
        for tick, message in events:
            kind, place = message[0] & 0xF0, (port, message[0] & 0x0F)
            if kind == 0x90 and message[2]:
                notes.append(_Note(place, message[1], tick, end))
                keys[place[1], message[1]].on(notes[-1])
            elif kind in (0x80, 0x90):
                self._drums_end |= place[1] == _DRUM_CHANNEL
                if not keys[place[1], message[1]].off(tick):
                    self._offs[place, message[1]].append(tick)
            elif kind == 0xB0 and message[1] in ALL_OFF:
                self._all_off[place].append(tick)
            elif kind == 0xC0:
                self._programs[place].append((tick, track, message[1]))
            elif message.startswith(b"\xff\x21\x01"):
                port = message[3]
        for key in keys.values():
            key.stop(end, _TRACK)
        for note in notes:
            if note.ended in (_AGAIN, _TRACK) and keys[note.place[1], note.pitch].unpaired:
                self._unpaired.append(note)
        self._notes += notes
        return notes

    def end_notes(self, sixteenth: int) -> None:
        """Ends the notes that have no note-off of their own, and those that All Notes Off ends."""
        for ticks in (*self._offs.values(), *self._all_off.values()):
            ticks.sort()
        for programs in self._programs.values():
            programs.sort(key=lambda program: program[0])  # at one tick the last track counts
        for note in self._unpaired:
            self._end_at_first(note, self._offs.get((note.place, note.pitch), []), _ELSEWHERE)
        for note in self._notes:
            self._end_at_first(note, self._all_off.get(note.place, []), _ALL_OFF)
            is_drum = note.place[1] == _DRUM_CHANNEL and not self._drums_end
            if is_drum and note.end > note.onset + sixteenth:
                note.end, note.ended = note.onset + sixteenth, _DRUM

    def _end_at_first(self, note: _Note, ticks: list[int], ended: str) -> None:
        """Ends a note at the first of the ticks after its onset, if it sounds that long."""
        i = bisect_right(ticks, note.onset)
        if i < len(ticks) and (ticks[i] < note.end or note.ended == _TRACK):
            note.end, note.ended = ticks[i], ended

    def written(self, track: int, events: list[Event], notes: list[_Note], end: int) -> bytes:
        """A track with its notes ended, and with the programs of its channels."""
        # Sorted by tick: note-offs, then the events in their order. A note of no length ends
        # right behind its note-on.
        found: list[tuple[int, int, int, int, bytes]] = []
        programs: dict[int, int] = {}
        own: set[int] = set()
        following = iter(notes)
        for i, (tick, message) in enumerate(events):
            kind, channel = message[0] & 0xF0, message[0] & 0x0F
            if kind == 0x90 and message[2]:
                note = next(following)
                if channel not in own and channel != _DRUM_CHANNEL:
                    program = self._program(note, track)
                    if program != programs.get(channel, 0):
                        found.append((tick, 1, i, 0, bytes((0xC0 | channel, program))))
                        programs[channel] = program
                    self.n_programs += program > 0
                off = bytes((0x80 | channel, note.pitch, 64))
                found.append(
                    (note.end, 1, i, 2, off) if note.end == tick else (note.end, 0, i, 0, off)
                )
            elif kind in (0x80, 0x90):
                message = NOTHING
            elif kind == 0xC0:
                own.add(channel)
            found.append((tick, 1, i, 1, message))
        found.sort()
        last = found[-1][0] if found else 0
        return joined(((tick, message) for tick, *_, message in found), max(end, last))

    def _program(self, note: _Note, track: int) -> int:
        """The program that other tracks have set for a note's channel; 0 if none has."""
        programs = self._programs.get(note.place, [])
        i = bisect_right(programs, note.onset, key=lambda program: program[0])
        return next((program for _, other, program in reversed(programs[:i]) if other != track), 0)
