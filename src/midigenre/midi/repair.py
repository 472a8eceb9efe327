"""Tracks event by event: those that are damaged, and notes that end by an event elsewhere.

An event is a delta time as a variable-length quantity, then a status byte (or that of the last
channel message, which then is left out: running status) and its data.

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
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_TICK = 2**31 - 1  # symusic counts ticks in 32 bits, with a sign

END = b"\xff\x2f\x00"  # an end of track, without its delta
NOTHING = b"\xff\x01\x00"  # an empty text replaces an event left out, so that its delta stays

DRUM_CHANNEL = 9
_ALL_OFF_CONTROLS = (120, 123)  # MIDI 1.0, channel mode messages

_OWN = ""
STRUCK_AGAIN = "notes ended where their pitch was struck again"
_BEFORE = "notes whose note-off stood before them"
_ELSEWHERE = "notes ended by a note-off in another track"
_ALL_OFF = "notes ended by All Notes Off or All Sound Off"
_TRACK = "notes ended with their track"
_DRUM = "drum notes without a note-off read as sixteenths"
_PROGRAM = "notes given the program of their channel"


Event = tuple[int, bytes]
"""A tick and a message with its status byte."""


# --- the grammar ----------------------------------------------------------------------------------


def _grammar() -> tuple[re.Pattern[bytes], ...]:
    """Events that need no repair; one that may concern other notes; an end; a long text or sysex.

    A change of program, All Notes Off and All Sound Off are matched one by one: they may concern
    notes of other tracks. A delta of 2**21 ticks or more counts as unusual, and so do the texts
    over 127 bytes, whose length an expression cannot read. Quantifiers are possessive: there is
    never a second reading, and memory stays flat however long the track is.
    """
    delta, value, low2 = rb"[\x80-\xff]{0,2}+[\x00-\x7f]", rb"[\x00-\x7f]", rb"[\x00-\x7f]{2}"
    body = b"|".join(re.escape(bytes([n])) + (b".{%d}" % n if n else b"") for n in range(128))
    meta = (
        rb"\xff(?:\x51\x03...|\x58\x04[\x01-\xff][\x00-\x07]..|\x59\x02..|"
        rb"[\x00-\x2e\x30-\x50\x52-\x57\x5a-\x7f](?:" + body + b"))"
    )
    note, control = rb"[\x80-\xaf\xe0-\xef]", rb"[\xb0-\xbf]"
    setting = rb"[\x00-\x77\x79\x7a\x7c-\x7f]" + value
    running2 = b"(?:%b(?:%b|%b%b|%b))*+" % (delta, low2, note, low2, meta)
    running_control = b"(?:%b(?:%b|%b%b|%b))*+" % (delta, setting, control, setting, meta)
    running1 = b"(?:%b(?:%b|%b))*+" % (delta, value, meta)
    event = b"|".join((
        note + low2 + running2,
        control + setting + running_control,
        rb"[\xd0-\xdf]" + value + running1,
        meta,
        rb"\xf0(?:" + body + b")",
    ))  # fmt: skip
    far_reaching = b"%b[\x78\x7b]%b|[\xc0-\xcf]%b" % (control, value, value)
    return (
        re.compile(b"(?:%b(?:%b))*+" % (delta, event), re.DOTALL),
        re.compile(b"%b(%b)" % (delta, far_reaching), re.DOTALL),
        re.compile(delta + END, re.DOTALL),
        re.compile(delta + rb"(?:\xf0|\xff[\x01-\x1f\x7f])(?=[\x80-\xff])", re.DOTALL),
    )


EVENTS, FAR_REACHING, END_OF_TRACK, _LONG = _grammar()
_SYSTEM = re.compile(rb"[\x00-\x7f][\xf1-\xfe]")


def after_long(data: bytes, pos: int, end: int) -> int | None:
    """Where a long text or sysex ends that starts here; None where there is none that fits."""
    long = _LONG.match(data, pos, end)
    if long is None:
        return None
    try:
        length, pos = _vlq(data, long.end(), end)
    except _DamagedError:
        return None
    return pos + length if pos + length <= end else None


# --- damage ---------------------------------------------------------------------------------------


class _DamagedError(Exception):
    """A byte that cannot be understood; without a message: the track breaks off."""


class TrackRepair:
    """One track, event by event, with what symusic would misread repaired or left out.

    Attributes:
        pos: Where reading stopped: after the end of the track, or at the damage.
        events: The events up to there, without the end of track.
        tick: Where the track ends.
        ended: Whether it has an end-of-track event.
        damage: What could not be understood, "" for nothing.
    """

    def __init__(
        self, data: bytes, pos: int, limit: int, repairs: Counter[str], keep_tempo: bool = True
    ) -> None:
        self.data, self.pos, self.limit = data, pos, limit
        self.repairs, self.keep_tempo = repairs, keep_tempo
        self.events: list[Event] = []
        self.tick, self.ended, self.damage = 0, False, ""
        self._running = 0

    def run(self) -> None:
        """Walks up to the end of the track, the limit or the first damage."""
        what = "ends of tracks added"
        try:
            while self.pos < self.limit and not self.ended:
                self._event()
        except _DamagedError as error:
            self.damage = str(error)
            what = "tracks cut at damage" if self.damage else "tracks cut at their last whole event"
        self.repairs[what] += not self.ended

    def read_on(self) -> None:
        """Reads what follows an early end of track, if all of it can be understood."""
        behind = TrackRepair(self.data, self.pos, self.limit, Counter(), self.keep_tempo)
        behind.tick, behind.ended = self.tick, True
        while behind.ended and behind.pos < behind.limit:
            behind.ended = False
            behind.run()
        if behind.damage:
            self.repairs["bytes behind the end of a track left out"] += self.limit - self.pos
            return
        behind.repairs.pop("ends of tracks added", None)
        self.repairs["early ends of tracks passed over"] += 1
        self.repairs.update(behind.repairs)
        self.events += behind.events
        self.pos, self.tick = behind.pos, behind.tick

    def _event(self) -> None:
        delta, status, kind, begin, end = self._extent(self.pos, self.tick)
        event = NOTHING  # in place of messages of the manufacturer and of the system
        if kind == 0x2F:
            self.pos, self.ended = min(end, self.limit), True
            self.tick += delta
            return
        if status == 0xFF:
            event = self._meta(kind, self.data[begin:end])
        elif status < 0xF0:
            self._running = status
            event = self._channel(status, self.data[begin:end])
        elif status not in (0xF0, 0xF7):
            end = self._system(status, begin)
        self.tick += delta
        self.events.append((self.tick, event))
        self.pos = end

    def _extent(self, pos: int, tick: int = 0) -> tuple[int, int, int, int, int]:
        """Delta, status, kind of meta event (or -1) of an event, and where its data lies."""
        delta, pos = _vlq(self.data, pos, self.limit)
        if tick + delta > MAX_TICK:
            raise _DamagedError(f"a delta of {delta:,} ticks leads beyond tick {MAX_TICK:,}")
        status, kind = self._byte(pos), -1
        if status >= 0x80:
            pos += 1
        elif self._running:
            status = self._running
        else:
            raise _DamagedError(f"byte {self.pos:,}: an event without a status")
        length = 0
        if status < 0xF0:
            length = 1 if 0xC0 <= status < 0xE0 else 2
        elif status in (0xF0, 0xF7, 0xFF):
            if status == 0xFF:
                kind, pos = self._byte(pos), pos + 1
            length, pos = _vlq(self.data, pos, self.limit)
        # An end of track ends it, whatever its length.
        return delta, status, kind, pos, pos + length if kind == 0x2F else self._fits(pos + length)

    def _byte(self, pos: int) -> int:
        self._fits(pos + 1)
        return self.data[pos]

    def _fits(self, end: int) -> int:
        """``end``, if the track goes that far."""
        if end <= self.limit:
            return end
        # In the last track the file ends; in an earlier one a length within it is wrong.
        if self.limit == len(self.data) and end - self.pos < 2**16:
            raise _DamagedError
        raise _DamagedError(f"byte {self.pos:,}: an event goes beyond the end of its track")

    def _meta(self, kind: int, value: bytes) -> bytes:
        """A meta event; nothing in place of one whose value symusic would misread."""
        if kind == 0x51 and not self.keep_tempo:
            return NOTHING
        if (
            kind > 0x7F
            or (kind == 0x51 and len(value) != 3)
            or (kind in (0x58, 0x59) and len(value) < 2)
            # A meter's numerator, and its denominator as a power of two that fits a byte.
            or (kind == 0x58 and (value[0] == 0 or value[1] > 7))
        ):
            self.repairs["broken meta events left out"] += 1
            return NOTHING
        return bytes((0xFF, kind)) + _to_vlq(len(value)) + value

    def _channel(self, status: int, values: bytes) -> bytes:
        """A channel message whose data bytes are below 128."""
        kind = status & 0xF0
        if max(values) > 0x7F:
            if kind == 0xC0 or (values[0] > 0x7F and kind <= 0xB0):
                what = {0xC0: "programs", 0xB0: "controls"}.get(kind, "pitches")
                self.repairs[f"{what} over 127 left out"] += 1
                return NOTHING
            what = "velocities" if kind in (0x80, 0x90) else "values"
            self.repairs[f"{what} over 127 clamped"] += 1
            values = bytes(min(v, 0x7F) for v in values)
        return bytes((status,)) + values

    def _system(self, status: int, pos: int) -> int:
        """Where a system message ends; a file should not contain any.

        From F6 on it has no data (MIDI 1.0). F1 to F3 have one or two bytes, F4 and F5 are not
        defined: these have as many as leave an event to follow, best one that needs no repair.
        """
        self.repairs["system messages left out"] += 1
        if status >= 0xF6:
            return pos
        known = {0xF1: 1, 0xF2: 2, 0xF3: 1}.get(status, 0)
        for follows in (self._is_clean, self._is_event):
            for n in (known, 0, 1, 2):
                if follows(pos + n):
                    return pos + n
        raise _DamagedError(f"byte {self.pos:,}: nothing can be read after the status {status:02X}")

    def _is_clean(self, pos: int) -> bool:
        """Whether an event that needs no repair starts here, or another system message.

        What would be a delta of 14,336 ticks and more may be a status and a damaged value.
        """
        if self.data[pos : pos + 1] >= b"\xf0" or min(self.data[pos : pos + 2], default=0) > 0x7F:
            return False
        here = self.data, pos, self.limit
        found = [p.match(*here) for p in (EVENTS, _SYSTEM, FAR_REACHING, END_OF_TRACK)]
        return any(m and m.end() > pos for m in found) or after_long(*here) is not None

    def _is_event(self, pos: int) -> bool:
        """Whether a repairable event starts here, or another system message."""
        try:
            return self._extent(pos)[-1] <= self.limit
        except _DamagedError:
            return False


def _vlq(data: bytes, pos: int, limit: int) -> tuple[int, int]:
    """A variable-length quantity, which SMF 1.0 keeps below 2**28, and where it ends."""
    start, value = pos, 0
    while pos < limit:
        byte = data[pos]
        pos += 1
        value = value << 7 | byte & 0x7F
        if value >= 2**28 or pos - start > 8:
            raise _DamagedError(f"byte {start:,}: a length or delta of 2**28 or more")
        if byte < 0x80:
            return value, pos
    raise _DamagedError


def _to_vlq(value: int) -> bytes:
    found = [value & 0x7F]
    while value := value >> 7:
        found.append(value & 0x7F | 0x80)
    return bytes(reversed(found))


def joined(events: Iterable[Event], end: int) -> bytes:
    """The events, in order, as the bytes of a track that ends at a tick."""
    out, last = bytearray(), 0
    for tick, message in (*events, (end, END)):
        while tick - last >= 2**28:  # a delta has four bytes at most
            last += 2**28 - 1
            out += _to_vlq(2**28 - 1) + NOTHING
        out += _to_vlq(tick - last) + message
        last = tick
    return bytes(out)


# --- notes that end by an event elsewhere ---------------------------------------------------------


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
            self.stop(note.onset, STRUCK_AGAIN)
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
                self.drums_end |= place[1] == DRUM_CHANNEL
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
            if note.ended in (STRUCK_AGAIN, _TRACK) and keys[note.place[1], note.pitch].unpaired
        ]
        return notes, unpaired

    def program(self, note: _Note, track: int) -> int:
        """The program that other tracks have set for a note's channel; 0 if none has."""
        programs = self.programs.get(note.place, [])
        i = bisect_right(programs, note.onset, key=lambda program: program[0])
        return next((program for _, other, program in reversed(programs[:i]) if other != track), 0)


