"""MIDI to sound, in process, with a synthesizer that plays a soundfont; and files of it."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import midirenderer
import numpy as np
from numpy.typing import NDArray
from symusic.core import ControlChangeTick, NoteTickList, ScoreTick, TempoTick, TrackTick

from midigenre.arrays import Longs
from midigenre.errors import UserError
from midigenre.files import write_bytes
from midigenre.midi.song import DEFAULT_TEMPO, note_columns, seconds_at

Samples = NDArray[np.float32]

AUDIO_FORMATS = {"wav": ("WAV", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III")}
"""Format and subtype of libsndfile for each suffix."""

SOUNDFONT = "TimGM6mb.sf2"  # General MIDI, six megabytes, in the package pretty_midi
SAMPLE_RATE = 48_000  # frames per second, the synthesizer's
FULL_SCALE = 32768
SILENT_DB = -70.0  # only ten steps of the synthesizer's 16 bits lie below
PEAK_DB = -1.0  # of a rendered piece, so that MP3 encoding does not clip
TAIL_SECONDS = 5.0  # how long the last notes may ring on
TAIL_DB = -60.0  # of the peak, where the sound ends: the usual end of a decay
FADE_SECONDS = 0.03
MAX_SECONDS = 1800.0  # longer pieces are not rendered: half an hour takes 700 MB
MELODIC_CHANNELS = 15  # MIDI has 16, one of them for drums
UNUSED_CONTROL = 3  # undefined in MIDI 1.0; sent only so that the synthesizer keeps playing

_Voice = tuple[TrackTick, Longs]
"""A track, and its notes as the synthesizer is given them: onset, duration, pitch, velocity."""


@dataclass(frozen=True)
class Audio:
    """A rendered piece.

    Attributes:
        samples: Stereo, float32 of shape (frames, 2), full scale is 1.
        rate: Frames per second.
        raw_peak_db: Loudest sample before normalising, dB of full scale; minus infinity for none.
    """

    samples: Samples
    rate: int
    raw_peak_db: float

    @property
    def silent(self) -> bool:
        """Whether nothing can be heard (:data:`SILENT_DB`)."""
        return self.raw_peak_db < SILENT_DB


def decibels(amplitude: float | NDArray[np.floating]) -> NDArray[np.float64]:
    """Amplitudes in dB of full scale; 0 is minus infinity."""
    with np.errstate(divide="ignore"):
        return np.asarray(20 * np.log10(np.abs(np.asarray(amplitude, np.float64))))


def default_soundfont() -> Path:
    """The soundfont that comes with pretty_midi.

    Raises:
        UserError: The installed pretty_midi has none.
    """
    spec = find_spec("pretty_midi")  # importing it would take half a second
    path = None if spec is None or spec.origin is None else Path(spec.origin).with_name(SOUNDFONT)
    if path is None or not path.is_file():
        raise UserError(
            f"the installed pretty_midi has no {SOUNDFONT}: set soundfont=FILE.sf2, or audio=null"
        )
    return path


def check_audio(audio: str | None, soundfont: str | None) -> None:
    """Rejects early what could not be rendered and written later.

    Args:
        audio: ``wav``, ``mp3`` or None for no audio.
        soundfont: An SF2 file; None for :func:`default_soundfont`.

    Raises:
        UserError: There is no such format, or the soundfont cannot be played.
    """
    if audio is not None and audio not in AUDIO_FORMATS:
        raise UserError(f"audio={audio}: choose {', '.join(AUDIO_FORMATS)} or null for no audio")
    if audio is not None:
        check_soundfont(soundfont)


def check_soundfont(soundfont: Path | str | None) -> None:
    """Plays a note with a soundfont.

    Raises:
        UserError: There is no such file, or it is not a soundfont.
    """
    score = ScoreTick(480)
    score.tracks.append(TrackTick("", 0, False))
    score.tracks[0].notes = NoteTickList.from_numpy(*np.array([[0], [120], [60], [100]]))
    render(score, soundfont)


def length_seconds(score: ScoreTick) -> float:
    """When the last note ends; 0 without notes."""
    return float(_seconds(score, np.array([_end(score)]))[0])


def render(score: ScoreTick, soundfont: Path | str | None = None) -> Audio:
    """Plays a score.

    Every instrument sounds, however many there are: those beyond the 16 channels are rendered
    separately and mixed. A pitch that sounds already is struck again. The audio ends when the last
    notes have rung out, at most :data:`TAIL_SECONDS` after them, and is as loud as :data:`PEAK_DB`
    allows.

    Args:
        score: Times in ticks.
        soundfont: An SF2 file; None for :func:`default_soundfont`.

    Returns:
        The audio; without notes it has no frames. A silent one (:attr:`Audio.silent`: the
        soundfont may lack a pitch, TimGM6mb's piano ends at 108) is not made louder.

    Raises:
        UserError: The soundfont cannot be used, or the piece is longer than :data:`MAX_SECONDS`.
    """
    if (length := length_seconds(score)) > MAX_SECONDS:
        raise UserError(
            f"a piece of {length:,.0f} s is too long for audio, which has {MAX_SECONDS:,.0f} s at "
            "most; set audio=null"
        )
    path = default_soundfont() if soundfont is None else Path(soundfont).expanduser()
    voices = [(track, _restruck(track)) for track in score.tracks if len(track.notes)]
    drums = [voice for voice in voices if voice[0].is_drum]
    others = [voice for voice in voices if not voice[0].is_drum]
    starts = range(0, max(len(others), 1), MELODIC_CHANNELS)
    groups = [others[at : at + MELODIC_CHANNELS] + (drums if at == 0 else []) for at in starts]
    mix = _mixed([_play(score, group, path) for group in groups if group])
    peak = float(np.abs(mix).max(initial=0))
    raw_peak_db = float(decibels(peak))
    stop = round(length * SAMPLE_RATE)
    if raw_peak_db < SILENT_DB:
        return Audio(mix[:stop], SAMPLE_RATE, raw_peak_db)
    loud = np.flatnonzero(np.abs(mix).max(1) > peak * 10 ** (TAIL_DB / 20))
    fade = round(FADE_SECONDS * SAMPLE_RATE)
    mix = mix[: max(stop, int(loud[-1]) + fade)] * np.float32(10 ** (PEAK_DB / 20) / peak)
    fade = min(len(mix), fade)
    mix[len(mix) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)[:, None]
    return Audio(mix, SAMPLE_RATE, raw_peak_db)


def unheard_notes(score: ScoreTick, audio: Audio) -> int:
    """Number of notes that begin in silence and leave it silent in what :func:`render` made.

    Such a note lies outside its instrument's range in the soundfont, or is very soft. One that
    begins while others sound is never counted.
    """
    onsets = note_columns(score.tracks)[0]["time"]
    if audio.silent or not len(onsets):
        return len(onsets)
    # Half a second, since strings and pads rise slowly.
    power = np.r_[0.0, np.cumsum((audio.samples.astype(np.float64) ** 2).mean(1))]
    first = np.round(_seconds(score, onsets) * audio.rate).astype(np.int64)
    last = np.minimum(first + round(0.5 * audio.rate), len(audio.samples))
    first = np.minimum(first, len(audio.samples))
    mean = (power[last] - power[first]) / np.maximum(last - first, 1)
    return int((decibels(np.sqrt(np.maximum(mean, 0))) < PEAK_DB + TAIL_DB).sum())


def write_audio(path: Path, samples: Samples, rate: int) -> None:
    """Writes a sound file; it appears whole or not at all.

    Args:
        path: The file; its suffix, ``.wav`` (16 bits) or ``.mp3``, says what it becomes.
        samples: Shape (frames, 2), at most 1 in size.
        rate: Frames per second.
    """
    import soundfile  # takes long to load, and only writing audio needs it

    kind, subtype = AUDIO_FORMATS[path.suffix.removeprefix(".")]
    # Not to the disk itself: where that is full, libsndfile says only "system error".
    sound = io.BytesIO()
    soundfile.write(sound, samples, rate, format=kind, subtype=subtype)
    write_bytes(path, sound.getvalue())


def _play(score: ScoreTick, voices: list[_Voice], soundfont: Path) -> Samples:
    """The sound of the voices, with the tail."""
    samples = _synthesized(_midi(score, voices), soundfont)
    clipped = np.abs(samples).max() >= (FULL_SCALE - 1) / FULL_SCALE
    if not clipped or all(len(notes_N4) < 2 for _, notes_N4 in voices):
        return samples
    # The synthesizer clips what is too loud: then every other note at a time.
    halves = [[(track, notes_N4[which::2]) for track, notes_N4 in voices] for which in (0, 1)]
    return _mixed([_play(score, half, soundfont) for half in halves])


def _mixed(played: list[Samples]) -> Samples:
    """The sum; lengths may differ by a rounded frame."""
    mix = np.zeros((max(map(len, played), default=0), 2), np.float32)
    for samples in played:
        mix[: len(samples)] += samples
    return mix


def _synthesized(midi: bytes, soundfont: Path) -> Samples:
    font = _bytes(soundfont)
    try:
        data = midirenderer.render_wave_from(font, midi)
    except BaseException as error:
        # A panic of the Rust code raises a class that is not an Exception and not exported.
        if not isinstance(error, RuntimeError) and type(error).__name__ != "PanicException":
            raise
        raise _no_soundfont(soundfont, str(error)) from error
    with wave.open(io.BytesIO(data)) as file:
        if (rate := file.getframerate()) != SAMPLE_RATE or file.getnchannels() != 2:
            raise RuntimeError(f"midirenderer plays {rate} frames a second; see SAMPLE_RATE")
        frames = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return frames.reshape(-1, 2).astype(np.float32) / np.float32(FULL_SCALE)


@lru_cache(maxsize=2)
def _bytes(soundfont: Path) -> bytes:
    try:
        return soundfont.read_bytes()
    except OSError as error:
        raise _no_soundfont(soundfont, (error.strerror or str(error)).lower()) from error


def _no_soundfont(path: Path, why: str) -> UserError:
    return UserError(
        f"soundfont={path}: {why}; give an SF2 file, or null for {SOUNDFONT} of pretty_midi"
    )


def _midi(score: ScoreTick, voices: list[_Voice]) -> bytes:
    """A file of these voices that lasts for the tail after the last note of the score."""
    end = _end(score)
    made = ScoreTick(score.ticks_per_quarter)
    for tempo in score.tempos:
        if tempo.time < end:
            made.tempos.append(tempo)
    # One tempo for the tail, so that its length in ticks is known.
    made.tempos.append(TempoTick(end, DEFAULT_TEMPO))
    tail = round(TAIL_SECONDS * DEFAULT_TEMPO / 60 * score.ticks_per_quarter)
    for of, notes_N4 in voices:
        track = TrackTick("", of.program, of.is_drum)
        track.notes = NoteTickList.from_numpy(
            *notes_N4[:, :2].T.astype(np.int32), *notes_N4[:, 2:].T.astype(np.int8)
        )
        # Channel events after the music would only make it longer.
        for name in ("controls", "pitch_bends", "pedals"):
            for event in getattr(of, name):
                if event.time < end:
                    getattr(track, name).append(event)
        made.tracks.append(track)
    made.tracks[0].controls.append(ControlChangeTick(end + tail, UNUSED_CONTROL, 0))
    return bytes(made.dumps_midi())


def _restruck(track: TrackTick) -> Longs:
    """Notes of a track as (onset, duration, pitch, velocity), int64 of shape (n, 4), in order.

    A note ends where its pitch begins again: MIDI's note-off does not say which of the two it ends,
    so that the second one would break off where the first one was to end.
    """
    notes = track.notes.numpy()
    columns = [np.asarray(notes[k], np.int64) for k in ("time", "duration", "pitch", "velocity")]
    notes_N4 = np.stack(columns, 1)[np.lexsort((columns[1], columns[0], columns[2]))]
    gap, same_pitch = np.diff(notes_N4[:, 0]), np.diff(notes_N4[:, 2]) == 0
    length = notes_N4[:, 1]
    length[:-1] = np.where(same_pitch & (gap > 0), np.minimum(length[:-1], gap), length[:-1])
    notes_N4[:, 1] = np.maximum(length, 1)
    return notes_N4[np.lexsort((notes_N4[:, 2], notes_N4[:, 0]))]


def _end(score: ScoreTick) -> int:
    """Tick at which the last note ends."""
    notes, _ = note_columns(score.tracks)
    return int((notes["time"] + np.maximum(notes["duration"], 1)).max(initial=0))


def _seconds(score: ScoreTick, ticks: NDArray[np.integer]) -> NDArray[np.float64]:
    """Time of each tick in seconds."""
    tempi = sorted((int(tempo.time), float(tempo.qpm)) for tempo in score.tempos)
    if not tempi or tempi[0][0] > 0:
        tempi = [(0, DEFAULT_TEMPO), *tempi]
    at, qpm = (np.array(column) for column in zip(*tempi, strict=True))
    return seconds_at(ticks, at, qpm, score.ticks_per_quarter)
