"""The events of one track: a quick check of their grammar, and a walk that reads and mends them.

The format is Standard MIDI Files 1.0 (SMF, MIDI Association RP-001): each event has a delta time as
a variable-length quantity, then a status byte (or that of the last channel message, which then is
left out: running status) and its data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_TICK = 2**31 - 1  # symusic counts ticks in 32 bits, with a sign
FAR = 2**27  # so far behind a track's end nothing is played: see `midigenre.channels`
ALL_OFF = (120, 123)  # All Sound Off and All Notes Off (MIDI 1.0, channel mode messages)

END = b"\xff\x2f\x00"  # an end of track, without its delta
NOTHING = b"\xff\x01\x00"  # an empty text stands for an event left out, so that its delta stays

Event = tuple[int, bytes]
"""A tick and a message with its status byte."""


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


_EVENTS, _FAR_REACHING, _END_OF_TRACK, _LONG = _grammar()
_SYSTEM = re.compile(rb"[\x00-\x7f][\xf1-\xfe]")


def scan(data: bytes, start: int, end: int) -> list[tuple[int, bytes]] | None:
    """A whole track's changes of program, All Notes Off and All Sound Off.

    Returns:
        Where each one ends, counted from ``start``, and its message; None for a track that the
        grammar does not accept.
    """
    found, pos = [], start
    while True:
        events = _EVENTS.match(data, pos, end)
        pos = events.end() if events else pos
        if message := _FAR_REACHING.match(data, pos, end):
            pos = message.end()
            found.append((pos - start, message[1]))
        elif (after := _after_long(data, pos, end)) is not None:
            pos = after
        else:
            return found if _END_OF_TRACK.fullmatch(data, pos, end) else None


def _after_long(data: bytes, pos: int, end: int) -> int | None:
    """Where a long text or sysex ends that starts here; None where there is none that fits."""
    long = _LONG.match(data, pos, end)
    if long is None:
        return None
    try:
        length, pos = _vlq(data, long.end(), end)
    except _DamagedError:
        return None
    return pos + length if pos + length <= end else None


class _DamagedError(Exception):
    """A byte that cannot be understood; without a message: the track breaks off."""


class Walk:
    """One track, event by event, with what symusic would misread mended or left out.

    Attributes:
        pos: Where reading stopped: behind the end of the track, or at what is lost.
        events: The events up to there, without the end of track.
        tick: Where the track ends.
        n_notes: Note-ons among the events.
        ended: Whether it has an end-of-track event.
        damage: What could not be understood, "" for nothing.
    """

    def __init__(
        self, data: bytes, pos: int, limit: int, repairs: dict[str, int], keep_tempo: bool
    ) -> None:
        self.data, self.pos, self.limit = data, pos, limit
        self.repairs, self.keep_tempo = repairs, keep_tempo
        self.events: list[Event] = []
        self.tick, self.n_notes, self.ended, self.damage = 0, 0, False, ""
        self._running = 0

    def run(self) -> None:
        """Walks up to the end of the track, the limit or the first damage."""
        try:
            while self.pos < self.limit:
                self._event()
                if self.ended:
                    return
            what = "ends of tracks added"
        except _DamagedError as error:
            self.damage = str(error)
            what = "tracks cut at damage" if self.damage else "tracks cut at their last whole event"
        count(self.repairs, what)

    def read_on(self) -> None:
        """Reads what stands behind an early end of track, if all of it can be understood."""
        behind = Walk(self.data, self.pos, self.limit, {}, self.keep_tempo)
        behind.tick, behind.ended = self.tick, True
        while behind.ended and behind.pos < behind.limit:
            behind.ended = False
            behind.run()
        if behind.damage:
            count(self.repairs, "bytes behind the end of a track left out", self.limit - self.pos)
            return
        behind.repairs.pop("ends of tracks added", None)
        count(self.repairs, "early ends of tracks passed over")
        for what, n in behind.repairs.items():
            count(self.repairs, what, n)
        self.events += behind.events
        self.pos, self.tick = behind.pos, behind.tick
        self.n_notes += behind.n_notes

    def _event(self) -> None:
        """Reads one event."""
        data = self.data
        delta, pos = _vlq(data, self.pos, self.limit)
        if self.tick + delta > MAX_TICK:
            raise _DamagedError(f"a delta of {delta:,} ticks leads beyond tick {MAX_TICK:,}")
        status = self._byte(pos)
        if status >= 0x80:
            pos += 1
        elif self._running:
            status = self._running
        else:
            raise _DamagedError(f"byte {self.pos:,}: an event without a status")
        if status == 0xFF:
            kind = self._byte(pos)
            length, pos = _vlq(data, pos + 1, self.limit)
            if kind == 0x2F:
                self.pos, self.ended = min(pos + length, self.limit), True
                self.tick += delta
                return
            end = self._fits(pos + length)
            event = self._meta(kind, data[pos:end])
        elif status in (0xF0, 0xF7):  # a message of the manufacturer, or a part of one
            length, pos = _vlq(data, pos, self.limit)
            end, event = self._fits(pos + length), NOTHING
        elif status > 0xF0:
            end, event = self._system(status, pos), NOTHING
        else:
            self._running = status
            end = self._fits(pos + (1 if 0xC0 <= status < 0xE0 else 2))
            event = self._channel(status, data[pos:end])
        self.tick += delta
        self.events.append((self.tick, event))
        self.pos = end

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
        broken = kind > 0x7F
        if kind == 0x51:
            if not self.keep_tempo:
                return NOTHING
            broken = len(value) != 3
        elif kind == 0x58:  # numerator, and denominator as a power of two that fits a byte
            broken = len(value) < 2 or value[0] == 0 or value[1] > 7
        elif kind == 0x59:
            broken = len(value) < 2
        if broken:
            count(self.repairs, "broken meta events left out")
            return NOTHING
        return bytes((0xFF, kind)) + _to_vlq(len(value)) + value

    def _channel(self, status: int, values: bytes) -> bytes:
        """A channel message whose data bytes are below 128."""
        kind = status & 0xF0
        if max(values) > 0x7F:
            if kind == 0xC0:
                count(self.repairs, "programs over 127 left out")
                return NOTHING
            if values[0] > 0x7F and kind in (0x80, 0x90, 0xA0, 0xB0):
                what = "controls" if kind == 0xB0 else "pitches"
                count(self.repairs, f"{what} over 127 left out")
                return NOTHING
            what = "velocities" if kind in (0x80, 0x90) else "values"
            count(self.repairs, f"{what} over 127 clamped")
            values = bytes(min(v, 0x7F) for v in values)
        self.n_notes += kind == 0x90 and values[1] > 0
        return bytes((status,)) + values

    def _system(self, status: int, pos: int) -> int:
        """Where a system message ends, which has no place in a file.

        From F6 on it has no data (MIDI 1.0). F1 to F3 have one or two bytes, F4 and F5 are not
        defined: these have as many as leave an event to follow, best one that needs no repair.
        """
        count(self.repairs, "system messages left out")
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
        here = self.data, pos, self.limit
        if self.data[pos : pos + 1] >= b"\xf0" or min(self.data[pos : pos + 2], default=0) > 0x7F:
            return False
        events = _EVENTS.match(*here)
        return (
            (events is not None and events.end() > pos)
            or _SYSTEM.match(*here) is not None
            or _FAR_REACHING.match(*here) is not None
            or _END_OF_TRACK.match(*here) is not None
            or _after_long(*here) is not None
        )

    def _is_event(self, pos: int) -> bool:
        """Whether an event starts here that can be mended, or another system message."""
        try:
            _, pos = _vlq(self.data, pos, self.limit)
            status = self._byte(pos)
            if status >= 0x80:
                pos += 1
            if status in (0xF0, 0xF7, 0xFF):
                length, pos = _vlq(self.data, pos + (status == 0xFF), self.limit)
                self._fits(pos + length)
            elif status < 0xF0:
                status = status if status >= 0x80 else self._running
                self._fits(pos + (1 if 0xC0 <= status < 0xE0 else 2))
        except _DamagedError:
            return False
        return status > 0


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


def count(repairs: dict[str, int], what: str, n: int = 1) -> None:
    """Adds ``n`` repairs of a kind; of none there is no entry."""
    if n:
        repairs[what] = repairs.get(what, 0) + n
