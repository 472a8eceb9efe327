"""The bytes of any file to the score that its channels play, or the reason why there is none.

symusic parses, but it trusts the sizes and values in a file (a false one makes it fail, or read
memory outside the file), and it pairs note-ons with note-offs in each track for itself. So a file
is read in three steps, from top to bottom of this module:

1. :func:`well_formed` unpacks it and checks it against the grammar of Standard MIDI Files 1.0 (MIDI
   Association RP-001; one regular expression, in C). Damaged tracks are read event by event
   (:mod:`midigenre.midi.repair`) and written again up to the first byte that cannot be understood.
   Nothing is guessed beyond that byte.
2. :func:`_probed` adds *probes*: note-offs for all pitches far after the end of each track, and an
   unused program at the start of tracks without their own. symusic's result shows where they took
   effect. Where none did, no event of one track concerns the notes of another.
3. :func:`_end_notes` ends notes where their pitch is struck again. A file in which notes are ended,
   or get their program, by another track is written again by
   :func:`midigenre.midi.repair.notes_ended`, which says what MIDI means there.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from symusic.core import NoteTickList, ScoreTick

from midigenre.errors import RejectedSongError
from midigenre.midi.repair import (
    DRUM_CHANNEL,
    END,
    END_OF_TRACK,
    EVENTS,
    FAR_REACHING,
    MAX_TICK,
    NOTHING,
    STRUCK_AGAIN,
    TrackRepair,
    after_long,
    joined,
    notes_ended,
)
from midigenre.midi.song import note_columns

MAX_BYTES = 64 * 2**20
"""Size of the largest file that is read, after unpacking: no music is as long as that."""

# symusic takes 5 kB for each channel and program of a track: 22 MB of them are 11 GB in memory.
MAX_TRACKS = 4096
MAX_PROGRAMS = 2**16
MAX_LAYERS = 3  # of packing and wrapping
MAX_LEADING = 8192  # bytes before the MIDI header: mail and HTTP headers, MacBinary, AppleDouble

FRAME_RATES = {24: 24.0, 25: 25.0, 29: 30000 / 1001, 30: 30.0}
"""SMPTE frames per second by the number in the division (SMF 1.0; 29 is 30 drop-frame)."""

FAR = 2**27  # ticks after a track's end at which nothing is played but the probes

_PROBES = tuple(
    b"".join(bytes((0, 0x80 | channel, pitch, 0)) for pitch in range(128)) for channel in range(16)
)
_FAR_BEHIND = NOTHING + b"\xc0\x80\x80\x00" + NOTHING  # FAR ticks


def read_score(
    data: bytes, repairs: dict[str, int] | None = None, max_bytes: int = MAX_BYTES
) -> ScoreTick:
    """Parses the bytes of a MIDI file, damaged ones as far as they can be understood.

    Notes end, and have the programs, as the channels of the file play them.

    Args:
        data: Bytes of any file.
        repairs: How often each repair was made is added to it, with how many notes ended otherwise
            than by a note-off of their own, and how many got the program of another track.
        max_bytes: Largest size, before and after unpacking.

    Raises:
        RejectedSongError: ``unreadable``, ``too_large`` or ``several_songs``; the detail says what
            was seen.
    """
    file = well_formed(data, max_bytes)
    found, score = file.repairs.copy(), None
    probed, unused = _probed(file)
    if probed:
        score = _parsed(file.header, probed)
        lent = any(track.program == unused and len(track.notes) for track in score.tracks)
        if lent or not _end_notes(score, found):
            score = None
    if score is None:
        score = _parsed(file.header, notes_ended(file.header, file.bodies, found))
    if repairs is not None:
        for what, n in (+found).items():
            repairs[what] = repairs.get(what, 0) + n
    return score


# --- a well-formed file ---------------------------------------------------------------------------


FarReaching = list[tuple[int, bytes]]
"""Messages of a track that may concern other tracks: where each one ends, and its bytes."""


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
    far_reaching: list[FarReaching] | None
    repairs: Counter[str]


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
    repairs: Counter[str] = Counter()
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
        repairs["header lengths corrected"] += 1
        # A later version of the standard may have longer headers.
        if start < 14 or data[start : start + 4] != b"MTrk":
            start = max(14, data.find(b"MTrk", 8))
    quick = not smpte and format_ != 2 and is_short
    bodies, far_reaching, n_sounding = _tracks(data, start, repairs, not smpte, quick)
    repairs["track counts corrected"] += n_tracks != len(bodies)
    if format_ > 2:
        repairs["formats corrected"] += 1
        format_ = 1
    if format_ == 2 and n_sounding > 1:
        raise RejectedSongError(
            "several_songs", f"a format 2 file of {len(bodies)} sequences; split it"
        )
    if smpte:
        repairs["SMPTE times read at 120 qpm"] += 1
        ticks_per_second = FRAME_RATES[frames] * ticks
        division = round(ticks_per_second / 2)
        # Not 500,000 where half the ticks of a second are no whole number: seconds stay true.
        tempo = round(1e6 * division / ticks_per_second)
        if bodies:
            bodies[0] = b"\x00\xff\x51\x03" + tempo.to_bytes(3, "big") + bodies[0]
    header = struct.pack(">4sIHHH", b"MThd", 6, format_, len(bodies), division)
    return WellFormed(header, bodies, far_reaching, +repairs)


def _tracks(
    data: bytes, pos: int, repairs: Counter[str], keep_tempo: bool, quick: bool
) -> tuple[list[bytes], list[FarReaching] | None, int]:
    """The tracks of all chunks from ``pos`` on; if ``quick``, those in the grammar are not walked.

    Returns:
        Their contents, which need no repair any more; what :func:`scan` found in each one, None if
        any was walked; and how many of those that were walked have notes.

    Raises:
        RejectedSongError: ``unreadable``: most of it cannot be understood; ``too_large``.
    """
    bodies: list[bytes] = []
    scanned: list[FarReaching] = []
    n_sounding, lost, total, damage = 0, 0, 0, ""
    while pos < len(data):
        start = pos + 8
        if data[pos : pos + 4] != b"MTrk" or start > len(data):
            end = _chunk_end(data, pos)
            repairs["unknown chunks skipped"] += end is not None
            if end is None:
                end = _next_track(data, pos + 1)
                repairs["bytes outside chunks dropped"] += end - pos
            pos = end
            continue
        if len(bodies) == MAX_TRACKS:
            what = f"more than {MAX_TRACKS:,} tracks, which no piece has"
            raise RejectedSongError("too_large", what)
        end = start + int.from_bytes(data[pos + 4 : start], "big")
        if quick and end <= len(data) and (seen := scan(data, start, end)) is not None:
            bodies.append(data[start:end])
            scanned.append(seen)
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
        n_sounding += any(m[0] & 0xF0 == 0x90 and m[2] > 0 for _, m in walk.events)
        bodies.append(joined(walk.events, walk.tick))
        if walk.damage:
            lost, damage = lost + limit - walk.pos, damage or walk.damage
        pos = limit
        if walk.ended and (swallowed or not exact):
            repairs["track lengths corrected"] += 1
            pos = walk.pos
    if lost * 2 > total:
        raise RejectedSongError("unreadable", f"most of it is damaged: {damage}")
    return bodies, scanned if len(scanned) == len(bodies) else None, n_sounding


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


def scan(data: bytes, start: int, end: int) -> FarReaching | None:
    """A whole track's changes of program, All Notes Off and All Sound Off.

    Returns:
        Where each one ends, counted from ``start``, and its message; None for a track that the
        grammar does not accept.
    """
    found, pos = [], start
    while True:
        events = EVENTS.match(data, pos, end)
        pos = events.end() if events else pos
        if message := FAR_REACHING.match(data, pos, end):
            pos = message.end()
            found.append((pos - start, message[1]))
        elif END_OF_TRACK.fullmatch(data, pos, end):
            return found
        elif (after := after_long(data, pos, end)) is not None:
            pos = after
        else:
            return None


# --- as its channels play it ----------------------------------------------------------------------


def _probed(file: WellFormed) -> tuple[list[bytes], int | None]:
    """The tracks with probes, and the unused program; no track if the file must be walked.

    It looks for bytes that may be the status of a note, and takes a file with one in a critical
    place for one that must be walked, whatever that byte is.
    """
    must_walk: tuple[list[bytes], int | None] = [], None
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
            elif channel != DRUM_CHANNEL:
                # symusic separates the notes of two programs: one might end where the other begins.
                if before and own.get(channel, 0) != message[1]:
                    return must_walk
                if before and channel not in own:
                    late.add(channel)
                own[channel] = message[1]
        start = b""
        for channel in firsts.keys() - (own.keys() - late) - {DRUM_CHANNEL}:
            if setting[channel] - {i}:
                if unused is None:
                    return must_walk
                start += bytes((0, 0xC0 | channel, unused))
        probes = b"".join([_PROBES[channel] for channel in firsts])
        bodies.append(start + body[: -len(END)] + _FAR_BEHIND + probes + b"\x00" + END)
    return bodies, unused


def _end_notes(score: ScoreTick, repairs: Counter[str]) -> bool:
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
    repairs[STRUCK_AGAIN] += int(((next_begin < next_end) & (ends > begins)).sum())
    ends = np.where(ends > begins, np.minimum(next_begin, next_end), ends)
    duration[np.argsort(notes, kind="stable")] = ends - begins
    stop = 0
    for track, length in zip(score.tracks, lengths, strict=True):
        begin, stop = stop, stop + length
        its = slice(begin, stop)
        pitch, velocity = columns["pitch"][its], columns["velocity"][its]
        track.notes = NoteTickList.from_numpy(onset[its], duration[its], pitch, velocity)
    return True


def _parsed(header: bytes, bodies: list[bytes]) -> ScoreTick:
    """What symusic reads in a file of a header chunk and the contents of track chunks."""
    parts = [header]
    for body in bodies:
        parts += [b"MTrk", len(body).to_bytes(4, "big"), body]
    try:
        # No value is over 127 any more; sanitising is a second safeguard against reading outside
        # the parser's memory.
        return ScoreTick.from_midi(b"".join(parts), sanitize_data=True)
    except MemoryError as error:
        raise RejectedSongError("too_large", "symusic needs more memory than there is") from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise RejectedSongError("unreadable", f"symusic: {error}".splitlines()[0]) from error


# --- packing and wrapping -------------------------------------------------------------------------

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


def _unwrapped(data: bytes, max_bytes: int, repairs: Counter[str]) -> bytes:
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
        repairs[f"{name} unpacked"] += 1
        repairs[f"{name} data cut off"] += not unpacker.eof
    what = _foreign(data)
    at = -1 if what else data.find(b"MThd\x00\x00\x00", 0, MAX_LEADING + 8)
    if at < 0:
        what = what or f"no MIDI header; it starts with {data[:12]!r}"
        raise RejectedSongError("unreadable", what)
    if data.startswith(b"RIFF") and data[at - 8 : at - 4] == b"data":
        repairs["RIFF wrappers removed"] += 1
        # What follows the data chunk (names, copyright) belongs to the wrapper.
        size = int.from_bytes(data[at - 4 : at], "little")
        return data[at : at + size] if size > 14 else data[at:]
    repairs["bytes before the header dropped"] += at
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
