"""Any MidiTok tokenizer, from a YAML file.

MidiTok gives the vocabulary, the encoder and the decoder; the song is quantised beforehand by
:mod:`midigenre.midi.clean`, so that bars, and with them phrases, do not depend on the tokenizer.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import miditok
import numpy as np
from miditok.constants import DEFAULT_VELOCITY
from numpy.typing import NDArray
from symusic.core import ScoreTick

from midigenre.errors import RefusedSongError, UserError
from midigenre.midi.clean import clean
from midigenre.midi.song import DRUMS, TRACKS, Grid, NoteTable, Song
from midigenre.spec import BarKind, Field, TokenSpec
from midigenre.tokenizers import octuple
from midigenre.tokenizers.base import Encoded, Tokenizer
from midigenre.tokenizers.fast import NotCoveredError, fast_encoder
from midigenre.tokenizers.phrases import PhraseCutter

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
            default list turns 4/2, 2/2, 9/8 and 7/8 into 4/4 without a word.
        beat_resolution: Positions in a beat.
        max_duration_beats: Longest note, in beats.
        max_bars: Longest phrase, in bars, that the vocabulary can number.
        max_song_bars: Longer songs are refused.
        special_tokens: Names of the special tokens, in the order of their ids.
        tracks: ``all``, ``melody`` or ``merged`` (see :func:`midigenre.midi.clean.clean`). Where
            the vocabulary has no programs, ``all`` is ``merged``.
        neutral: One tempo and one velocity for all music (see :func:`midigenre.midi.clean.clean`).
            What is the same for every note is not written: ``melody`` and ``merged`` leave the
            program tokens out and ``neutral`` velocities and tempi, which halves a REMI stream.

    Raises:
        UserError: MidiTok has no such class, or refuses the parameters; or another setting is
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
        if use_meters and not self._tok.config.use_time_signatures:
            raise UserError(
                f"tokenizer.cls={cls} has no time signatures: set "
                "tokenizer.params.use_time_signatures=false and tokenizer.time_signatures=[4/4]"
            )
        if self._tok.time_division != self.grid.tpq:
            raise RuntimeError(
                f"MidiTok counts {self._tok.time_division} ticks a quarter, not {self.grid.tpq}"
            )
        config = self._tok.config
        self._tracks = tracks if config.use_programs or tracks != "all" else "merged"
        self._neutral = neutral
        if self._tok._note_on_off:
            self.grid = Grid(**(vars(self.grid) | {"cut_overlaps": True}))
        # MuMIDI leaves the note's fields off the other steps; PAD (id 0) stands there instead.
        self._ragged = isinstance(self._tok, miditok.MuMIDI)
        bars = _bar_kind(self._tok)
        if bars != "none" and not use_meters and meters != ((4, 4),):
            raise UserError(
                f"tokenizer {name!r}: without time signatures {cls} counts bars of 4/4; set "
                "tokenizer.time_signatures=[4/4] or tokenizer.params.use_time_signatures=true"
            )
        self.spec = TokenSpec(name, _fields(self._tok, bars, max_bars), bars, max_bars, settings)
        self._cutter = None if bars == "none" else PhraseCutter(self.spec)
        self._fast, self._slow = fast_encoder(self._tok)
        self._known, self._velocity = _known_notes(config), _velocities(self._tok)

    def clean(self, score: ScoreTick) -> Song:
        """See :meth:`Tokenizer.clean`; velocities and tempi take the nearest value there is.

        Raises:
            RefusedSongError: ``empty`` where no note lies in the vocabulary's ranges.
        """
        song = clean(score, self.grid, tracks=self._tracks, neutral=self._neutral)
        if self._tracks == "melody" and not self.grid.cut_overlaps:
            song = _in_whole_steps(song, self.grid)
        # Drums, -1, count from the end of the table.
        known = self._known.take(song.notes.program * 128 + song.notes.pitch)
        if not known.any():
            raise RefusedSongError("empty", "no note in the tokenizer's pitches and programs")
        if not known.all():
            song = _keep(song, known)
        velocity = self._velocity.take(song.notes.velocity)
        tempo_ticks, tempo_qpm = song.tempo_ticks[:1], np.array([float(self._tok.default_tempo)])
        if self._tok.config.use_tempos:
            # MidiTok compares tempi by the length of a quarter, which is what a file stores.
            tempo_qpm = self._tok.tempos[
                np.argmin(
                    np.abs(60e6 / self._tok.tempos[None] - 60e6 / song.tempo_qpm[:, None]), axis=1
                )
            ]
            tempo_ticks = song.tempo_ticks
            if len(tempo_ticks) > 1:
                changed = np.r_[True, np.diff(tempo_qpm) != 0]
                tempo_ticks, tempo_qpm = tempo_ticks[changed], tempo_qpm[changed]
        notes = replace(song.notes, velocity=velocity)
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
        """As :meth:`encode`, by MidiTok itself, which is much slower and the measure of the ids.

        ``fallback`` is empty.
        """
        if self.grid.cut_overlaps:
            song = _with_tails_on_grid(song, self.grid)
        sequence = self._tok.encode(song.to_score(), no_preprocess_score=True)
        if isinstance(sequence, list):  # one sequence a track; the tracks are merged
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

    def decode(self, ids_TF: NDArray[np.integer[Any]]) -> ScoreTick:
        """See :meth:`Tokenizer.decode`; Octuple is decoded by :mod:`.octuple`."""
        ids_TF = self._without_specials(np.asarray(ids_TF))
        if len(ids_TF) == 0:
            return ScoreTick(self.grid.tpq)
        if isinstance(self._tok, miditok.Octuple):
            return octuple.decode(ids_TF, self.spec, self.grid)
        if self._tok.is_multi_voc:
            # MidiTok counts bars and does not read their numbers, which may pass the vocabulary.
            ids_TF = np.minimum(ids_TF, np.array(self.spec.sizes) - 1)
        ids = ids_TF.tolist() if self._tok.is_multi_voc else ids_TF[:, 0].tolist()
        if self._ragged:
            ids = [step[: len(step) - _trailing_zeros(step)] for step in ids]
        score: ScoreTick = self._tok.decode(ids if self._tok.one_token_stream else [ids])
        return score

    def _without_specials(self, ids_TF: NDArray[Any]) -> NDArray[Any]:
        n_special = len(self._tok.config.special_tokens)
        return ids_TF[ids_TF[:, 0] >= n_special]


def _meter(text: str) -> tuple[int, int]:
    try:
        numerator, denominator = (int(part) for part in str(text).split("/"))
    except ValueError:
        raise UserError(f"tokenizer.time_signatures: {text!r} is not written as '3/4'") from None
    return numerator, denominator


def _make(
    cls: str, settings: Mapping[str, Any], meters: Sequence[tuple[int, int]]
) -> miditok.MusicTokenizer:
    maker = getattr(miditok, cls, None)
    if not (isinstance(maker, type) and issubclass(maker, miditok.MusicTokenizer)):
        known = sorted(
            n
            for n, c in vars(miditok).items()
            if isinstance(c, type)
            and issubclass(c, miditok.MusicTokenizer)
            and c is not miditok.MusicTokenizer
        )
        raise UserError(f"tokenizer.cls={cls}: MidiTok has {', '.join(known)}")
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
    known_params = [*inspect.signature(miditok.TokenizerConfig).parameters, *_CLASS_PARAMS]
    known_params.remove("kwargs")
    if unknown := sorted(set(params) - set(known_params)):
        raise UserError(
            f"tokenizer.params.{unknown[0]}: MidiTok has {', '.join(sorted(known_params))}"
        )
    if cls in ("Octuple", "MuMIDI"):
        # The whole song is encoded at once: the bound lies above the longest, not at a phrase.
        params["max_bar_embedding"] = settings["max_song_bars"]
    return maker(
        miditok.TokenizerConfig(
            beat_res={(0, settings["max_duration_beats"]): settings["beat_resolution"]},
            time_signature_range=by_beat,
            special_tokens=list(settings["special_tokens"]),
            **params,
        )
    )


def _bar_kind(tok: miditok.MusicTokenizer) -> BarKind:
    """Whether bars can be found in the stream: rests and time shifts run across barlines."""
    types = {t.split("_")[0] for vocab in _vocabularies(tok) for t in vocab}
    if "Bar" not in types or tok.config.use_rests:
        return "none"
    numbered = any(t == "Bar_0" for vocab in _vocabularies(tok) for t in vocab)
    return "field" if numbered and tok.is_multi_voc else "none" if numbered else "token"


def _vocabularies(tok: miditok.MusicTokenizer) -> list[dict[str, int]]:
    return list(tok.vocab) if tok.is_multi_voc else [tok.vocab]


def _fields(tok: miditok.MusicTokenizer, bars: BarKind, max_bars: int) -> tuple[Field, ...]:
    """Vocabularies as fields; bar numbers only up to the longest phrase."""
    names = {0: "token"}
    if tok.is_multi_voc:
        names = {}
        for name, column in tok.vocab_types_idx.items():
            names.setdefault(column % len(tok.vocab), name)
    fields = []
    for column, vocab in enumerate(_vocabularies(tok)):
        tokens = sorted(vocab, key=lambda token: vocab[token])
        kept = [
            t
            for t in tokens
            if not (t.startswith(("Bar_", "BarPosEnc_")) and t.split("_")[1].isdigit())
            or int(t.split("_")[1]) < max_bars
        ]
        fields.append(Field(names.get(column, f"field{column}"), tuple(kept)))
    return tuple(fields)


def _trailing_zeros(step: Sequence[int]) -> int:
    return next((i for i, value in enumerate(reversed(step)) if value), len(step))


def _in_whole_steps(song: Song, grid: Grid) -> Song:
    """The melody without the part of a step that a next note on a finer grid may leave a note."""
    steps = np.array([grid.step_ticks((int(n), int(d))) for n, d in song.meters])
    notes = song.notes
    step = steps[np.searchsorted(song.bar_ticks, notes.onset, side="right") - 1]
    return replace(song, notes=replace(notes, duration=notes.duration - notes.duration % step))


def _known_notes(config: miditok.TokenizerConfig) -> NDArray[np.bool_]:
    """Whether the vocabulary has a note, at ``128 * program + pitch``; the drums come last."""
    known = np.zeros((129, 128), bool)
    programs = config.programs if config.use_programs else range(DRUMS, 128)
    for program in programs:
        own_range = program == DRUMS and config.use_pitchdrum_tokens
        low, high = config.drums_pitch_range if own_range else config.pitch_range
        known[program, max(0, low) : high + 1] = True
    return known.ravel()


def _velocities(tok: miditok.MusicTokenizer) -> NDArray[np.int32]:
    """The vocabulary's velocity for each of 0 to 127."""
    if not tok.config.use_velocities:
        return np.full(128, DEFAULT_VELOCITY, np.int32)
    return _nearest(tok.velocities, np.arange(128, dtype=np.int32))


