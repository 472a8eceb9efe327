"""What the channels of a file play: when each note ends, and on which instrument.

symusic reads each track for itself, pairs note-ons with note-offs first in, first out, and drops an
unpaired note-on. The file actually plays as follows:

* A note ends at the first note-off of its pitch and channel in its track, or where its pitch is
  struck again there. So of two notes that overlap, the first note-off ends the one that sounds, and
  the second one finds nothing to end. Within one tick order means little: a note-off belongs to a
  note that began earlier as long as there is one whose own has not come, and note-ons sound
  together.
* A note without a note-off of its own ends at one in another track that finds nothing to end there;
  or at its onset, if its note-off precedes it at that tick (music21 writes grace notes so);
  else with its track.
* All Notes Off and All Sound Off end what began before them on their channel, in every track.
* Drums have no length of their own: where a file has no note-off on the drum channel, a note is a
  sixteenth, or shorter if it is struck again.
* A program holds for its channel in every track that has set none itself so far. A port (meta event
  FF 21) has channels of its own.

For most files no event-by-event walk is needed. *Probes*, that is note-offs for all pitches far
after the end of each track, and an unused program at the start of tracks without their own, show in
symusic's result where they took effect.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict, deque
from dataclasses import dataclass

import numpy as np
from symusic.core import NoteTickList, ScoreTick

from midigenre.errors import RejectedSongError
from midigenre.midi.repair import (
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
_ALL_OFF_CONTROLS = (120, 123)  # MIDI 1.0, channel mode messages

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
        file: What :func:`midigenre.midi.repair.well_formed` made of it.
        repairs: How many notes ended otherwise than by a note-off of their own, and how many got
            the program of another track, is added to it.

    Raises:
        RejectedSongError: ``unreadable`` or ``too_large``, in symusic's words.
    """
    data, unused = _probed(file)
    if data:
        score = _parsed(data)
        lent = any(track.program == unused and len(track.notes) for track in score.tracks)
        if not lent and _end_notes(score, repairs):
            return score
    return _parsed(_written(file, repairs))


def _parsed(data: bytes) -> ScoreTick:
    try:
        # No value is over 127 any more; sanitising is a second safeguard against reading outside
        # the parser's memory.
        return ScoreTick.from_midi(data, sanitize_data=True)
    except MemoryError as error:
        raise RejectedSongError("too_large", "symusic needs more memory than there is") from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise RejectedSongError("unreadable", f"symusic: {error}".splitlines()[0]) from error


# --- at once -------------------------------------------------------------------------------------


