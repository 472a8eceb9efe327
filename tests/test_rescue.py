"""Damaged files: each kind is rescued with the right notes, or rejected with the right reason."""

from __future__ import annotations

import gzip
import io
import random
import zlib
from collections import Counter
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from symusic.core import ScoreTick

from midi import make_score, melody, midi_file, scores, smf, to_bytes
from midigenre.build import make_tokenizer
from midigenre.data.sandbox import read_song
from midigenre.errors import RejectedSongError
from midigenre.midi.clean import REJECTIONS
from midigenre.midi.read import MAX_TRACKS, WellFormed, read_score, scan, well_formed
from midigenre.midi.repair import TrackRepair

END = b"\x00\xff\x2f\x00"
SCALE = b"".join(bytes((0, 0x90, 60 + i, 80 + i, 96, 0x80, 60 + i, 64)) for i in range(8))
NOTES = [(96 * i, 96, 60 + i, 80 + i) for i in range(8)]
GOOD = midi_file(SCALE)
some_examples = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def riff(data: bytes) -> bytes:
    chunk = b"data" + len(data).to_bytes(4, "little") + data
    names = b"LIST\x04\x00\x00\x00INFO"
    return b"RIFF" + (4 + len(chunk + names)).to_bytes(4, "little") + b"RMID" + chunk + names


def read(data: bytes) -> tuple[list[tuple[int, int, int, int]], dict[str, int]]:
    repairs: dict[str, int] = {}
    score = read_score(data, repairs)
    notes = [(n.time, n.duration, n.pitch, n.velocity) for t in score.tracks for n in t.notes]
    return sorted(notes), repairs


def whole(file: WellFormed) -> bytes:
    chunks = [b"MTrk" + len(body).to_bytes(4, "big") + body for body in file.bodies]
    return file.header + b"".join(chunks)


def events(data: bytes, at: int, new: bytes, instead_of: int = 0) -> bytes:
    """The one-track file with other bytes at a place of its events, and a true length."""
    body = data[22:]
    return smf(body[:at] + new + body[at + instead_of :], format_=0)


