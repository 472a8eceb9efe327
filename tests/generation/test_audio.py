"""MIDI to sound: measured, since no test can listen."""

import io
import re

import midirenderer
import numpy as np
import pytest
import soundfile
from symusic import Score
from symusic.core import ControlChangeTick

from midi import DRUMS, loudness_db, make_score, melody, note
from midigenre.errors import UserError
from midigenre.generation.audio import (
    FADE_SECONDS,
    PEAK_DB,
    SAMPLE_RATE,
    TAIL_SECONDS,
    Audio,
    check_audio,
    check_soundfont,
    decibels,
    default_soundfont,
    length_seconds,
    render,
    unheard_notes,
    write_audio,
)

FLUTE, ORGAN, LEAD, GLOCKENSPIEL = 73, 19, 81, 9


def cents(audio, pitch, start=0.2, length=0.6):
    """How far the strongest partial within a semitone of a pitch lies from it."""
    first = round(start * audio.rate)
    x = audio.samples[first : first + round(length * audio.rate)].mean(1)
    n = 16 * len(x)  # zeros between the bins of the FFT, 0.1 Hz apart
    power = np.abs(np.fft.rfft(x * np.hanning(len(x)), n))
    hz = np.fft.rfftfreq(n, 1 / audio.rate)
    wanted = 440 * 2 ** ((pitch - 69) / 12)
    near = (hz > wanted / 1.06) & (hz < wanted * 1.06)
    # The fundamental is there: not only noise in an empty band.
    assert power[near].max() > 0.05 * power.max()
    return 1200 * np.log2(hz[near][power[near].argmax()] / wanted)


def seconds(audio):
    return len(audio.samples) / audio.rate


def rms_db(audio, start, end):
    part = audio.samples[round(start * audio.rate) : round(end * audio.rate)]
    return float(decibels(np.sqrt((part**2).mean())))


@pytest.mark.parametrize("program", [0, 24, 40, 56, FLUTE])
@pytest.mark.parametrize("pitch", [57, 69, 81])
def test_a_note_has_its_pitch(program, pitch):
    assert abs(cents(render(make_score([note(0, 2, pitch, 100, program)])), pitch)) < 8


def test_velocity_is_loudness():
    notes = [note(4 * i, 1, 60, velocity) for i, velocity in enumerate((30, 60, 90, 127))]
    audio = render(make_score(notes))
    heard = [rms_db(audio, 2 * i, 2 * i + 0.4) for i in range(4)]
    assert all(np.diff(heard) > 3), heard
    # Alone, each of them is brought to the same peak.
    for n in notes:
        assert decibels(np.abs(render(make_score([n])).samples).max()) == pytest.approx(PEAK_DB)