def _nearest(values: NDArray[Any], wanted: NDArray[np.int32]) -> NDArray[np.int32]:
    """Nearest of sorted ``values``; of two equally near the higher one, as in MidiTok."""
    right = np.clip(np.searchsorted(values, wanted), 1, len(values) - 1)
    left = right - 1
    nearer = np.abs(values[right] - wanted) <= np.abs(wanted - values[left])
    return np.where(nearer, values[right], values[left]).astype(np.int32)


def _with_tails_on_grid(song: Song, grid: Grid) -> Song:
    """The song with note-offs behind its last bar on that bar's grid.

    The song of which this is a phrase may have another meter there; MidiTok would lose what its
    time shifts cannot say, and all later note-offs would come too early.
    """
    if song.n_bars == 0:
        return song
    notes, last = song.notes, int(song.bar_ticks[-2])
    step = grid.step_ticks((int(song.meters[-1, 0]), int(song.meters[-1, 1])))
    after = notes.onset + notes.duration - last
    snapped = (2 * after + step) // (2 * step) * step + last - notes.onset
    beyond = after > song.bar_ticks[-1] - last
    columns = notes.columns() | {"duration": np.where(beyond, snapped, notes.duration)}
    return replace(song, notes=NoteTable(**columns))


def _keep(song: Song, known: NDArray[np.bool_]) -> Song:
    """The song without the notes that the vocabulary does not have; trailing bars go."""
    notes = song.notes.select(known)
    last = int(notes.onset.max())
    n_bars = int(np.searchsorted(song.bar_ticks, last, side="right"))
    inside = song.tempo_ticks <= last
    repairs = song.repairs | {"notes outside the vocabulary": int((~known).sum())}
    return replace(
        song,
        notes=notes,
        bar_ticks=song.bar_ticks[: n_bars + 1],
        meters=song.meters[:n_bars],
        tempo_ticks=song.tempo_ticks[inside],
        tempo_qpm=song.tempo_qpm[inside],
        repairs=repairs,
        file_seconds=song.file_seconds[: n_bars + 1],
    )
