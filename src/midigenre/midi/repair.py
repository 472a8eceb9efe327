"""Turns arbitrary bytes into a well-formed MIDI file, or rejects them and says what they are.

symusic trusts the sizes and values in a file: a false one makes it fail, or read memory
outside the file. So a file is checked against the grammar of Standard MIDI Files 1.0 first
(MIDI Association RP-001; one regular expression, in C). Where that fails, the damaged tracks are
read event by event and written again up to the first byte that cannot be understood. Nothing is
guessed beyond that byte.

An event is a delta time as a variable-length quantity, then a status byte (or that of the last
channel message, which then is left out: running status) and its data.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from midigenre.errors import RejectedSongError

MAX_BYTES = 64 * 2**20
"""Size of the largest file that is read, after unpacking: no music is as long as that."""

# symusic takes 5 kB for each channel and program of a track: 22 MB of them are 11 GB in memory.
MAX_TRACKS = 4096
MAX_PROGRAMS = 2**16
MAX_LAYERS = 3  # of packing and wrapping
MAX_LEADING = 8192  # bytes before the MIDI header: mail and HTTP headers, MacBinary, AppleDouble

FRAME_RATES = {24: 24.0, 25: 25.0, 29: 30000 / 1001, 30: 30.0}
"""SMPTE frames per second by the number in the division (SMF 1.0; 29 is 30 drop-frame)."""

MAX_TICK = 2**31 - 1  # symusic counts ticks in 32 bits, with a sign
FAR = 2**27  # ticks after a track's end at which nothing is played: see `midigenre.midi.channels`

END = b"\xff\x2f\x00"  # an end of track, without its delta
NOTHING = b"\xff\x01\x00"  # an empty text replaces an event left out, so that its delta stays

Event = tuple[int, bytes]
"""A tick and a message with its status byte."""


@dataclass(frozen=True)
class WellFormed:
    """A MIDI file that symusic can parse.

    Attributes:
        header: Its header chunk, 14 bytes.
        bodies: What is in its track chunks.
        far_reaching: What :func:`scan` found in each track; None if one of them was repaired.
        repairs: How often each repair was made.
    """

    header: bytes
    bodies: list[bytes]
    far_reaching: list[list[tuple[int, bytes]]] | None
    repairs: dict[str, int]


def well_formed(data: bytes, max_bytes: int = MAX_BYTES) -> WellFormed:
    """A MIDI file that symusic can parse, and what had to be repaired.

    In what is returned all sizes and counts are true, each track ends with its end-of-track event,
    channel messages have data bytes under 128, and no track is longer than 2**31 - 1 ticks. The
    tracks of a file that is so already stay as they are.

    * Unpacked: gzip and zlib, also where they are cut off; RIFF, MacBinary and any other up to
      8,192 bytes before the header.
    * Skipped: chunks that are not tracks, bytes outside of chunks, undefined status bytes.
    * Repaired: a false length of the header or of a track, a false number of tracks, an unknown
      format, a missing end of track. A track that breaks off, or in which a byte cannot be
      understood, keeps its events up to there and ends there.
    * After an early end of track the rest of the chunk is read if all of it can be understood;
      otherwise its bytes are counted.
    * Data bytes over 127: velocities, controls and pitch bends become 127; a note of such a pitch
      and such a program (mostly 255, "none") are left out rather than invented.
    * SMPTE time is read at 120 quarter notes per minute: it has no beats, and 120 is what a file
      without a tempo means. Its tempo events are left out: ticks are parts of a second there.

    Args:
        data: Bytes of a file.
        max_bytes: Largest size, before and after unpacking.

    Raises:
        RejectedSongError: ``unreadable``, also where more than half of it cannot be understood;
            ``too_large`` (bytes, tracks or program changes); ``several_songs``: format 2 with notes
            in more than one of its sequences, which are not meant to sound together.
    """
    repairs: dict[str, int] = {}
    if len(data) > max_bytes or not data.startswith(b"MThd"):
        data = _unwrapped(data, max_bytes, repairs)
    if len(data) < 14:
        raise RejectedSongError("unreadable", f"its header is cut off after {len(data)} bytes")
    values = np.frombuffer(data, np.uint8)
    if len(data) > MAX_PROGRAMS:
        # symusic makes a track for each change of program, and for lyrics.
        n_programs = np.count_nonzero(values & 0xF0 == 0xC0) + data.count(b"\xff\x05")
        if n_programs > MAX_PROGRAMS:
            raise RejectedSongError("too_large", f"more than {MAX_PROGRAMS:,} changes of program")
    length, format_, n_tracks, division = struct.unpack_from(">IHHH", data, 4)
    frames, ticks = 256 - (division >> 8), division & 0xFF
    smpte = division >= 2**15
    if division == 0:
        raise RejectedSongError("unreadable", "its header gives a quarter note 0 ticks")
    if smpte and (frames not in FRAME_RATES or ticks == 0):
        what = f"but {frames} frames a second of {ticks} ticks are not a rate that the standard has"
        what = f"its header counts time in SMPTE frames, {what} (24, 25, 29 or 30)"
        raise RejectedSongError("unreadable", what)
    # No track is too long for symusic: a delta of up to three bytes (the grammar takes no longer
    # ones) adds less than 2**14 ticks per unit of a byte over 127 that has another one behind it,
    # and 2**7 of any other one. First by the number of such bytes, which costs next to nothing.
    high = values > 127
    followed = high[:-1] & high[1:]
    longest = 2**21 * int(np.count_nonzero(followed)) + 2**14 * int(np.count_nonzero(high))
    if longest + 2**7 * len(data) > MAX_TICK - FAR:
        units = np.where(high, values - np.uint8(127), np.uint8(0))
        longest = 2**14 * int(units[:-1][followed].sum(dtype=np.int64))
        longest += 2**7 * int(units.sum(dtype=np.int64))
    is_short = longest + 2**7 * len(data) <= MAX_TICK - FAR
    start = 8 + length
    if start != 14:
        count(repairs, "header lengths corrected")
        # A later version of the standard may have longer headers.
        if start < 14 or data[start : start + 4] != b"MTrk":
            start = max(14, data.find(b"MTrk", 8))
    quick = not smpte and format_ != 2 and is_short
    tracks = _tracks(data, start, repairs, not smpte, quick)
    bodies = [track.body for track in tracks]

    count(repairs, "track counts corrected", int(n_tracks != len(bodies)))
    if format_ > 2:
        count(repairs, "formats corrected")
        format_ = 1
    if format_ == 2 and sum(track.has_notes for track in tracks) > 1:
        raise RejectedSongError(
            "several_songs", f"a format 2 file of {len(bodies)} sequences; split it"
        )
    if smpte:
        count(repairs, "SMPTE times read at 120 qpm")
        ticks_per_second = FRAME_RATES[frames] * ticks
        division = round(ticks_per_second / 2)
        # Not 500,000 where half the ticks of a second are no whole number: seconds stay true.
        tempo = round(1e6 * division / ticks_per_second)
        if bodies:
            bodies[0] = b"\x00\xff\x51\x03" + tempo.to_bytes(3, "big") + bodies[0]
    header = struct.pack(">4sIHHH", b"MThd", 6, format_, len(bodies), division)
    seen = [track.far_reaching for track in tracks if track.far_reaching is not None]
    return WellFormed(header, bodies, seen if len(seen) == len(bodies) else None, repairs)


def with_tracks(header: bytes, bodies: Iterable[bytes]) -> bytes:
    """A file of a header chunk and the contents of track chunks."""
    parts = [header]
    for body in bodies:
        parts += [b"MTrk", len(body).to_bytes(4, "big"), body]
    return b"".join(parts)


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


def count(repairs: dict[str, int], what: str, n: int = 1) -> None:
    """Adds ``n`` repairs of a kind; of none there is no entry."""
    if n:
        repairs[what] = repairs.get(what, 0) + n


# --- packing and wrapping ------------------------------------------------------------------------

_FOREIGN = [
    (re.compile(pattern, re.DOTALL), what)
    for pattern, what in (
        (rb"RIFF....WAVE", "a WAVE recording"),
        (rb"PK\x03\x04", "a ZIP archive (unpack it)"),
        (rb"Rar!", "a RAR archive (unpack it)"),
        (rb"7z\xbc\xaf", "a 7z archive (unpack it)"),
        (rb"<\?xml", "an XML file"),
        (rb"%PDF", "a PDF file"),
        (rb"ID3", "an MP3 recording"),
        (rb"OggS", "an Ogg recording"),
        (rb"fLaC", "a FLAC recording"),
        (rb"FORM", "an IFF file (XMI or AIFF)"),
        (rb"MTrk", "a track without its header"),
        (rb"\x30\x26\xb2\x75", "an ASF recording"),
        (rb"\xff\xd8\xff", "a JPEG image"),
        (rb"\x89PNG", "a PNG image"),
        (rb"GIF8", "a GIF image"),
        (rb"\xd0\xcf\x11\xe0", "an Office document"),
        (rb"MZ", "a Windows program"),
        (rb"\x7fELF", "a program"),
        (rb".{257}ustar", "a tar archive (unpack it)"),
    )
]
_PAGE = re.compile(rb"[\xef\xbb\xbf \t\r\n]*<(!doctype|html|head|body)", re.IGNORECASE)
_TEXT = re.compile(rb"[ -~\t\n\r\f]*")


def _unwrapped(data: bytes, max_bytes: int, repairs: dict[str, int]) -> bytes:
    """The bytes from the MIDI header on."""
    for _ in range(MAX_LAYERS + 1):
        if len(data) > max_bytes:
            raise RejectedSongError("too_large", f"{len(data):,} bytes, at most {max_bytes:,}")
        if data.startswith(b"MThd"):
            return data
        if data.startswith(b"\x1f\x8b\x08"):
            name = "gzip"
        elif (
            data.startswith(b"\x78") and len(data) > 2 and int.from_bytes(data[:2], "big") % 31 == 0
        ):
            name = "zlib"
        else:
            break
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # either kind of header
        try:
            data = unpacker.decompress(data, max_bytes + 1)
        except zlib.error as error:
            raise RejectedSongError("unreadable", f"damaged {name} data ({error})") from error
        if len(data) > max_bytes:
            raise RejectedSongError("too_large", f"{name} data of more than {max_bytes:,} bytes")
        count(repairs, f"{name} unpacked")
        count(repairs, f"{name} data cut off", int(not unpacker.eof))
    what = _foreign(data)
    at = -1 if what else data.find(b"MThd\x00\x00\x00", 0, MAX_LEADING + 8)
    if at < 0:
        what = what or f"no MIDI header; it starts with {data[:12]!r}"
        raise RejectedSongError("unreadable", what)
    if data.startswith(b"RIFF") and data[at - 8 : at - 4] == b"data":
        count(repairs, "RIFF wrappers removed")
        # What follows the data chunk (names, copyright) belongs to the wrapper.
        size = int.from_bytes(data[at - 4 : at], "little")
        return data[at : at + size] if size > 14 else data[at:]
    count(repairs, "bytes before the header dropped", at)
    return data[at:]


def _foreign(data: bytes) -> str | None:
    """What the bytes are, if they are a known kind of file that is not readable music."""
    if not data:
        return "the file is empty (0 bytes)"
    if not data.strip(b"\x00"):
        return f"{len(data):,} bytes, all of them zero"
    if _PAGE.match(data[:512]):
        return f"an HTML page, not a MIDI file; it starts with {data[:40]!r}"
    for pattern, what in _FOREIGN:
        if pattern.match(data):
            return f"{what}, not a MIDI file"
    if _TEXT.fullmatch(data[:256]) and b"MThd" not in data:
        return f"text, not a MIDI file; it starts with {data[:40]!r}"
    return None


# --- the grammar ---------------------------------------------------------------------------------


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
        elif _END_OF_TRACK.fullmatch(data, pos, end):
            return found
        elif (after := _after_long(data, pos, end)) is not None:
            pos = after
        else:
            return None


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


# --- event by event ------------------------------------------------------------------------------


class _DamagedError(Exception):
    """A byte that cannot be understood; without a message: the track breaks off."""


@dataclass
class _Track:
    """A track as bytes that need no repair; and what the grammar found, if it was not walked."""

    body: bytes
    far_reaching: list[tuple[int, bytes]] | None
    has_notes: bool = False  # looked at where it was walked


def _tracks(
    data: bytes, pos: int, repairs: dict[str, int], keep_tempo: bool, quick: bool
) -> list[_Track]:
    """The tracks of all chunks from ``pos`` on; if ``quick``, those in the grammar are not walked.

    Raises:
        RejectedSongError: ``unreadable``: most of it cannot be understood; ``too_large``.
    """
    tracks: list[_Track] = []
    lost, total, damage = 0, 0, ""
    while pos < len(data):
        start = pos + 8
        if data[pos : pos + 4] != b"MTrk" or start > len(data):
            end = _chunk_end(data, pos)
            count(repairs, "unknown chunks skipped", int(end is not None))
            if end is None:
                end = _next_track(data, pos + 1)
                count(repairs, "bytes outside chunks dropped", end - pos)
            pos = end
            continue
        if len(tracks) == MAX_TRACKS:
            what = f"more than {MAX_TRACKS:,} tracks, which no piece has"
            raise RejectedSongError("too_large", what)
        end = start + int.from_bytes(data[pos + 4 : start], "big")
        if quick and end <= len(data) and (seen := scan(data, start, end)) is not None:
            tracks.append(_Track(data[start:end], seen))
            total += end - start
            pos = end
            continue
        exact = end == len(data) or (end < len(data) and _chunk_end(data, end) is not None)
        limit = end if exact else _next_track(data, start)
        walk = TrackRepair(data, start, limit, repairs, keep_tempo)
        walk.run()
        # Its length does not say where it ends, or swallowed the next track.
        swallowed = data[walk.pos : min(walk.pos + 4, limit)] == b"MTrk"
        if walk.ended and exact and not swallowed and walk.pos < limit:
            walk.read_on()
        total += limit - start
        has_notes = any(m[0] & 0xF0 == 0x90 and m[2] > 0 for _, m in walk.events)
        tracks.append(_Track(joined(walk.events, walk.tick), None, has_notes))
        if walk.damage:
            lost, damage = lost + limit - walk.pos, damage or walk.damage
        pos = limit
        if walk.ended and (swallowed or not exact):
            count(repairs, "track lengths corrected")
            pos = walk.pos
    if lost * 2 > total:
        raise RejectedSongError("unreadable", f"most of it is damaged: {damage}")
    return tracks


def _next_track(data: bytes, pos: int) -> int:
    following = data.find(b"MTrk", pos)
    return following if following >= 0 else len(data)


def _chunk_end(data: bytes, pos: int) -> int | None:
    """Where a track, or another chunk that fits into the file, ends; None if none starts here."""
    tag, end = data[pos : pos + 4], pos + 8 + int.from_bytes(data[pos + 4 : pos + 8], "big")
    if pos + 8 > len(data):
        return None
    known = tag.isascii() and tag.decode("ascii").isprintable() and end <= len(data)
    return end if known or tag == b"MTrk" else None


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
        self, data: bytes, pos: int, limit: int, repairs: dict[str, int], keep_tempo: bool = True
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
        count(self.repairs, what, int(not self.ended))

    def read_on(self) -> None:
        """Reads what follows an early end of track, if all of it can be understood."""
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
            count(self.repairs, "broken meta events left out")
            return NOTHING
        return bytes((0xFF, kind)) + _to_vlq(len(value)) + value

    def _channel(self, status: int, values: bytes) -> bytes:
        """A channel message whose data bytes are below 128."""
        kind = status & 0xF0
        if max(values) > 0x7F:
            if kind == 0xC0 or (values[0] > 0x7F and kind <= 0xB0):
                what = {0xC0: "programs", 0xB0: "controls"}.get(kind, "pitches")
                count(self.repairs, f"{what} over 127 left out")
                return NOTHING
            what = "velocities" if kind in (0x80, 0x90) else "values"
            count(self.repairs, f"{what} over 127 clamped")
            values = bytes(min(v, 0x7F) for v in values)
        return bytes((status,)) + values

    def _system(self, status: int, pos: int) -> int:
        """Where a system message ends; a file should not contain any.

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
        if self.data[pos : pos + 1] >= b"\xf0" or min(self.data[pos : pos + 2], default=0) > 0x7F:
            return False
        here = self.data, pos, self.limit
        found = [p.match(*here) for p in (_EVENTS, _SYSTEM, _FAR_REACHING, _END_OF_TRACK)]
        return any(m and m.end() > pos for m in found) or _after_long(*here) is not None

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
