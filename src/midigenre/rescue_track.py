"""The events of one track: a quick check of their grammar, and a walk that mends them.

The format is Standard MIDI Files 1.0 (SMF, MIDI Association RP-001): each event has a delta time as
a variable-length quantity, then a status byte (or that of the last channel message, which then is
left out: running status) and its data.
"""

from __future__ import annotations

import re

MAX_TICK = 2**31 - 1  # symusic counts ticks in 32 bits, with a sign

_END = b"\x00\xff\x2f\x00"
_NOTHING = b"\xff\x01\x00"  # an empty text stands for an event left out, so that its delta stays


def _grammar() -> tuple[re.Pattern[bytes], re.Pattern[bytes], re.Pattern[bytes]]:
    """Events that need no repair, the end of a track, and the head of a long text or sysex.

    A delta of 2**21 ticks or more counts as unusual, and so do the texts over 127 bytes, whose
    length an expression cannot read. Quantifiers are possessive: there is never a second reading,
    and memory stays flat however long the track is.
    """
    delta, value, low2 = rb"[\x80-\xff]{0,2}+[\x00-\x7f]", rb"[\x00-\x7f]", rb"[\x00-\x7f]{2}"
    body = b"|".join(re.escape(bytes([n])) + (b".{%d}" % n if n else b"") for n in range(128))
    meta = (
        rb"\xff(?:\x51\x03...|\x58\x04[\x01-\xff][\x00-\x07]..|\x59\x02..|"
        rb"[\x00-\x2e\x30-\x50\x52-\x57\x5a-\x7f](?:" + body + b"))"
    )
    status2, status1 = rb"[\x80-\xbf\xe0-\xef]", rb"[\xc0-\xdf]"
    running2 = b"(?:%b(?:%b|%b%b|%b))*+" % (delta, low2, status2, low2, meta)
    running1 = b"(?:%b(?:%b|%b))*+" % (delta, value, meta)
    event = b"|".join((
        status2 + low2 + running2,
        status1 + value + running1,
        meta,
        rb"\xf0(?:" + body + b")",
    ))  # fmt: skip
    return (
        re.compile(b"(?:%b(?:%b))*+" % (delta, event), re.DOTALL),
        re.compile(delta + rb"\xff\x2f\x00", re.DOTALL),
        re.compile(delta + rb"(?:\xf0|\xff[\x01-\x1f\x7f])(?=[\x80-\xff])", re.DOTALL),
    )


_EVENTS, _END_OF_TRACK, _LONG = _grammar()


def is_clean(data: bytes, start: int, end: int) -> bool:
    """Whether the grammar accepts a whole track."""
    while True:
        events = _EVENTS.match(data, start, end)
        start = events.end() if events else start
        long = _LONG.match(data, start, end)
        if long is None:
            return _END_OF_TRACK.fullmatch(data, start, end) is not None
        try:
            length, start = _vlq(data, long.end(), end)
        except _DamagedError:
            return False
        start += length


class _DamagedError(Exception):
    """A byte that cannot be understood; without a message: the track breaks off."""


class Walk:
    """One damaged track, event by event, written anew.

    Attributes:
        pos: Where reading stopped: behind the end of the track, or at what is lost.
        out: Whole events up to there, with an end of track.
        n_notes: Note-ons among them.
        ended: Whether it has an end-of-track event.
        damage: What could not be understood, "" for nothing.
    """

    def __init__(
        self, data: bytes, pos: int, limit: int, repairs: dict[str, int], keep_tempo: bool
    ) -> None:
        self.data, self.pos, self.limit = data, pos, limit
        self.repairs, self.keep_tempo = repairs, keep_tempo
        self.out = bytearray()
        self.n_notes, self.ended, self.damage = 0, False, ""
        self._running, self._tick = 0, 0
        self._sounding: dict[tuple[int, int], int] = {}  # (channel, pitch) to note-ons

    def run(self) -> None:
        """Walks up to the end of the track, the limit or the first damage."""
        try:
            while self.pos < self.limit:
                self._event()
                if self.ended:
                    self.out += _END
                    return
            what = "ends of tracks added"
        except _DamagedError as error:
            self.damage = str(error)
            what = "tracks cut at damage" if self.damage else "tracks cut at their last whole event"
        count(self.repairs, what)
        count(self.repairs, "notes ended at the cut", sum(self._sounding.values()))
        for (channel, pitch), n in self._sounding.items():
            self.out += bytes((0, 0x80 | channel, pitch, 64)) * n
        self.out += _END

    def _event(self) -> None:
        """Reads one event and writes it."""
        data = self.data
        delta, pos = _vlq(data, self.pos, self.limit)
        if self._tick + delta > MAX_TICK:
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
                return
            end = self._fits(pos + length)
            event = self._meta(kind, data[pos:end])
        elif status in (0xF0, 0xF7):  # a message of the manufacturer, or a part of one
            length, pos = _vlq(data, pos, self.limit)
            end, event = self._fits(pos + length), _NOTHING
        elif status > 0xF0:
            end, event = self._system(status, pos), _NOTHING
        else:
            self._running = status
            end = self._fits(pos + (1 if 0xC0 <= status < 0xE0 else 2))
            event = self._channel(status, data[pos:end])
        self._tick += delta
        self.out += _to_vlq(delta) + event
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
                return _NOTHING
            broken = len(value) != 3
        elif kind == 0x58:  # numerator, and denominator as a power of two that fits a byte
            broken = len(value) < 2 or value[0] == 0 or value[1] > 7
        elif kind == 0x59:
            broken = len(value) < 2
        if broken:
            count(self.repairs, "broken meta events left out")
            return _NOTHING
        return bytes((0xFF, kind)) + _to_vlq(len(value)) + value

    def _channel(self, status: int, values: bytes) -> bytes:
        """A channel message whose data bytes are below 128."""
        kind = status & 0xF0
        if max(values) > 0x7F:
            if kind == 0xC0:
                count(self.repairs, "programs over 127 left out")
                return _NOTHING
            if values[0] > 0x7F and kind in (0x80, 0x90, 0xA0, 0xB0):
                what = "controls" if kind == 0xB0 else "pitches"
                count(self.repairs, f"{what} over 127 left out")
                return _NOTHING
            what = "velocities" if kind in (0x80, 0x90) else "values"
            count(self.repairs, f"{what} over 127 clamped")
            values = bytes(min(v, 0x7F) for v in values)
        key = (status & 0x0F, values[0])
        if kind == 0x90 and values[1]:
            self.n_notes += 1
            self._sounding[key] = self._sounding.get(key, 0) + 1
        elif kind in (0x80, 0x90) and key in self._sounding:
            self._sounding[key] -= 1
            if self._sounding[key] == 0:
                del self._sounding[key]
        return bytes((status,)) + values

    def _system(self, status: int, pos: int) -> int:
        """Where a system message ends, which has no place in a file.

        From F6 on it has no data (MIDI 1.0). F1 to F3 have one or two bytes, F4 and F5 are not
        defined: these have as many as leave a whole event to follow.
        """
        if status >= 0xF6:
            count(self.repairs, "system messages left out")
            return pos
        known = {0xF1: 1, 0xF2: 2, 0xF3: 1}.get(status, 0)
        for n in (known, 0, 1, 2):
            following = _EVENTS.match(self.data, pos + n, self.limit)
            if (following and following.end() > pos + n) or _END_OF_TRACK.match(
                self.data, pos + n, self.limit
            ):
                count(self.repairs, "system messages left out")
                return pos + n
        raise _DamagedError(f"byte {self.pos:,}: nothing can be read after the status {status:02X}")


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