TEXT = b"\x00\xff\x03\x02Hi"
RESCUED = {
    "gzip": (gzip.compress(GOOD), {"gzip unpacked": 1}),
    "zlib": (zlib.compress(GOOD), {"zlib unpacked": 1}),
    "gzip twice": (gzip.compress(gzip.compress(GOOD)), {"gzip unpacked": 2}),
    "riff": (riff(GOOD), {"RIFF wrappers removed": 1}),
    "riff of false size": (
        riff(GOOD)[:16] + bytes(4) + GOOD, {"RIFF wrappers removed": 1},
    ),
    "riff in gzip": (gzip.compress(riff(GOOD)), {"gzip unpacked": 1, "RIFF wrappers removed": 1}),
    "macbinary": (
        b"\x00\x08song.mid" + bytes(118) + GOOD, {"bytes before the header dropped": 128},
    ),
    "http header": (b"HTTP/1.0 200 OK\r\n\r\n" + GOOD, {"bytes before the header dropped": 19}),
    "trailing bytes": (GOOD + b"\x00*", {"bytes outside chunks dropped": 2}),
    "half a chunk behind": (GOOD + b"MTrk\x00", {"bytes outside chunks dropped": 5}),
    "alien chunk": (
        GOOD[:14] + b"Junk\x00\x00\x00\x03abc" + GOOD[14:], {"unknown chunks skipped": 1},
    ),
    "bytes between tracks": (
        smf(SCALE + END, n_tracks=2) + b"\x00\x00\x00" + smf(TEXT + END)[14:],
        {"bytes outside chunks dropped": 3},
    ),
    "length too long": (midi_file(SCALE, length=99_999), {"track lengths corrected": 1}),
    "length too short": (midi_file(SCALE, length=9), {"track lengths corrected": 1}),
    "length 0": (midi_file(SCALE, length=0), {"track lengths corrected": 1}),
    "length swallows the next track": (
        midi_file(SCALE, length=68 + 8 + 10, format_=1).replace(b"\0\x01\0\x01", b"\0\x01\0\x02")
        + smf(TEXT + END)[14:],
        {"track lengths corrected": 1},
    ),
    "no end of track": (smf(SCALE), {"ends of tracks added": 1}),
    "cut in the end of track": (GOOD[:-1], {"tracks cut at their last whole event": 1}),
    "fewer tracks announced": (
        smf(TEXT + END, SCALE + END, n_tracks=1), {"track counts corrected": 1},
    ),
    "more tracks announced": (smf(SCALE + END, n_tracks=900), {"track counts corrected": 1}),
    "long header": (
        b"MThd\x00\x00\x00\x08" + GOOD[8:14] + b"ab" + GOOD[14:], {"header lengths corrected": 1},
    ),
    "false header length": (GOOD[:4] + b"\xff" * 4 + GOOD[8:], {"header lengths corrected": 1}),
    "format 77": (midi_file(SCALE, format_=77), {"formats corrected": 1}),
    "format 2, one song": (smf(TEXT + END, SCALE + END, format_=2), {}),
    "status F4": (events(GOOD, 0, b"\x00\xf4"), {"system messages left out": 1}),
    "status F2": (events(GOOD, 0, b"\x00\xf2\x01\x02"), {"system messages left out": 1}),
    "status F8 in running status": (
        midi_file(SCALE + b"\x00\xb0\x07\x01\x00\xf8\x00\x07\x02"), {"system messages left out": 1},
    ),
    "status F1 in running status": (
        midi_file(SCALE + b"\x00\xb0\x07\x01\x00\xf1\x05\x00\x07\x02"),
        {"system messages left out": 1},
    ),
    "status F1 before F3": (
        events(GOOD, 0, b"\x00\xf1\x7f\x00\xf3\x7f"), {"system messages left out": 2},
    ),
    "every system message": (
        events(
            GOOD, 0, b"\x00\xf1\x7f\x00\xf2\x7f\x7f\x00\xf3\x7f"
            + b"".join(bytes((0, status)) for status in range(0xF4, 0xFF) if status != 0xF7),
        ),
        {"system messages left out": 13},
    ),
    "status F4 before a long sysex": (
        events(GOOD, 0, b"\x00\xf4\x00\xf0\x81\x48" + b"\x01" * 199 + b"\xf7"),
        {"system messages left out": 1},
    ),
    "status F3 before a long text": (
        events(GOOD, 0, b"\x00\xf3\x01\x00\xff\x01\x82\x00" + b"x" * 256),
        {"system messages left out": 1},
    ),
    "status F4 before a damaged event": (
        events(GOOD, 0, b"\x00\xf4\x00\xb0\x40\xa8"),
        {"system messages left out": 1, "values over 127 clamped": 1},
    ),
    "status F5 before a program": (
        events(GOOD, 0, b"\x00\xf5\x00\xc0\x05"), {"system messages left out": 1},
    ),
    "status F4 with two bytes": (
        events(GOOD, 0, b"\x00\xf4\x01\x02"), {"system messages left out": 1},
    ),
    "status F5 with a byte": (events(GOOD, 0, b"\x00\xf5\x7f"), {"system messages left out": 1}),
    "status F4 before the end": (midi_file(SCALE + b"\x00\xf4"), {"system messages left out": 1}),
    "early end of track": (events(GOOD, 16, END), {"early ends of tracks passed over": 1}),
    "early end of track with a damaged event behind": (
        events(GOOD, 16, END + b"\x00\xb0\x40\xa8"),
        {"early ends of tracks passed over": 1, "values over 127 clamped": 1},
    ),
    "early end of track in a file that is cut off": (
        smf(SCALE[:16] + END + SCALE[16:] + b"\x00\x90"),
        {"early ends of tracks passed over": 1, "tracks cut at their last whole event": 1},
    ),
    "padding behind the end": (
        smf(SCALE + END + bytes(7)), {"bytes behind the end of a track left out": 7},
    ),
    "text behind the end": (
        smf(SCALE + END + b"\x00\x90\x3c\x40Thank you!", TEXT + END),
        {"bytes behind the end of a track left out": 14},
    ),
    "escaped sysex": (events(GOOD, 0, b"\x00\xf7\x03\x90\x3c\x40"), {}),
    "program 255": (events(GOOD, 0, b"\x00\xc0\xff"), {"programs over 127 left out": 1}),
    "control value 168": (events(GOOD, 0, b"\x00\xb0\x40\xa8"), {"values over 127 clamped": 1}),
    "control 200": (events(GOOD, 0, b"\x00\xb0\xc8\x00"), {"controls over 127 left out": 1}),
    "pitch 200": (
        events(GOOD, 0, b"\x00\x9f\xc8\x40\x00\x8f\xc8\x40"), {"pitches over 127 left out": 2},
    ),
    "tempo of no bytes": (events(GOOD, 0, b"\x00\xff\x51\x00"), {"broken meta events left out": 1}),
    "meter of no bytes": (events(GOOD, 0, b"\x00\xff\x58\x00"), {"broken meta events left out": 1}),
    "meter 0/4": (
        events(GOOD, 0, b"\x00\xff\x58\x04\x00\x02\x18\x08"), {"broken meta events left out": 1},
    ),
    "delta of five bytes": (events(GOOD, 0, b"\x80\x80\x80\x80\x00", 1), {}),
    "delta of four bytes": (events(GOOD, 0, b"\x80\x80\x80\x00", 1), {}),
    "long text": (events(GOOD, 0, b"\x00\xff\x01\x82\x00" + b"x" * 256), {}),
    "long sysex": (events(GOOD, 0, b"\x00\xf0\x81\x00" + b"\x7f" * 127 + b"\xf7"), {}),
    "good": (GOOD, {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", RESCUED)
def test_the_rescued_file_has_the_notes_that_it_always_had(kind):
    data, repairs = RESCUED[kind]
    assert read(data) == (NOTES, repairs)


SYSTEM = [
    b"\xf1\x7f",
    b"\xf2\x7f\x7f",
    b"\xf3\x01",
    *(bytes([n]) for n in (*range(0xF4, 0xF7), 0xF8, 0xFE)),
]
FOLLOWING = [
    *SYSTEM,
    b"\xb0\x07\x01", b"\xc0\x05", b"\xb0\x7b\x00", b"\xff\x03\x02Hi", b"\xf7\x03\x90\x3c\x40",
    b"\xf0\x81\x48" + b"\x01" * 199 + b"\xf7", b"\xff\x01\x82\x00" + b"x" * 256,
    b"\xf0\x05\x90\x3c\x40\x00\xf7", b"\xb0\x40\xa8", b"\xc0\xff", b"\xff\x58\x00",
]  # fmt: skip


@pytest.mark.parametrize("message", SYSTEM, ids=lambda m: m[:1].hex())
def test_whatever_follows_a_system_message_is_read_in_time(message):
    for following in FOLLOWING:
        for third in (b"", b"\x00\xf5", b"\x00\xf1\x05"):
            put_in = b"\x00" + message + b"\x00" + following + third
            notes, repairs = read(events(GOOD, 0, put_in))
            assert notes == NOTES, following
            expected = 1 + (following in SYSTEM) + bool(third)
            assert repairs["system messages left out"] == expected, following


def test_a_good_file_stays_as_it_is():
    for data in (GOOD, RESCUED["long text"][0], to_bytes(make_score(melody(8)))):
        file = well_formed(data)
        assert whole(file) == data
        assert file.far_reaching is not None, "no track needed a walk"


REFUSED = {
    "nothing": (b"", "unreadable", "0 bytes"),
    "zeros": (bytes(5000), "unreadable", "all of them zero"),
    "text": (b"error with file 17", "unreadable", "text, not a MIDI file"),
    "html": (b"\n<!DOCTYPE html><html>404</html>", "unreadable", "an HTML page"),
    "wave": (b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40), "unreadable", "a WAVE recording"),
    "asf": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(40), "unreadable", "an ASF recording"),
    "zip": (b"PK\x03\x04" + bytes(30) + GOOD, "unreadable", "a ZIP archive"),
    "no header": (GOOD[14:], "unreadable", "a track without its header"),
    "binary": (bytes(range(200, 256)), "unreadable", "no MIDI header"),
    "damaged gzip": (b"\x1f\x8b\x08" + b"\xff" * 30, "unreadable", "damaged gzip data"),
    "gzip of text": (gzip.compress(b"hello"), "unreadable", "text"),
    "no ticks": (midi_file(SCALE, division=0), "unreadable", "0 ticks"),
    "32 frames": (midi_file(SCALE, division=0xE04D), "unreadable", "32 frames a second"),
    "no ticks a frame": (midi_file(SCALE, division=0xE700), "unreadable", "of 0 ticks"),
    "endless": (midi_file(b"\xff\xff\xff\x7f\x90\x3c\x40" * 40), "unreadable", "268,435,455 ticks"),
    "four songs": (smf(*[SCALE + END] * 4, format_=2), "several_songs", "4 sequences"),
    "tracks": (smf(*[END] * (MAX_TRACKS + 1), n_tracks=1), "too_large", "4,096 tracks"),
    "programs": (midi_file(b"\x00\xc0\x01" * 70_000), "too_large", "changes of program"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_the_rest_is_refused_with_what_it_is(kind):
    data, reason, says = REFUSED[kind]
    with pytest.raises(RejectedSongError) as caught:
        read_score(data)
    assert caught.value.reason == reason
    assert reason in REJECTIONS
    assert says in caught.value.detail


def test_wherever_a_file_is_cut_its_whole_events_are_kept():
    data = midi_file(SCALE)
    for length in range(23, 22 + len(SCALE)):
        whole, rest = divmod(length - 22, 4)  # events of four bytes
        notes, repairs = read(data[:length])
        assert len(notes) == (whole + 1) // 2
        assert repairs.pop("notes ended with their track", 0) == whole % 2
        what = "tracks cut at their last whole event" if rest else "ends of tracks added"
        assert repairs == {what: 1}


def test_a_note_that_sounds_at_the_cut_ends_there():
    held = b"\x00\x90\x30\x40" + SCALE
    notes, repairs = read(midi_file(held)[:-3])
    assert sorted(notes) == sorted([(0, 8 * 96, 48, 64), *NOTES])
    assert repairs["notes ended with their track"] == 1


def test_nothing_is_made_of_what_follows_a_byte_that_cannot_be_understood():
    broken = SCALE + b"\x00\xff\x03\xff\xff\xff\x7f" + SCALE[:16]
    notes, repairs = read(smf(broken + END, TEXT + END))
    assert notes == NOTES
    assert repairs == {"tracks cut at damage": 1}


def test_velocities_over_127_become_127():
    notes, repairs = read(events(GOOD, 3, b"\xf2", 1))
    assert notes == [(0, 96, 60, 127), *NOTES[1:]]
    assert repairs == {"velocities over 127 clamped": 1}


@pytest.mark.parametrize(
    ("frames", "ticks", "per_second"),
    [(25, 40, 1000), (24, 10, 240), (30, 80, 2400), (25, 1, 25), (29, 100, 2997.003)],
)
def test_smpte_time_keeps_its_seconds(frames, ticks, per_second):
    tempo = b"\x00\xff\x51\x03\x01\x00\x00"  # has no effect in SMPTE time
    data = midi_file(tempo + SCALE, division=(256 - frames) << 8 | ticks)
    repairs: dict[str, int] = {}
    score = read_score(data, repairs)
    assert repairs == {"SMPTE times read at 120 qpm": 1}
    assert abs(score.tempos[0].qpm - 120) < 6
    assert len(score.tempos) == 1
    last = score.to("second").tracks[0].notes[-1]
    assert last.time == pytest.approx(7 * 96 / per_second, rel=1e-4)


def test_a_bomb_is_not_unpacked():
    packed = io.BytesIO()
    with gzip.open(packed, "wb") as file:
        for _ in range(64):
            file.write(bytes(2**20))
    with pytest.raises(RejectedSongError, match=r"too_large: gzip data of more than 1,000,000"):
        read_score(packed.getvalue(), max_bytes=1_000_000)
    with pytest.raises(RejectedSongError, match="too_large: 101 bytes, at most 100"):
        well_formed(bytes(101), max_bytes=100)
    layers = GOOD
    for _ in range(40):
        layers = gzip.compress(layers)
    with pytest.raises(RejectedSongError, match="unreadable"):
        well_formed(layers)


def test_half_a_gzip_file_gives_half_the_song():
    data = midi_file(
        b"".join(bytes((i % 96, 0x90, i * 7 % 128, 1 + i * 5 % 127)) for i in range(999))
    )
    notes, repairs = read(gzip.compress(data)[:-400])
    assert 100 < len(notes) < 999
    assert repairs["gzip data cut off"] == 1


def test_repairs_reach_the_song():
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base=None):
        tokenizer = make_tokenizer(compose("prepare", ["tokenizer=remi"]))
    song = read_song(gzip.compress(midi_file(b"\x00\xc0\xff" + SCALE)), tokenizer)[0]
    assert song.repairs["gzip unpacked"] == 1
    assert song.repairs["programs over 127 left out"] == 1


# --- any bytes -----------------------------------------------------------------------------------

SPECIAL = (
    b"\xff", b"\x00", b"\x80", b"\xf0", b"\xf7", END, b"\xff\x51\x00", b"\xff\x58\x00",
    b"\xff\x59\x00", b"MTrk", b"MTrk\xff\xff\xff\xff", b"MThd", b"\xff\xff\xff\xff\x7f",
    b"\x9f\xff\xff", b"\xc0\xff", b"\xf4", b"\xff\x05\xff\xff\xff\x7f", b"\xff\x03\x84\x00",
)  # fmt: skip


def damaged(data: bytes, seed: int) -> bytes:
    """Bytes changed, left out, put in and cut off, as the seed has it."""
    draw, out = random.Random(seed), bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3, 8, 30))):
        at = draw.randrange(len(out) + 1)
        match draw.randrange(5):
            case 0:
                out[at : at + 1] = draw.randbytes(1)
            case 1:
                del out[at : at + draw.choice((1, 1, 2, 7, 40))]
            case 2:
                out[at:at] = draw.choice(SPECIAL)
            case 3:
                out[at:at] = out[draw.randrange(len(out) + 1) :][: draw.randrange(60)]
            case 4 if draw.random() < 0.2:
                del out[at:]
    return bytes(out)


