"""Bytes of any kind to a well-formed MIDI file, or a refusal that says what they are.

Collections from the web hold files that are packed, wrapped, cut off or damaged. symusic believes
the sizes and the values in a file: a false one makes it give up, read memory that is not the
file's, or take a tempo from whatever lay there before. So it never sees such a file: a file is
checked against the grammar of Standard MIDI Files 1.0 (one regular expression, in C), and where
that fails the damaged tracks are read event by event and written again up to the first byte that
cannot be understood. Nothing is guessed beyond that byte.

The format is Standard MIDI Files 1.0 (SMF, MIDI Association RP-001): each event has a delta time as
a variable-length quantity, then a status byte (or that of the last channel message, which then is
left out: running status) and its data.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from midigenre.errors import RefusedSongError

MAX_BYTES = 64 * 2**20
"""Size of the largest file that is read, after unpacking: no music is as long as that."""

# symusic takes 5 kB for each channel and program of a track: 22 MB of them are 11 GB in memory.
MAX_TRACKS = 4096
MAX_PROGRAMS = 2**16
MAX_LAYERS = 3  # of packing and wrapping
MAX_LEADING = 8192  # bytes before the MIDI header: mail and HTTP headers, MacBinary, AppleDouble

FRAME_RATES = {24: 24.0, 25: 25.0, 29: 30000 / 1001, 30: 30.0}
"""SMPTE frames a second by the number in the division (SMF 1.0; 29 is 30 drop-frame)."""


MAX_TICK = 2**31 - 1  # symusic counts ticks in 32 bits, with a sign
FAR = 2**27  # so far behind a track's end nothing is played: see `midigenre.midi.channels`
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


class TrackRepair:
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
        behind = TrackRepair(self.data, self.pos, self.limit, {}, self.keep_tempo)
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


@dataclass(frozen=True)
class WellFormed:
    """A MIDI file that symusic can parse.

    Attributes:
        header: Its header chunk, 14 bytes.
        bodies: What is in its track chunks.
        far_reaching: What :func:`midigenre.midi.repair.scan` found in each track; None if one of
            them was mended.
        repairs: How often each repair was made.
    """

    header: bytes
    bodies: list[bytes]
    far_reaching: list[list[tuple[int, bytes]]] | None
    repairs: dict[str, int]

    @property
    def data(self) -> bytes:
        """The file."""
        return with_tracks(self.header, self.bodies)


def with_tracks(header: bytes, bodies: Iterable[bytes]) -> bytes:
    """A file of a header chunk and the contents of track chunks."""
    parts = [header]
    for body in bodies:
        parts += [b"MTrk", len(body).to_bytes(4, "big"), body]
    return b"".join(parts)


def well_formed(data: bytes, max_bytes: int = MAX_BYTES) -> WellFormed:
    """A MIDI file that symusic can parse, and what had to be repaired for that.

    In what is returned all sizes and counts are true, each track ends with its end-of-track event,
    channel messages have data bytes under 128, and no track is longer than 2**31 - 1 ticks. The
    tracks of a file that is so already stay as they are.

    * Unpacked: gzip and zlib, also where they are cut off; RIFF, MacBinary and any other up to
      8,192 bytes before the header.
    * Skipped: chunks that are no tracks, bytes outside of chunks, undefined status bytes.
    * Mended: a false length of the header or of a track, a false number of tracks, an unknown
      format, a missing end of track. A track that breaks off, or in which a byte cannot be
      understood, keeps its events up to there and ends there.
    * Behind an end of track that is not the last event of its chunk all events are read, or none
      and the bytes are counted.
    * Data bytes over 127: velocities, controls and pitch bends become 127; a note of such a pitch
      and such a program (mostly 255, "none") are left out rather than invented.
    * SMPTE time is read at 120 quarter notes a minute: it has no beats, and 120 is what a file
      without a tempo means. Its tempo events are left out: ticks are parts of a second there.

    Args:
        data: Bytes of a file.
        max_bytes: Largest size, before and after unpacking.

    Raises:
        RefusedSongError: ``unreadable``, also where more than half of it cannot be understood;
            ``too_large`` (bytes, tracks or program changes); ``several_songs``: format 2 with notes
            in more than one of its sequences, which are not meant to sound together.
    """
    repairs: dict[str, int] = {}
    data = _unwrapped(data, max_bytes, repairs)
    if len(data) < 14:
        raise RefusedSongError("unreadable", f"its header is cut off after {len(data)} bytes")
    if len(data) > MAX_PROGRAMS and _programs(data) > MAX_PROGRAMS:
        raise RefusedSongError("too_large", f"more than {MAX_PROGRAMS:,} changes of program")
    format_, n_tracks = _u16(data, 8), _u16(data, 10)
    ticks_per_second = _smpte(data[12:14])
    if ticks_per_second is None and _u16(data, 12) == 0:
        raise RefusedSongError("unreadable", "its header gives a quarter note 0 ticks")
    keep_tempo = ticks_per_second is None
    reader = _Tracks(data, repairs, keep_tempo, keep_tempo and format_ != 2 and _is_short(data))
    reader.read(_header_end(data, repairs))
    true_header = data[4:8] == b"\x00\x00\x00\x06" and n_tracks == len(reader.bodies)
    seen = reader.far_reaching if len(reader.far_reaching) == len(reader.bodies) else None
    if true_header and format_ < 2 and ticks_per_second is None:
        return WellFormed(data[:14], reader.bodies, seen, repairs)

    if n_tracks != len(reader.bodies):
        count(repairs, "track counts corrected")
    if format_ > 2:
        count(repairs, "formats corrected")
        format_ = 1
    if format_ == 2 and sum(n > 0 for n in reader.n_notes) > 1:
        raise RefusedSongError(
            "several_songs", f"a format 2 file of {len(reader.bodies)} sequences; split it"
        )
    bodies, division = reader.bodies, data[12:14]
    if ticks_per_second is not None:
        count(repairs, "SMPTE times read at 120 qpm")
        tpq = round(ticks_per_second / 2)
        # Not 500,000 where half the ticks of a second are no whole number: seconds stay true.
        tempo = round(1e6 * tpq / ticks_per_second)
        first = b"\x00\xff\x51\x03" + tempo.to_bytes(3, "big")
        division = tpq.to_bytes(2, "big")
        bodies = [first + body if i == 0 else body for i, body in enumerate(bodies)]
    numbers = format_.to_bytes(2, "big") + len(bodies).to_bytes(2, "big") + division
    return WellFormed(b"MThd\x00\x00\x00\x06" + numbers, bodies, seen, repairs)


def _unwrapped(data: bytes, max_bytes: int, repairs: dict[str, int]) -> bytes:
    """The bytes from the MIDI header on."""
    for _ in range(MAX_LAYERS + 1):
        if len(data) > max_bytes:
            raise RefusedSongError("too_large", f"{len(data):,} bytes, at most {max_bytes:,}")
        if data.startswith(b"MThd"):
            return data
        packed = data[:3] == b"\x1f\x8b\x08" or (
            data[:1] == b"\x78" and len(data) > 2 and _u16(data, 0) % 31 == 0
        )
        if not packed:
            break
        data = _decompressed(data, max_bytes, repairs)
    what = _kind(data)
    at = -1 if what else data.find(b"MThd\x00\x00\x00", 0, MAX_LEADING + 8)
    if at < 0:
        raise RefusedSongError(
            "unreadable", what or f"no MIDI header; it starts with {data[:12]!r}"
        )
    if data.startswith(b"RIFF") and data[at - 8 : at - 4] == b"data":
        count(repairs, "RIFF wrappers removed")
        # What follows the data chunk (names, copyright) belongs to the wrapper.
        size = int.from_bytes(data[at - 4 : at], "little")
        return data[at : at + size] if size > 14 else data[at:]
    count(repairs, "bytes before the header dropped", at)
    return data[at:]


def _decompressed(data: bytes, max_bytes: int, repairs: dict[str, int]) -> bytes:
    name = "gzip" if data[:1] == b"\x1f" else "zlib"
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # either kind of header
    try:
        unpacked = unpacker.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise RefusedSongError("unreadable", f"damaged {name} data ({error})") from error
    if len(unpacked) > max_bytes:
        raise RefusedSongError("too_large", f"{name} data of more than {max_bytes:,} bytes")
    count(repairs, f"{name} unpacked")
    if not unpacker.eof:
        count(repairs, f"{name} data cut off")
    return unpacked


def _kind(data: bytes) -> str | None:
    """What the bytes are, if they are known not to be music that can be read here."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not data:
        return "the file is empty (0 bytes)"
    if not data.strip(b"\x00"):
        return f"{len(data):,} bytes, all of them zero"
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        return f"an HTML page, not a MIDI file; it starts with {data[:40]!r}"
    if data[8:12] == b"WAVE" and data.startswith(b"RIFF"):
        return "a WAVE recording, not a MIDI file"
    for magic, what in _MAGIC.items():
        if data.startswith(magic):
            return f"{what}, not a MIDI file"
    if data[257:262] == b"ustar":
        return "a tar archive, not a MIDI file; unpack it"
    if all(32 <= c < 127 or c in b"\t\n\r\f" for c in data[:256]) and b"MThd" not in data:
        return f"text, not a MIDI file; it starts with {data[:40]!r}"
    return None


