"""Any MidiTok tokenizer, configured in YAML.

MidiTok gives the vocabulary, the encoder and the decoder; the song is quantised beforehand by
:mod:`midigenre.midi.clean`, so that bars, and with them phrases, do not depend on the tokenizer.
Octuple is decoded here: MidiTok's own decoder places the first note after a change of meter with
the old meter's grid.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import miditok
import numpy as np
from miditok.constants import DEFAULT_VELOCITY
from symusic.core import ScoreTick

from midigenre.arrays import Bools, Ints
from midigenre.errors import RejectedSongError, UserError
from midigenre.midi.clean import clean
from midigenre.midi.song import DEFAULT_TEMPO, DRUMS, TRACKS, Grid, Meter, NoteTable, Song
from midigenre.spec import BarKind, Field, TokenSpec
from midigenre.tokenizers.base import AnyIds, Encoded, Tokenizer, phrase_cutter
from midigenre.tokenizers.fast import NotCoveredError, fast_encoder

_PARAMS: Mapping[str, Any] = {
    # MidiTok's own defaults drop notes: pitches below 21 and above 109, drums outside 27 to 88.
    "pitch_range": (0, 127),
    "drums_pitch_range": (0, 127),
    # Songs come with one note for each onset, program and pitch already.
    "remove_duplicated_notes": False,
    "delete_equal_successive_tempo_changes": True,
    "delete_equal_successive_time_sig_changes": True,
}

_CLASS_PARAMS = (
    "add_trailing_bars",
    "base_tokenizer",
    "max_duration",
    "max_microtiming_shift",
    "num_microtiming_bins",
    "ticks_per_quarter",
    "use_bar_end_tokens",
    "use_microtiming",
)
"""Arguments of single MidiTok classes, which ``TokenizerConfig`` takes as ``**kwargs``."""


class MidiTokTokenizer(Tokenizer):
    """A tokenizer of MidiTok behind midigenre's interface.

    Args:
        name: The tokenizer's name, for reports.
        cls: Name of the class in MidiTok, for instance ``REMI``.
        params: Arguments of ``miditok.TokenizerConfig`` besides those made from the rest.
        time_signatures: Meters of the vocabulary and of the bar grid, as ``"3/4"``. MidiTok's own
            default list silently turns 4/2, 2/2, 9/8 and 7/8 into 4/4.
        beat_resolution: Positions in a beat.
        max_duration_beats: Longest note, in beats.
        max_bars: Longest phrase, in bars, that the vocabulary can number.
        max_song_bars: Longer songs are rejected.
        special_tokens: Names of the special tokens, in the order of their ids.
        tracks: ``all``, ``melody`` or ``merged`` (see :func:`midigenre.midi.clean.clean`). Where
            the vocabulary has no programs, ``all`` is ``merged``.
        neutral: One tempo and one velocity for all music (see :func:`midigenre.midi.clean.clean`).
            Constant attributes are not encoded: ``melody`` and ``merged`` leave the
            program tokens out and ``neutral`` velocities and tempi, which halves a REMI stream.

    Raises:
        UserError: MidiTok has no such class, or rejects the parameters; or another setting is
            unknown or out of range.
    """

    def __init__(
        self,
        name: str,
        cls: str,
        params: Mapping[str, Any] | None = None,
        time_signatures: Sequence[str] = ("4/4",),
        beat_resolution: int = 8,
        max_duration_beats: int = 16,
        max_bars: int = 64,
        max_song_bars: int = 4096,
        special_tokens: Sequence[str] = ("PAD", "BOS", "EOS", "MASK"),
        tracks: str = "all",
        neutral: bool = False,
    ) -> None:
        settings: dict[str, Any] = {
            "_target_": f"{type(self).__module__}.{type(self).__qualname__}",
            "name": name,
            "cls": cls,
            "params": dict(params or {}),
            "time_signatures": list(time_signatures),
            "beat_resolution": beat_resolution,
            "max_duration_beats": max_duration_beats,
            "max_bars": max_bars,
            "max_song_bars": max_song_bars,
            "special_tokens": list(special_tokens),
            "tracks": tracks,
            "neutral": neutral,
        }
        if max_bars < 1 or max_song_bars < max_bars:
            raise UserError(
                f"tokenizer.max_bars={max_bars} must lie in 1 to max_song_bars={max_song_bars}"
            )
        if "PAD" not in special_tokens:
            raise UserError("tokenizer.special_tokens must hold PAD, which every vocabulary needs")
        if tracks not in TRACKS:
            raise UserError(f"tokenizer.tracks={tracks}: choose {', '.join(TRACKS)}")
        meters = tuple(_meter(text) for text in time_signatures)
        use_meters = bool(settings["params"].get("use_time_signatures", True))
        try:
            self.grid = Grid(beat_resolution, meters, use_meters, max_duration_beats, max_song_bars)
            self._tok = _make(cls, settings, meters if use_meters else ((4, 4),))
        except (ValueError, TypeError, AssertionError, LookupError) as error:
            raise UserError(f"tokenizer {name!r}: {error}") from error
        config = self._tok.config
        if use_meters and not config.use_time_signatures:
            raise UserError(
                f"tokenizer.cls={cls} has no time signatures: set "
                "tokenizer.params.use_time_signatures=false and tokenizer.time_signatures=[4/4]"
            )
        if self._tok.time_division != self.grid.tpq:
            raise RuntimeError(
                f"MidiTok counts {self._tok.time_division} ticks per quarter, not {self.grid.tpq}"
            )
        if config.use_tempos:
            self.tempi = np.sort(self._tok.tempos)
        self._tracks = tracks if config.use_programs or tracks != "all" else "merged"
        self._neutral = neutral
        if self._tok._note_on_off:
            self.grid = replace(self.grid, cut_overlaps=True)
        # MuMIDI leaves the note's fields off the other steps; PAD (id 0) takes their place.
        self._ragged = isinstance(self._tok, miditok.MuMIDI)
        bars = _bar_kind(self._tok)
        if bars != "none" and not use_meters and meters != ((4, 4),):
            raise UserError(
                f"tokenizer {name!r}: without time signatures {cls} counts bars of 4/4; set "
                "tokenizer.time_signatures=[4/4] or tokenizer.params.use_time_signatures=true"
            )
        self.spec = TokenSpec(name, _fields(self._tok, max_bars), bars, max_bars, settings)
        self._cutter = phrase_cutter(self.spec)
        self._fast, self._slow = fast_encoder(self._tok)

        # Whether the vocabulary has a note, at 128 * program + pitch; drums, -1, come last.
        known = np.zeros((129, 128), bool)
        for program in config.programs if config.use_programs else range(DRUMS, 128):
            own_range = program == DRUMS and config.use_pitchdrum_tokens
            low, high = config.drums_pitch_range if own_range else config.pitch_range
            known[program, max(0, low) : high + 1] = True
        self._known = known.ravel()
        # The nearest velocity for each of 0 to 127; of two equally near the higher one.
        self._velocity = np.full(128, DEFAULT_VELOCITY, np.int32)
        if config.use_velocities:
            velocities, wanted = self._tok.velocities, np.arange(128, dtype=np.int32)
            right = np.clip(np.searchsorted(velocities, wanted), 1, len(velocities) - 1)
            above, below = velocities[right], velocities[right - 1]
            nearest = np.where(np.abs(above - wanted) <= np.abs(wanted - below), above, below)
            self._velocity = nearest.astype(np.int32)

    def clean(self, score: ScoreTick) -> Song:
        """See :meth:`Tokenizer.clean`; velocities and tempi take the nearest value there is.

        Raises:
            RejectedSongError: ``empty`` where no note lies in the vocabulary's ranges.
        """
        song = clean(score, self.grid, tracks=self._tracks, neutral=self._neutral)
        known = self._known.take(song.notes.program * 128 + song.notes.pitch)
        if not known.any():
            raise RejectedSongError("empty", "no note in the tokenizer's pitches and programs")
        if not known.all():
            song = _keep(song, known)
        tempo_ticks, tempo_qpm = song.tempo_ticks[:1], np.array([float(self._tok.default_tempo)])
        if self._tok.config.use_tempos:
            # MidiTok compares tempi by the length of a quarter, which is what a file stores.
            lengths = np.abs(60e6 / self._tok.tempos[None] - 60e6 / song.tempo_qpm[:, None])
            tempo_qpm = self._tok.tempos[np.argmin(lengths, axis=1)]
            changed = np.append(True, tempo_qpm[1:] != tempo_qpm[:-1])
            tempo_ticks, tempo_qpm = song.tempo_ticks[changed], tempo_qpm[changed]
        notes = replace(song.notes, velocity=self._velocity.take(song.notes.velocity))
        return replace(song, notes=notes, tempo_ticks=tempo_ticks, tempo_qpm=tempo_qpm)

    def encode(self, song: Song) -> Encoded:
        """See :meth:`Tokenizer.encode`.

        REMI, CP and Octuple are written by :mod:`.fast`; what it does not cover is left to MidiTok,
        and ``fallback`` says why.
        """
        if self._fast is None:
            return replace(self.encode_with_miditok(song), fallback=self._slow)
        try:
            return self._fast.encode(song)
        except NotCoveredError as reason:
            return replace(self.encode_with_miditok(song), fallback=str(reason))

    def encode_with_miditok(self, song: Song) -> Encoded:
        """As :meth:`encode`, by MidiTok itself, which is much slower and defines the ids.

        ``fallback`` is empty.
        """
        if self.grid.cut_overlaps and song.n_bars:
            song = _with_tails_on_grid(song, self.grid)
        sequence = self._tok.encode(song.to_score(), no_preprocess_score=True)
        if isinstance(sequence, list):  # one sequence per track; the tracks are merged
            (sequence,) = sequence
        ids = sequence.ids
        if self._ragged:
            ids = [step + [0] * (len(self.spec.fields) - len(step)) for step in ids]
        ids_TF = np.array(ids, np.uint16).reshape(-1, len(self.spec.fields))
        if self._cutter is None:
            return Encoded(ids_TF, np.zeros(0, np.int32), np.zeros(0, np.uint16))
        last = int(song.notes.onset[-1]) if len(song.notes) else -1
        n_filled = int(np.searchsorted(song.bar_ticks[:-1], last, side="right"))
        steps = self._cutter.bar_steps(ids_TF, song.n_bars, n_filled)
        return Encoded(ids_TF, steps, self._cutter.bar_tempo(ids_TF, steps))

    def decode(self, ids_TF: AnyIds) -> ScoreTick:
        """See :meth:`Tokenizer.decode`."""
        ids_TF = np.asarray(ids_TF)
        ids_TF = ids_TF[ids_TF[:, 0] >= len(self._tok.config.special_tokens)]
        if len(ids_TF) == 0:
            return ScoreTick(self.grid.tpq)
        if isinstance(self._tok, miditok.Octuple):
            return _octuple_song(ids_TF, self.spec, self.grid).to_score()
        ids = ids_TF[:, 0].tolist()
        if self._tok.is_multi_voc:
            # MidiTok counts bars and does not read their numbers, which may pass the vocabulary.
            ids = np.minimum(ids_TF, np.array(self.spec.sizes) - 1).tolist()
        if self._ragged:
            filled = (ids_TF != 0) * np.arange(1, ids_TF.shape[1] + 1)
            ids = [step[:n] for step, n in zip(ids, filled.max(axis=1).tolist(), strict=True)]
        score: ScoreTick = self._tok.decode(ids if self._tok.one_token_stream else [ids])
        return score


def _meter(text: str) -> Meter:
    try:
        numerator, denominator = (int(part) for part in str(text).split("/"))
    except ValueError:
        raise UserError(f"tokenizer.time_signatures: {text!r} is not written as '3/4'") from None
    return numerator, denominator


def _make(cls: str, settings: Mapping[str, Any], meters: Sequence[Meter]) -> miditok.MusicTokenizer:
    base = miditok.MusicTokenizer
    classes = {
        name: found
        for name, found in vars(miditok).items()
        if isinstance(found, type) and issubclass(found, base) and found is not base
    }
    if cls not in classes:
        raise UserError(f"tokenizer.cls={cls}: MidiTok has {', '.join(sorted(classes))}")
    by_beat: dict[int, list[int]] = {}
    for numerator, denominator in meters:
        by_beat.setdefault(denominator, []).append(numerator)
    params = dict(_PARAMS) | dict(settings["params"])
    if settings["tracks"] != "all":
        params["use_programs"] = False
    if settings["neutral"]:
        params |= {"use_velocities": False, "use_tempos": False}
    for forbidden in ("beat_res", "time_signature_range", "special_tokens", "max_bar_embedding"):
        if forbidden in params:
            raise UserError(
                f"tokenizer.params.{forbidden}: set tokenizer.beat_resolution, .time_signatures, "
                ".special_tokens or .max_bars instead"
            )
    known = {*inspect.signature(miditok.TokenizerConfig).parameters, *_CLASS_PARAMS} - {"kwargs"}
    if unknown := sorted(set(params) - known):
        raise UserError(f"tokenizer.params.{unknown[0]}: MidiTok has {', '.join(sorted(known))}")
    if cls in ("Octuple", "MuMIDI"):
        # The whole song is encoded at once: the bound lies above the longest, not at a phrase.
        params["max_bar_embedding"] = settings["max_song_bars"]
    return classes[cls](
        miditok.TokenizerConfig(
            beat_res={(0, settings["max_duration_beats"]): settings["beat_resolution"]},
            time_signature_range=by_beat,
            special_tokens=list(settings["special_tokens"]),
            **params,
        )
    )


def _bar_kind(tok: miditok.MusicTokenizer) -> BarKind:
    """Whether bars can be found in the stream: rests and time shifts run across barlines."""
    tokens = {
        token for vocab in (tok.vocab if tok.is_multi_voc else [tok.vocab]) for token in vocab
    }
    if tok.config.use_rests or not any(token.startswith("Bar_") for token in tokens):
        return "none"
    if "Bar_0" not in tokens:
        return "token"
    return "field" if tok.is_multi_voc else "none"


def _fields(tok: miditok.MusicTokenizer, max_bars: int) -> tuple[Field, ...]:
    """Vocabularies as fields; bar numbers only up to the longest phrase."""
    if not tok.is_multi_voc:
        names, vocabularies = {0: "token"}, [tok.vocab]
    else:
        names, vocabularies = {}, tok.vocab
        for name, column in tok.vocab_types_idx.items():
            names.setdefault(column % len(tok.vocab), name)
    fields = []
    for column, vocab in enumerate(vocabularies):
        kept = []
        for token in sorted(vocab, key=vocab.__getitem__):
            type_, _, value = token.partition("_")
            numbered = type_ in ("Bar", "BarPosEnc") and value.split("_")[0].isdigit()
            if not numbered or int(value.split("_")[0]) < max_bars:
                kept.append(token)
        fields.append(Field(names.get(column, f"field{column}"), tuple(kept)))
    return tuple(fields)


def _with_tails_on_grid(song: Song, grid: Grid) -> Song:
    """The song with note-offs after its last bar on that bar's grid.

    The song of which this is a phrase may have another meter there; MidiTok would lose what its
    time shifts cannot express, and all later note-offs would come too early.
    """
    notes, last = song.notes, int(song.bar_ticks[-2])
    step = grid.step_ticks((int(song.meters[-1, 0]), int(song.meters[-1, 1])))
    after = notes.onset + notes.duration - last
    snapped = (2 * after + step) // (2 * step) * step + last - notes.onset
    beyond = after > song.bar_ticks[-1] - last
    duration = np.where(beyond, snapped, notes.duration)
    return replace(song, notes=replace(notes, duration=duration))


def _keep(song: Song, known: Bools) -> Song:
    """The song without the notes that the vocabulary does not have; trailing bars go."""
    notes = song.notes.select(known)
    last = int(notes.onset.max())
    n_bars = int(np.searchsorted(song.bar_ticks, last, side="right"))
    inside = song.tempo_ticks <= last
    return replace(
        song,
        notes=notes,
        bar_ticks=song.bar_ticks[: n_bars + 1],
        meters=song.meters[:n_bars],
        tempo_ticks=song.tempo_ticks[inside],
        tempo_qpm=song.tempo_qpm[inside],
        repairs=song.repairs | {"notes outside the vocabulary": int((~known).sum())},
        file_seconds=song.file_seconds[: n_bars + 1],
    )


def _octuple_song(ids_TF: AnyIds, spec: TokenSpec, grid: Grid) -> Song:
    """The music of Octuple steps, one or more in any order, from tick 0 on.

    Every note is placed by its bar and position in the meter that its own step states. A bar
    without a note takes the meter of the last bar that has one (or, at the start, of the first
    one). Bars may be numbered beyond the vocabulary, as those of an encoded song are.
    """
    n = len(ids_TF)
    columns = {field.name: (field, ids_TF[:, i]) for i, field in enumerate(spec.fields)}

    def values(name: str, default: str) -> list[str]:
        if name not in columns:
            return [default] * n
        field, ids = columns[name]
        return [field.values[i] for i in ids]

    def numbers(name: str, default: int) -> Ints:
        return np.array(values(name, f"{default}"), np.int32)

    # By distance, not by name: a long piece numbers more bars than the vocabulary has.
    bars, ids = columns["Bar"]
    bar = ids.astype(np.int64) - bars.index["Bar_0"]
    stated = dict(zip(bar.tolist(), [_meter(v) for v in values("TimeSig", "4/4")], strict=True))
    meters = [stated[min(stated)]]
    for i in range(int(bar.max()) + 1):
        meters.append(stated.get(i, meters[-1]))
    del meters[0]
    bar_ticks = np.cumsum([0, *map(grid.bar_ticks, meters)])
    step = np.array([grid.step_ticks(meter) for meter in meters]).take(bar)
    onset = bar_ticks[bar] + numbers("Position", 0) * step
    # MidiTok writes a duration as beats.positions.resolution.
    a_beat = grid.beat_resolution
    durations = values("Duration", f"0.{max(1, a_beat // 2)}.{a_beat}")
    beats, positions, resolution = np.array([v.split(".") for v in durations], np.int64).T
    steps = (beats * resolution + positions) * a_beat // resolution
    pitch_field, ids = columns["Pitch"]
    is_drum = pitch_field.is_type("PitchDrum")[ids]
    order = np.argsort(onset, kind="stable")
    qpm = np.array(values("Tempo", f"{DEFAULT_TEMPO}"), np.float64)[order]
    changed = np.append(True, qpm[1:] != qpm[:-1])
    tempo_ticks = onset[order][changed].astype(np.int32)
    tempo_ticks[0] = 0
    notes = NoteTable.of(
        onset,
        steps * step,
        numbers("Pitch", 0),
        numbers("Velocity", DEFAULT_VELOCITY),
        np.where(is_drum, DRUMS, numbers("Program", 0)),
    )
    bar_ticks = bar_ticks.astype(np.int32)
    return Song(notes, grid.tpq, bar_ticks, np.array(meters, np.int32), tempo_ticks, qpm[changed])
