"""Five synthesised styles: atonal, metal, rock, pop, rap.

Each is a function of a random generator alone, so that a song follows from its seed. All five draw
meter, key and form from one distribution (:func:`midigenre.corpora.sequencer.plan_song`); what
tells them apart is pitch, harmony, register and rhythm, which survive when all tracks are merged
into one piano track. Drums are typical of rap, but metal, rock and pop have them too in about half
of their songs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from symusic.core import ScoreTick

from midigenre.corpora.sequencer import (
    CRASH,
    HAT,
    KICK,
    OPEN_HAT,
    SCALES,
    SNARE,
    Canvas,
    Pattern,
    Plan,
    degree,
    drum_bar,
    drum_fill,
    in_register,
    plan_song,
    rhythm,
    triad,
)

# Degrees of the major scale, from 0.
ROCK_PROGRESSIONS = (
    (0, 3, 4, 4), (0, 3, 0, 4), (0, 3, 4, 3), (0, 0, 3, 4), (0, 4, 5, 3), (0, 3, 4, 0),
)  # fmt: skip
POP_PROGRESSIONS = ((0, 4, 5, 3), (5, 3, 0, 4), (0, 4, 5, 3), (3, 0, 4, 5), (0, 5, 3, 4))

DRUM_CHANCE = 0.5  # of a drummer in metal, rock and pop


def _canvas(song: Plan, qpm: float) -> Canvas:
    return Canvas([(0, song.meter)], float(round(qpm)), song.n_bars * song.bar)


def _velocity(rng: np.random.Generator, mean: int, accent: bool = False) -> int:
    return int(mean + (12 if accent else 0) + rng.integers(-8, 9))


def _drums(rng: np.random.Generator, song: Plan, canvas: Canvas, low: float, high: float) -> None:
    """Drums in half of the songs: a groove for each kind of section, fills and crashes between.

    Kicks on other eighths have a chance between ``low`` and ``high``.
    """
    if rng.random() >= DRUM_CHANCE:
        return
    kicks, hat = rng.uniform(low, high), int(rng.choice([2, 4]))
    canvas.part("drums", -1)
    grooves = {
        letter: drum_bar(rng, song, hat if letter != "C" else 2, kicks, ride=letter == "B")
        for letter in "IVCBO"
    }
    for start, letter, i, last in song.bars():
        fill = last and letter != "O" and rng.random() < 0.7
        for step, key in drum_fill(rng, song) if fill else grooves[letter]:
            canvas.add("drums", start + step, 1, key, _velocity(rng, 88, step == 0))
        if i == 0 and letter in "CB":
            canvas.add("drums", start, 4, CRASH, 105)


def atonal(rng: np.random.Generator) -> ScoreTick:
    """Twelve-tone music: voices run through forms of one row.

    Forms are the row, its inversion, retrograde and retrograde inversion in all transpositions.
    Songs differ in number of voices, spread of registers, rests, and tones struck together.
    """
    song = plan_song(rng)
    canvas = _canvas(song, rng.uniform(50, 140))
    row = rng.permutation(12)
    n_voices = int(rng.integers(1, 5))
    program = int(rng.choice([0, 40, 68, 71, 73]))
    rests, chords = rng.uniform(0, 0.3), rng.choice([0.0, 0.1, 0.3])
    for voice in range(n_voices):
        name = f"voice {voice + 1}"
        canvas.part(name, program)
        low = int(rng.integers(40, 50) + voice * rng.integers(6, 13))
        width = int(rng.choice([12, 19, 26]))
        shares = rng.dirichlet(np.ones(7)) + 0.05
        step, tones = 0, _row_forms(rng, row)
        while step < canvas.end:
            length = int(rng.choice([1, 2, 3, 4, 6, 8, 12], p=shares / shares.sum()))
            if step and rng.random() < rests:
                step += length
                continue
            for _ in range(int(rng.integers(2, 5)) if rng.random() < chords else 1):
                if not tones:
                    tones = _row_forms(rng, row)
                pitch = in_register(tones.pop(), low + int(rng.integers(width - 11)))
                canvas.add(name, step, length, pitch, int(rng.integers(30, 110)))
            step += length
    return canvas.score()


def _row_forms(rng: np.random.Generator, row: NDArray[np.int64]) -> list[int]:
    """One form of the row, last tone first (it is used up from the end)."""
    form = -row if rng.random() < 0.5 else row
    form = form[::-1] if rng.random() < 0.5 else form
    return [int(tone) for tone in (form + rng.integers(12)) % 12]


def _metal_rhythm(rng: np.random.Generator, song: Plan, kind: str) -> Pattern:
    """A bar of gallops (8th and two 16ths), reverse gallops, 8ths, 16ths, or long chords."""
    cells: Mapping[str, tuple[tuple[int, ...], ...]] = {
        "gallop": ((2, 1, 1), (2, 1, 1), (2, 2)),
        "reverse": ((1, 1, 2), (1, 1, 2), (2, 2)),
        "eighths": ((2, 2), (2, 2), (2, 1, 1)),
        "sixteenths": ((1, 1, 1, 1), (1, 1, 1, 1), (2, 1, 1)),
        "doom": ((4,), (8,), (4, 2, 2)),
        "broken": ((3, 1), (1, 2, 1), (3, 3, 2), (2, 1, 1)),
    }
    lengths: list[int] = []
    while sum(lengths) < song.bar:
        lengths += cells[kind][rng.integers(len(cells[kind]))]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    pairs = zip(starts.tolist(), lengths, strict=True)
    return [(start, min(n, song.bar - start)) for start, n in pairs if start < song.bar]


def metal(rng: np.random.Generator) -> ScoreTick:
    """Riffs of power chords over a palm-muted low string, in minor, Phrygian or harmonic minor."""
    song = plan_song(rng)
    canvas = _canvas(song, rng.uniform(110, 210))
    scale = SCALES[str(rng.choice(["minor", "phrygian", "harmonic minor"]))]
    root = in_register(song.root, int(rng.choice([28, 30, 31, 33])))  # of the lowest string
    canvas.part("guitar", int(rng.choice([29, 30])))
    bass = rng.random() < 0.7
    canvas.part("bass", 34)
    octave = rng.random() < 0.5  # root and fifth, or with the octave too
    solo = str(rng.choice(list("VCB"))) if rng.random() < 0.4 else ""
    canvas.part("lead", 30)
    riffs = {letter: _riff(rng, song, int(rng.choice([1, 2, 2, 4]))) for letter in "IVCBO"}
    for start, letter, i, last in song.bars():
        riff = riffs[letter]
        bar = riff[i % len(riff)]
        if last and rng.random() < 0.5:
            bar = _riff(rng, song, 1)[0]
        for step, length, chord_degree in bar:
            palm_mute = chord_degree is None
            base = root if chord_degree is None else degree(root, scale, chord_degree)
            sounding = 1 if palm_mute else length
            velocity = _velocity(rng, 78 if palm_mute else 102, step == 0)
            pitches = [base] if palm_mute else [base, base + 7] + [base + 12] * octave
            canvas.chord("guitar", start + step, sounding, pitches, velocity)
            if bass:
                low = base - 12 if base >= 40 else base
                canvas.add("bass", start + step, sounding, low, velocity - 8)
        if letter == solo and i % 4 >= 2:
            for step, length in rhythm(rng, song.bar, [1, 2, 4], [3, 2, 1]):
                pitch = degree(root + 36, scale, int(rng.integers(-3, 8)))
                canvas.add("lead", start + step, length, pitch, _velocity(rng, 95))
    _drums(rng, song, canvas, 0.4, 0.95)
    return canvas.score()


def _riff(
    rng: np.random.Generator, song: Plan, n_bars: int
) -> list[list[tuple[int, int, int | None]]]:
    """Bars of (step, duration, scale degree of the chord; None for the muted open string)."""
    kind = str(rng.choice(["gallop", "reverse", "eighths", "sixteenths", "doom", "broken"]))
    mute = 0.15 if kind == "doom" else rng.uniform(0.35, 0.8)
    degrees = rng.permutation([0, 1, 2, 3, 4, 5, 6])[:4]
    riff = []
    for _ in range(n_bars):
        bar: list[tuple[int, int, int | None]] = []
        for step, length in _metal_rhythm(rng, song, kind):
            muted = step > 0 and rng.random() < mute
            bar.append((step, length, None if muted else int(rng.choice(degrees))))
        riff.append(bar)
    return riff


def rock(rng: np.random.Generator) -> ScoreTick:
    """I-IV-V and I-V-vi-IV in strummed triads, a driving bass, a melody off the beat."""
    song = plan_song(rng)
    canvas = _canvas(song, rng.uniform(95, 165))
    scale = SCALES[str(rng.choice(["major", "major", "mixolydian"]))]
    pentatonic = SCALES[str(rng.choice(["major pentatonic", "minor pentatonic"]))]
    canvas.part("guitar", int(rng.choice([25, 27, 29])))
    canvas.part("bass", int(rng.choice([33, 34])))
    canvas.part("melody", int(rng.choice([53, 65, 26])))
    low = int(rng.integers(45, 55))
    chords = {s: ROCK_PROGRESSIONS[rng.integers(len(ROCK_PROGRESSIONS))] for s in "IVCBO"}
    strums = {s: rhythm(rng, song.bar, [2, 3, 4, 6], rng.dirichlet(np.ones(4))) for s in "IVCBO"}
    basses = {s: rhythm(rng, song.bar, [2, 4, 6], [5, 2, 1]) for s in "IVCBO"}
    tune = int(rng.integers(5))
    for start, letter, i, last in song.bars():
        index = chords[letter][i % 4]
        pitches = triad(song.root, scale, index, low)
        for step, length in strums[letter]:
            canvas.chord("guitar", start + step, length, pitches, _velocity(rng, 80, step == 0))
        for n, (step, length) in enumerate(basses[letter]):
            base = in_register(pitches[0] + (7 if n and rng.random() < 0.2 else 0), 31)
            canvas.add("bass", start + step, length, base, _velocity(rng, 90, step == 0))
        if letter in "IO" or (last and rng.random() < 0.5):
            continue
        # Off the beat: each note starts an eighth after a beat or half-beat.
        for step in range(2, song.bar, 4):
            if rng.random() < 0.75:
                tune = int(np.clip(tune + rng.integers(-2, 3), -1, 9))
                pitch = degree(in_register(song.root, 60), pentatonic, tune)
                length = int(rng.choice([2, 3, 4]))
                canvas.add("melody", start + step, length, pitch, _velocity(rng, 95))
    _drums(rng, song, canvas, 0.1, 0.4)
    return canvas.score()


def pop(rng: np.random.Generator) -> ScoreTick:
    """I-V-vi-IV and its rotations under a high melody in even eighths."""
    song = plan_song(rng)
    canvas = _canvas(song, rng.uniform(85, 130))
    scale = SCALES["major"]
    canvas.part("keys", int(rng.choice([0, 4, 88, 48])))
    canvas.part("bass", int(rng.choice([33, 38])))
    canvas.part("melody", int(rng.choice([80, 54, 73])))
    low = int(rng.integers(50, 60))
    top = in_register(song.root, int(rng.choice([70, 72, 74])))
    chords = POP_PROGRESSIONS[rng.integers(len(POP_PROGRESSIONS))]
    held = {s: str(rng.choice(["pad", "beats", "arpeggio"])) for s in "IVCBO"}
    density = {"V": rng.uniform(0.6, 0.95), "C": rng.uniform(0.8, 1.0), "B": rng.uniform(0.5, 0.8)}
    motif = {s: rng.integers(-2, 3, size=2 * song.bar // 2) for s in "VCB"}
    has_bass = rng.random() < 0.7
    for start, letter, i, last in song.bars():
        pitches = triad(song.root, scale, chords[i % 4], low)
        if held[letter] == "pad":
            canvas.chord("keys", start, song.bar, pitches, _velocity(rng, 65))
        for n, step in enumerate(range(0, song.bar, 2)):
            if held[letter] == "arpeggio":
                canvas.add("keys", start + step, 2, pitches[n % 3], _velocity(rng, 68, step == 0))
            elif held[letter] == "beats" and step % song.beat == 0:
                canvas.chord("keys", start + step, song.beat, pitches, _velocity(rng, 70))
        if has_bass:
            for step in range(0, song.bar, 2 * song.beat):
                base = in_register(pitches[0], 36)
                canvas.add("bass", start + step, 2 * song.beat, base, _velocity(rng, 85))
        if letter in "IO":
            continue
        # The motif of two bars comes back on the chords of the moment.
        for n, step in enumerate(range(0, song.bar - (4 if last else 0), 2)):
            if rng.random() < density[letter]:
                index = chords[i % 4] % 4 + int(motif[letter][n + (i % 2) * song.bar // 2])
                index += 2 * (letter == "C")
                canvas.add("melody", start + step, 2, degree(top, scale, index), _velocity(rng, 92))
    _drums(rng, song, canvas, 0.05, 0.3)
    return canvas.score()


def rap(rng: np.random.Generator) -> ScoreTick:
    """A drum loop (kick 36, snare 38, hat 42) with a sparse bass, at times a short sample."""
    song = plan_song(rng)
    canvas = _canvas(song, rng.uniform(70, 105))
    scale = SCALES["minor pentatonic"]
    canvas.part("drums", -1)
    canvas.part("bass", int(rng.choice([38, 39])))
    canvas.part("sample", int(rng.choice([0, 11, 4, 48])))
    root = in_register(song.root, 28)
    loops = {s: _rap_loop(rng, song) for s in "IVCBO"}
    basses = {s: _rap_bass(rng, song) for s in "IVCBO"}
    sampled = rng.random() < 0.4
    stab = [(int(rng.integers(song.bar)), int(rng.integers(5, 12))) for _ in range(3)]
    quiet = "" if rng.random() < 0.5 else "I"  # an intro of drums alone
    for start, letter, i, last in song.bars():
        for step, key in loops[letter][i % 2]:
            canvas.add("drums", start + step, 1, key, _velocity(rng, 86, key == SNARE))
        if last and rng.random() < 0.5:  # hat roll
            for step in range(song.bar - 4, song.bar):
                canvas.add("drums", start + step, 1, HAT, _velocity(rng, 70))
        if letter == quiet:
            continue
        for step, length, index in basses[letter][i % len(basses[letter])]:
            pitch = degree(root, scale, index)
            canvas.add("bass", start + step, length, pitch, _velocity(rng, 100))
        if sampled and letter in "CI":
            for step, index in stab:
                pitch = degree(root + 24, scale, index)
                canvas.add("sample", start + step, 2, pitch, _velocity(rng, 75))
    return canvas.score()


def _rap_loop(rng: np.random.Generator, song: Plan) -> list[list[tuple[int, int]]]:
    """Two bars of drums with syncopated kicks, ghost snares and open hats."""
    hat = int(rng.choice([1, 2, 2, 2, 4]))
    kicks = [s for s in range(2, song.bar) if rng.random() < rng.uniform(0.08, 0.25)]
    loop = []
    for _ in range(2):
        hits = drum_bar(rng, song, hat, 0.1) + [(s, KICK) for s in kicks if rng.random() < 0.8]
        hits += [(s, SNARE) for s in range(3, song.bar, 4) if rng.random() < 0.12]
        hits += [(song.bar - 2, OPEN_HAT)] if rng.random() < 0.3 else []
        loop.append([hit for hit in hits if hit[1] != HAT or rng.random() < 0.95])
    return loop


def _rap_bass(rng: np.random.Generator, song: Plan) -> list[list[tuple[int, int, int]]]:
    """One, two or four bars of one to three long notes each: (step, duration, degree)."""
    bars = []
    for _ in range(int(rng.choice([1, 2, 4]))):
        later = rng.choice(np.arange(2, song.bar), size=int(rng.integers(3)), replace=False)
        steps = [0, *sorted(int(s) for s in later)]
        ends = [*steps[1:], song.bar]
        bars.append(
            [(s, e - s, int(rng.integers(-1, 4))) for s, e in zip(steps, ends, strict=True)]
        )
    return bars


STYLES: Mapping[str, Callable[[np.random.Generator], ScoreTick]] = {
    "atonal": atonal,
    "metal": metal,
    "rock": rock,
    "pop": pop,
    "rap": rap,
}
"""Each style's function, in the order of the classes."""