def _probed(file: WellFormed) -> tuple[bytes, int | None]:
    """The file with probes, and the unused program; empty if it must be walked.

    It looks for bytes that may be the status of a note, and takes a file with one in a critical
    place for one that must be walked, whatever that byte is.
    """
    must_walk = b"", None
    if file.far_reaching is None:
        return must_walk
    # Of each track the first note of each channel; of each channel the tracks that set a program.
    noted = [{c: at for c in range(16) if (at := body.find(0x90 | c)) >= 0} for body in file.bodies]
    n_tracks = Counter(channel for firsts in noted for channel in firsts)
    setting: dict[int, set[int]] = defaultdict(set)
    used = {0}
    for i, seen in enumerate(file.far_reaching):
        for _, message in seen:
            if message[0] >= 0xC0 and message[1]:
                used.add(message[1])
                setting[message[0] & 0x0F].add(i)
    unused = next((program for program in range(128) if program not in used), None)
    bodies = []
    for i, body in enumerate(file.bodies):
        firsts = noted[i]
        own: dict[int, int] = {}
        late = set()  # channels that may have notes before their first program
        for pos, message in file.far_reaching[i]:
            channel = message[0] & 0x0F
            before = firsts.get(channel, pos) < pos
            if message[0] < 0xC0:
                if n_tracks[channel] > (channel in firsts):
                    return must_walk
                last = max(body.rfind(0x80 | channel), body.rfind(0x90 | channel))
                if before and last >= pos:
                    return must_walk
            elif channel != _DRUM_CHANNEL:
                # symusic separates the notes of two programs: one might end where the other begins.
                if before and own.get(channel, 0) != message[1]:
                    return must_walk
                if before and channel not in own:
                    late.add(channel)
                own[channel] = message[1]
        start = b""
        for channel in firsts.keys() - (own.keys() - late) - {_DRUM_CHANNEL}:
            if setting[channel] - {i}:
                if unused is None:
                    return must_walk
                start += bytes((0, 0xC0 | channel, unused))
        probes = b"".join([_PROBES[channel] for channel in firsts])
        bodies.append(start + body[: -len(END)] + _FAR_BEHIND + probes + b"\x00" + END)
    return with_tracks(file.header, bodies), unused


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
    # Do two notes of one track and pitch overlap? Keys of 16 bits are sorted by radix, four times
    # as fast as keys that hold the onset too; notes that come out of order overlap without it, too.
    wide = np.uint16 if len(lengths) <= 2**9 else np.uint32
    key = np.repeat((np.arange(len(lengths)) << 7).astype(wide), lengths)
    key |= columns["pitch"].astype(wide)
    order = np.argsort(key, kind="stable")
    key_s, begins = key.take(order), onset.take(order)
    ends = begins + duration.take(order)
    if not ((begins[1:] < ends[:-1]) & (key_s[1:] == key_s[:-1])).any():
        return True
    notes = (key.astype(np.int64) << 32) + onset
    # Of each pitch the first end is that of the first note, and so on: first in, first out.
    begins, ends = np.sort(notes), np.sort(notes + duration)
    next_end = ends.take(np.searchsorted(ends, begins, side="right"), mode="clip")
    next_begin = np.append(begins, 2**62)[np.searchsorted(begins, begins, side="right")]
    count(repairs, _AGAIN, int(((next_begin < next_end) & (ends > begins)).sum()))
    ends = np.where(ends > begins, np.minimum(next_begin, next_end), ends)
    duration[np.argsort(notes, kind="stable")] = ends - begins
    stop = 0
    for track, length in zip(score.tracks, lengths, strict=True):
        begin, stop = stop, stop + length
        its = slice(begin, stop)
        pitch, velocity = columns["pitch"][its], columns["velocity"][its]
        track.notes = NoteTickList.from_numpy(onset[its], duration[its], pitch, velocity)
    return True


# --- event by event ------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Note:
    """A note; ``ended`` says how, in the words of the repairs."""

    place: tuple[int, int]  # port and channel
    pitch: int
    onset: int
    end: int
    ended: str = _TRACK

    def end_at_first(self, ticks: list[int], ended: str) -> None:
        """Ends the note at the first of the ticks after its onset, if it sounds that long."""
        i = bisect_right(ticks, self.onset)
        if i < len(ticks) and (ticks[i] < self.end or self.ended == _TRACK):
            self.end, self.ended = ticks[i], ended