_MAGIC = {
    b"PK\x03\x04": "a ZIP archive (unpack it)",
    b"Rar!": "a RAR archive (unpack it)",
    b"7z\xbc\xaf": "a 7z archive (unpack it)",
    b"<?xml": "an XML file",
    b"%PDF": "a PDF file",
    b"ID3": "an MP3 recording",
    b"OggS": "an Ogg recording",
    b"fLaC": "a FLAC recording",
    b"FORM": "an IFF file (XMI or AIFF)",
    b"MTrk": "a track without its header",
    b"\x30\x26\xb2\x75": "an ASF recording",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"GIF8": "a GIF image",
    b"\xd0\xcf\x11\xe0": "an Office document",
    b"MZ": "a Windows program",
    b"\x7fELF": "a program",
}


def _smpte(division: bytes) -> float | None:
    """Ticks a second of a SMPTE division, None for ticks a quarter note."""
    if division[0] < 128:
        return None
    frames, ticks = 256 - division[0], division[1]
    if frames not in FRAME_RATES or ticks == 0:
        raise RefusedSongError(
            "unreadable",
            f"its header counts time in SMPTE frames, but {frames} frames a second of {ticks} "
            "ticks are not a rate that the standard has (24, 25, 29 or 30)",
        )
    return FRAME_RATES[frames] * ticks