def outcome(data: bytes) -> object:
    """All that a file gives, or why it is refused; any other error is a defect."""
    repairs: dict[str, int] = {}
    refused, score = None, ScoreTick(480)
    try:
        score = read_score(data, repairs)
    except RejectedSongError as error:
        refused = error
    if refused is not None:
        assert refused.reason in {"unreadable", "too_large", "several_songs"}
        assert refused.detail
        assert "symusic" not in refused.detail, "it was not well-formed"
        return str(refused)
    for track in score.tracks:
        for n in track.notes:
            assert 0 <= n.pitch < 128
            assert 0 < n.velocity < 128
            assert min(n.time, n.duration) >= 0
    return repr([(t.program, t.name, list(t.notes), list(t.controls)) for t in score.tracks]), repr(
        (list(score.tempos), list(score.time_signatures), list(score.key_signatures), repairs)
    )


@some_examples
@given(scores(max_notes=12), st.integers(0, 2**32))
def test_a_damaged_file_gives_a_score_or_a_reason_the_same_one_each_time(score, seed):
    data = damaged(to_bytes(score), seed)
    first = outcome(data)
    other_memory = [bytes([255 - i]) * (i * 37) for i in range(100)]
    del other_memory[::2]
    assert outcome(bytes(bytearray(data))) == first