class _Key:
    """The notes of one pitch and channel while a track is read."""

    def __init__(self) -> None:
        self.sounding: list[_Note] = []  # they began together
        self.unpaired: deque[_Note] = deque()  # those whose own note-off has not come
        self.struck: list[_Note] = []  # those that the sounding ones ended
        self.early = -1  # tick of the last note-off that found nothing to end

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
    """Events that affect notes in other tracks, by port and channel."""

    def __init__(self) -> None:
        self.offs: dict[tuple[tuple[int, int], int], list[int]] = defaultdict(list)
        self.all_off: dict[tuple[int, int], list[int]] = defaultdict(list)
        self.programs: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
        self.drums_end = False

    def read(self, track: int, events: list[Event], end: int) -> tuple[list[_Note], list[_Note]]:
        """A track's notes, each up to where that track ends it, and those without a note-off."""
        port, notes = 0, []
        keys: dict[tuple[int, int], _Key] = defaultdict(_Key)
        for tick, message in events:
            kind, place = message[0] & 0xF0, (port, message[0] & 0x0F)
            if kind == 0x90 and message[2]:
                notes.append(_Note(place, message[1], tick, end))
                keys[place[1], message[1]].on(notes[-1])
            elif kind in (0x80, 0x90):
                self.drums_end |= place[1] == _DRUM_CHANNEL
                if not keys[place[1], message[1]].off(tick):
                    self.offs[place, message[1]].append(tick)
            elif kind == 0xB0 and message[1] in _ALL_OFF_CONTROLS:
                self.all_off[place].append(tick)
            elif kind == 0xC0:
                self.programs[place].append((tick, track, message[1]))
            elif message.startswith(b"\xff\x21\x01"):
                port = message[3]
        for key in keys.values():
            key.stop(end, _TRACK)
        unpaired = [
            note
            for note in notes
            if note.ended in (_AGAIN, _TRACK) and keys[note.place[1], note.pitch].unpaired
        ]
        return notes, unpaired

    def program(self, note: _Note, track: int) -> int:
        """The program that other tracks have set for a note's channel; 0 if none has."""
        programs = self.programs.get(note.place, [])
        i = bisect_right(programs, note.onset, key=lambda program: program[0])
        return next((program for _, other, program in reversed(programs[:i]) if other != track), 0)


def _written(file: WellFormed, repairs: dict[str, int]) -> bytes:
    """The file, event by event, with a note-off for each note and a program for each track."""
    channels = _Channels()
    tracks, unpaired = [], []
    for i, body in enumerate(file.bodies):
        walk = TrackRepair(body, 0, len(body), {})
        walk.run()
        notes, without_off = channels.read(i, walk.events, walk.tick)
        tracks.append((walk, notes))
        unpaired += without_off
    for ticks in (*channels.offs.values(), *channels.all_off.values()):
        ticks.sort()
    for programs in channels.programs.values():
        programs.sort(key=lambda program: program[0])  # at one tick the last track counts
    for note in unpaired:
        note.end_at_first(channels.offs.get((note.place, note.pitch), []), _ELSEWHERE)
    sixteenth = max(1, int.from_bytes(file.header[12:14], "big") // 4)
    for _, notes in tracks:
        for note in notes:
            note.end_at_first(channels.all_off.get(note.place, []), _ALL_OFF)
            drum = note.place[1] == _DRUM_CHANNEL and not channels.drums_end
            if drum and note.end > note.onset + sixteenth:
                note.end, note.ended = note.onset + sixteenth, _DRUM
            count(repairs, note.ended, int(note.ended != _OWN))

    bodies = []
    for track, (walk, notes) in enumerate(tracks):
        # Sorted by tick: note-offs, then the events in their order. A note of no length ends
        # right after its note-on.
        found: list[tuple[int, int, int, int, bytes]] = []
        given: dict[int, int] = {}  # the program of each channel
        own: set[int] = set()  # channels that have set one themselves
        following = iter(notes)
        for i, (tick, message) in enumerate(walk.events):
            kind, channel = message[0] & 0xF0, message[0] & 0x0F
            if kind == 0x90 and message[2]:
                note = next(following)
                if channel not in own and channel != _DRUM_CHANNEL:
                    program = channels.program(note, track)
                    if program != given.get(channel, 0):
                        found.append((tick, 1, i, 0, bytes((0xC0 | channel, program))))
                        given[channel] = program
                    count(repairs, _PROGRAM, int(program > 0))
                at_once = note.end == tick
                off = bytes((0x80 | channel, note.pitch, 64))
                found.append((note.end, int(at_once), i, 2 * at_once, off))
            elif kind in (0x80, 0x90):
                message = NOTHING
            elif kind == 0xC0:
                own.add(channel)
            found.append((tick, 1, i, 1, message))
        found.sort()
        last = found[-1][0] if found else 0
        bodies.append(joined(((t, m) for t, *_, m in found), max(walk.tick, last)))
    return with_tracks(file.header, bodies)