def notes_ended(header: bytes, bodies: Sequence[bytes], repairs: Counter[str]) -> list[bytes]:
    """Well-formed tracks, again, with a note-off for each note and a program for each track.

    Args:
        header: The header chunk of the file.
        bodies: What is in its track chunks.
        repairs: How many notes ended otherwise than by a note-off of their own, and how many got
            the program of another track, is added to it.
    """
    channels = _Channels()
    tracks, unpaired = [], []
    for i, body in enumerate(bodies):
        walk = TrackRepair(body, 0, len(body), Counter())
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
    sixteenth = max(1, int.from_bytes(header[12:14], "big") // 4)
    for _, notes in tracks:
        for note in notes:
            note.end_at_first(channels.all_off.get(note.place, []), _ALL_OFF)
            drum = note.place[1] == DRUM_CHANNEL and not channels.drums_end
            if drum and note.end > note.onset + sixteenth:
                note.end, note.ended = note.onset + sixteenth, _DRUM
            repairs[note.ended] += note.ended != _OWN

    written = []
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
                if channel not in own and channel != DRUM_CHANNEL:
                    program = channels.program(note, track)
                    if program != given.get(channel, 0):
                        found.append((tick, 1, i, 0, bytes((0xC0 | channel, program))))
                        given[channel] = program
                    repairs[_PROGRAM] += program > 0
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
        written.append(joined(((t, m) for t, *_, m in found), max(walk.tick, last)))
    return written
