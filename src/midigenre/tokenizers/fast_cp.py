"""Compound Word (Hsiao et al. 2021) with MidiTok's ids, without its loops."""

from __future__ import annotations

import miditok
import numpy as np

from midigenre.midi.song import Song
from midigenre.tokenizers.fast_columns import Ids, Longs, Lookups, Moments


class FastCPWord:
    """A step for each bar, for each moment (its position and the tempo in force) and each note.

    The order is that of ``miditok.CPWord._add_time_events``; see :mod:`.fast_remi`.
    """

    def __init__(self, tok: miditok.MusicTokenizer) -> None:
        self.look = Lookups(tok)
        self._column: dict[str, int] = dict(tok.vocab_types_idx)
        blank = [vocabulary.get("Ignore_None", 0) for vocabulary in tok.vocab]
        (self._bar_id,) = self.look.ids_of("Bar", ["None"])
        metric, self._note_id = self.look.ids_of("Family", ["Metric", "Note"])
        blank[self._column["Family"]] = int(metric)
        self._blank = np.array(blank, np.uint16)

    def write(self, song: Song) -> tuple[Ids, Longs]:
        """The stream, shape (T, F), and the step of each bar in it, shape (bars,)."""
        look = self.look
        moments = Moments.of(song, tempi=look.tempi, meters=look.meters)
        places = moments.places(note=1, bar=1, tempo=0)
        bar_at, moment_at, note_at = places.bars, places.moments, places.notes
        # By column, which is written and read in one piece, and turned at the end.
        ids_FT = np.repeat(self._blank[:, None], places.n_steps, axis=1)

        def put(type_: str, at: Longs, ids: Ids | np.uint16) -> None:
            ids_FT[self._column[type_]][at] = ids

        put("Bar", bar_at, self._bar_id)
        if look.meters:
            put("TimeSig", bar_at, look.meter(song)[: len(bar_at)])
        positions = moments.positions(song, look.step_ticks(song))
        put("Position", moment_at, look.position_ids.take(positions, mode="clip"))
        if look.tempi:
            changes = np.zeros(len(moment_at), np.int64)
            changes[moments.tempo_at] = 1
            put("Tempo", moment_at, look.tempo(song).take(np.cumsum(changes) - 1))
        put("Family", note_at, self._note_id)
        put("Pitch", note_at, look.pitch(song))
        if look.velocities:
            put("Velocity", note_at, look.velocity(song))
        if look.durations:
            put("Duration", note_at, look.duration(song, moments.bar_of_note))
        if look.programs:
            put("Program", note_at, look.program(song))
        return np.ascontiguousarray(ids_FT.T), bar_at