def _programs(data: bytes) -> int:
    """At most how many program changes there are, and lyrics, for which symusic makes a track."""
    statuses = np.frombuffer(data, np.uint8) & 0xF0
    return int(np.count_nonzero(statuses == 0xC0)) + data.count(b"\xff\x05")


def _is_short(data: bytes) -> bool:
    """Whether no track can be longer than symusic counts, from a bound that costs next to nothing.

    A delta of up to three bytes (the grammar takes no longer ones) adds at most 2**14 ticks a unit
    of a byte over 127 that has another one behind it, and 2**7 of any other one.
    """
    values = np.frombuffer(data, np.uint8)
    high = values > 127
    if len(data) < 2**18 and np.count_nonzero(high[1:] & high[:-1]) < 2**8:
        return True  # less than 2**8 of 2**21 ticks and 2**16 of 2**14
    units = np.where(high, (values & 127) + np.uint8(1), np.uint8(0))
    firsts = units[:-1][high[1:]]
    total = 2**14 * int(firsts.sum(dtype=np.int64)) + 2**7 * int(units.sum(dtype=np.int64))
    return total + 2**7 * len(data) <= MAX_TICK - FAR


def _header_end(data: bytes, repairs: dict[str, int]) -> int:
    """Where the first chunk after the header starts."""
    end = 8 + int.from_bytes(data[4:8], "big")
    if end == 14:
        return end
    count(repairs, "header lengths corrected")
    if end > 14 and data[end : end + 4] == b"MTrk":
        return end  # a later version of the standard may have longer headers
    first = data.find(b"MTrk", 8)
    return max(14, first)