@some_examples
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda b: midi_file(b))))
def test_any_bytes_give_a_score_or_a_reason(data):
    assert outcome(data) == outcome(bytes(bytearray(data)))


@some_examples
@given(scores(max_notes=12), st.integers(0, 2**32))
def test_what_is_well_formed_needs_no_repair(score, seed):
    """The quick check, the walk and symusic agree on what a file says."""
    try:
        data = whole(well_formed(damaged(to_bytes(score), seed)))
    except RejectedSongError:
        return
    again = well_formed(data)
    assert whole(again) == data
    assert again.repairs == {}
    start = 14
    while start < len(data):
        body = start + 8
        end = body + int.from_bytes(data[start + 4 : body], "big")
        assert data[start : start + 4] == b"MTrk"
        found: Counter[str] = Counter()
        walk = TrackRepair(data, body, end, found, keep_tempo=True)
        walk.run()
        assert (walk.pos, walk.ended, +found) == (end, True, {})
        assert scan(data, body, end) is not None or b"\xff" in data[body:end]
        start = end
    assert start == len(data)


@some_examples
@given(scores())
def test_a_file_that_symusic_wrote_is_well_formed(score):
    data = to_bytes(score)
    file = well_formed(data)
    assert file.repairs == {}
    if file.far_reaching is not None:
        assert whole(file) == data
    else:  # a delta of 2**21 ticks or more takes a walk, which writes every status
        ours, theirs = (ScoreTick.from_midi(d) for d in (whole(file), data))
        assert [list(t.notes) for t in ours.tracks] == [list(t.notes) for t in theirs.tracks]
        assert list(ours.tempos) == list(theirs.tempos)
        assert list(ours.time_signatures) == list(theirs.time_signatures)