def test_drums_sound_and_are_no_piano():
    kit = render(make_score([note(0, 1, 38, 100, DRUMS)]))
    piano = render(make_score([note(0, 1, 38, 100)]))
    flatness = []
    for audio in (kit, piano):
        power = np.abs(np.fft.rfft(audio.samples[: audio.rate // 4].mean(1))) ** 2 + 1e-12
        flatness.append(np.exp(np.log(power).mean()) / power.mean())
    assert not kit.silent
    assert flatness[0] > 10 * flatness[1]  # a snare is noise


def test_tempo_changes_and_meters_place_the_notes():
    score = make_score(
        [note(0, 0.25, 60, 100), note(6, 0.25, 60, 100)],
        meters=[(0, 3, 4), (3, 6, 8)],
        tempi=[(0, 120), (3, 60)],
    )
    audio = render(score)
    assert length_seconds(score) == pytest.approx(1.5 + 3.25)
    loud = loudness_db(audio.samples, audio.rate, 0.05)
    starts = 0.05 * (np.flatnonzero((loud[1:] > -40) & (loud[:-1] < -60)) + 1)
    assert starts == pytest.approx([4.5], abs=0.06)
    assert loud[0] > -40
    late = make_score([note(0, 1, 60, 100)], tempi=[(100, 30)])  # 120 until the first tempo
    assert length_seconds(late) == pytest.approx(0.5)


def test_the_last_note_rings_out_without_a_click():
    score = make_score([note(0, 1, 72, 100, GLOCKENSPIEL)])
    audio = render(score)
    assert length_seconds(score) + 2 < seconds(audio) <= 0.5 + TAIL_SECONDS + FADE_SECONDS
    assert np.abs(audio.samples[-10:]).max() < 1e-3
    # Where the sound stops, the file does.
    organ = render(make_score([note(0, 1, 72, 100, ORGAN)]))
    assert 0.5 < seconds(organ) < 2.5
    assert audio.samples.dtype == np.float32
    assert audio.rate == SAMPLE_RATE


def test_a_pedal_that_is_never_lifted_fades_out():
    score = make_score([note(0, 1, 72, 100, ORGAN)])
    score.tracks[0].controls.append(ControlChangeTick(0, 64, 127))
    audio = render(score)
    assert seconds(audio) == pytest.approx(0.5 + TAIL_SECONDS, abs=0.01)
    assert rms_db(audio, seconds(audio) - 0.2, seconds(audio) - 0.1) > -20
    assert np.abs(audio.samples[-10:]).max() < 0.01


def test_controls_after_the_music_are_left_out(monkeypatch):
    score = make_score([note(0, 1, 72, 100, ORGAN)], tempi=[(0, 120), (8, 4)])
    score.tracks[0].controls.append(ControlChangeTick(480 * 1000, 7, 100))
    sent, play = [], midirenderer.render_wave_from

    def spy(font, midi):
        sent.append(Score.from_midi(midi))
        return play(font, midi)

    monkeypatch.setattr(midirenderer, "render_wave_from", spy)
    render(score)
    assert sent[0].to("second").end() == pytest.approx(0.5 + TAIL_SECONDS)


def test_every_instrument_sounds_beyond_sixteen_channels():
    programs = [DRUMS, *range(0, 120, 4)]
    score = make_score([note(2 * i, 1, 60, 100, p) for i, p in enumerate(programs)])
    assert len(score.tracks) == 31
    audio = render(score)
    assert unheard_notes(score, audio) == 0
    # Each sounds as it does alone, and not like another one of its channel.
    for i in (2, 6, 17, 23, 30):
        alone = render(make_score([note(0, 1, 60, 100, programs[i])])).samples
        there = audio.samples[i * SAMPLE_RATE :]
        n = SAMPLE_RATE // 4
        spectra = [np.abs(np.fft.rfft(x[:n].mean(1))) for x in (alone, there)]
        assert np.corrcoef(*spectra)[0, 1] > 0.95


def test_a_pitch_that_sounds_is_struck_anew():
    overlapping = make_score([note(0, 2.25, 60, 100, ORGAN), note(2, 2, 60, 100, ORGAN)])
    audio = render(overlapping)
    # Without care the first note's end would end the second one at 1.125 s.
    assert rms_db(audio, 1.5, 1.9) > rms_db(audio, 0.5, 0.9) - 3


def test_loud_chords_are_not_cut_off():
    chord = [note(0, 2, p, 127, LEAD) for p in range(36, 84, 3)]
    lone, all_ = render(make_score(chord[:1])), render(make_score(chord))
    assert all_.raw_peak_db > 0
    assert abs(cents(lone, 36)) < 8
    at_peak = np.abs(all_.samples) > 10 ** (PEAK_DB / 20) - 1e-4
    assert at_peak.sum() < 10


def test_silence_is_found():
    above = make_score([note(0, 1, 115, 100)])  # the piano ends at 108
    assert render(above).silent
    assert unheard_notes(above, render(above)) == 1
    assert seconds(render(above)) == pytest.approx(0.5)
    empty = render(Score(480))
    assert empty.silent
    assert empty.samples.shape == (0, 2)
    among = make_score([note(0, 1, 60, 100), note(8, 1, 115, 100), note(16, 1, 60, 100)])
    audio = render(among)
    assert not audio.silent
    assert unheard_notes(among, audio) == 1
    loud = loudness_db(audio.samples, audio.rate, 1)
    assert loud[0] > -30
    assert loud[5] < -80


def test_what_is_too_soft_to_play_is_not_blown_up(monkeypatch):
    noise = np.random.default_rng(0).integers(-5, 6, (96_000, 2)).astype("<i2")
    file = io.BytesIO()
    soundfile.write(file, noise, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    monkeypatch.setattr(midirenderer, "render_wave_from", lambda font, midi: file.getvalue())
    audio = render(make_score([note(0, 2, 60, 1)]))
    assert audio.silent
    assert np.abs(audio.samples).max() == pytest.approx(5 / 2**15)


def test_a_soft_piece_is_silent():
    sine = np.sin(2 * np.pi * 1000 * np.arange(4800) / 48000)[:, None].astype(np.float32)
    assert Audio(sine, 48000, -69).silent is False
    assert Audio(sine, 48000, -71).silent is True


@pytest.mark.parametrize("suffix", ["wav", "mp3"])
def test_files_hold_what_was_rendered(tmp_path, suffix):
    audio = render(make_score(melody(2, program=FLUTE)))
    path = tmp_path / "new folder" / f"a piece.{suffix}"
    write_audio(path, audio.samples, audio.rate)
    again, rate = soundfile.read(path, dtype="float32")
    assert rate == audio.rate
    assert again.shape == audio.samples.shape
    if suffix == "wav":
        assert np.abs(again - audio.samples).max() < 2**-15
    else:
        assert np.corrcoef(again[:, 0], audio.samples[:, 0])[0, 1] > 0.99
        assert path.stat().st_size < audio.samples.size / 3
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_other_formats_are_rejected():
    with pytest.raises(UserError, match=r"audio=ogg: choose wav, mp3 or null"):
        check_audio("ogg", None)


@pytest.mark.parametrize("content", [b"", b"no soundfont" * 9, "cut", None, "folder"])
def test_a_bad_soundfont_is_named(tmp_path, content):
    path = tmp_path / "my font.sf2"
    if content == "cut":
        path.write_bytes(default_soundfont().read_bytes()[:2_000_000])
    elif content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"soundfont={path}: ") + ".*give an SF2 file"):
        check_soundfont(path)


def test_another_soundfont_is_played(tmp_path):
    path = tmp_path / "copy.sf2"
    path.write_bytes(default_soundfont().read_bytes())
    check_soundfont(path)
    score = make_score(melody(1))
    assert np.array_equal(render(score, path).samples, render(score).samples)


def test_a_piece_of_an_hour_is_refused():
    score = make_score([note(0, 1, 60), note(7200, 1, 60)])
    with pytest.raises(UserError, match=r"3,600 s is too long for audio.*audio=null"):
        render(score)