@dataclass
class _Tracks:
    """The tracks of a file, each as bytes that need no repair.

    Attributes:
        data: The file, from its header on.
        repairs: Counts what was repaired.
        keep_tempo: False leaves tempo events out.
        quick: Whether a track that the grammar accepts is taken without a walk.
        bodies: What is in the track chunks.
        n_notes: How many note-ons each has; -1 where it was not counted.
        far_reaching: What the grammar found in each track that was taken without a walk.
    """

    data: bytes
    repairs: dict[str, int]
    keep_tempo: bool
    quick: bool
    bodies: list[bytes] = field(default_factory=list)
    n_notes: list[int] = field(default_factory=list)
    far_reaching: list[list[tuple[int, bytes]]] = field(default_factory=list)

    def read(self, pos: int) -> None:
        """Reads all chunks from ``pos`` on.

        Raises:
            RefusedSongError: ``unreadable``: most of it cannot be understood.
        """
        data, size = self.data, len(self.data)
        lost, total, damage = 0, 0, ""
        while pos < size:
            if data[pos : pos + 4] != b"MTrk" or pos + 8 > size:
                pos = self._skip(pos)
                continue
            if len(self.bodies) == MAX_TRACKS:
                raise RefusedSongError(
                    "too_large", f"more than {MAX_TRACKS:,} tracks, which no piece has"
                )
            start = pos + 8
            end = start + int.from_bytes(data[pos + 4 : start], "big")
            if self.quick and end <= size and (seen := scan(data, start, end)) is not None:
                self.bodies.append(data[start:end])
                self.far_reaching.append(seen)
                self.n_notes.append(-1)
                total += end - start
                pos = end
                continue
            exact = end == size or (end < size and self._is_chunk(end))
            if exact:
                limit = end
            else:
                following = data.find(b"MTrk", start)
                limit = following if following >= 0 else size
            walk = TrackRepair(data, start, limit, self.repairs, self.keep_tempo)
            walk.run()
            # Its length says nothing of where it ends, or swallowed the next track.
            swallowed = data[walk.pos : min(walk.pos + 4, limit)] == b"MTrk"
            if walk.ended and exact and not swallowed and walk.pos < limit:
                walk.read_on()
            total += limit - start
            self.bodies.append(joined(walk.events, walk.tick))
            self.n_notes.append(walk.n_notes)
            if walk.damage:
                lost, damage = lost + limit - walk.pos, damage or walk.damage
            if walk.ended and (swallowed or not exact):
                count(self.repairs, "track lengths corrected")
                pos = walk.pos
            else:
                pos = limit
        if lost * 2 > total:
            raise RefusedSongError("unreadable", f"most of it is damaged: {damage}")

    def _skip(self, pos: int) -> int:
        """Where to go on after something that is no track."""
        data, size = self.data, len(self.data)
        if self._is_chunk(pos):
            count(self.repairs, "unknown chunks skipped")
            return pos + 8 + int.from_bytes(data[pos + 4 : pos + 8], "big")
        following = data.find(b"MTrk", pos + 1)
        end = following if following >= 0 else size
        count(self.repairs, "bytes outside chunks dropped", end - pos)
        return end

    def _is_chunk(self, pos: int) -> bool:
        """Whether a track, or another chunk that fits into the file, starts here."""
        tag = self.data[pos : pos + 4]
        if pos + 8 > len(self.data) or tag == b"MTrk":
            return pos + 8 <= len(self.data)
        end = pos + 8 + int.from_bytes(self.data[pos + 4 : pos + 8], "big")
        return tag.isascii() and tag.decode("ascii").isprintable() and end <= len(self.data)


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")
