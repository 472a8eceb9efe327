"""Octuple (Zeng et al. 2021, MusicBERT) with MidiTok's ids, without its loops."""

from __future__ import annotations

import miditok
import numpy as np

from midigenre.midi.song import Song
from midigenre.tokenizers.fast_columns import Ids, Longs, Lookups, Moments


class FastOctuple:
    """One step a note, with its bar's number and meter and the tempo in force.

    The order is that of the notes; see ``miditok.Octuple._add_time_events``.
    """

    def __init__(self, tok: miditok.MusicTokenizer) -> None:
        self.look = Lookups(tok)
        self._column: dict[str, int] = dict(tok.vocab_types_idx)
        self._n_fields = len(tok.vocab)
        self._bar_ids = self.look.numbered("Bar")

    def write(self, song: Song) -> tuple[Ids, Longs]:
        """The stream, shape (T, F), and the first step of each bar, shape (bars,)."""
        look = self.look
        ids_TF = np.empty((len(song.notes), self._n_fields), np.uint16)
        bar_at: Longs = np.searchsorted(song.notes.onset, song.bar_ticks[:-1])
        if len(ids_TF) == 0:
            return ids_TF, bar_at
        moments = Moments.of(song, tempi=False, meters=False)
        positions = moments.positions(song, look.step_ticks(song))
        bar = self._bar_ids.take(np.arange(song.n_bars), mode="clip")
        columns = {
            "Pitch": look.pitch(song),
            "Position": look.position_ids.take(positions, mode="clip").repeat(moments.n_notes),
            "Bar": bar.take(moments.bar_of_note),
        }
        if look.velocities:
            columns["Velocity"] = look.velocity(song)
        if look.durations:
            columns["Duration"] = look.duration(song, moments.bar_of_note)
        if look.programs:
            columns["Program"] = look.program(song)
        if look.tempi:
            change = np.searchsorted(song.tempo_ticks, song.notes.onset, side="right") - 1
            columns["Tempo"] = look.tempo(song).take(change)
        if look.meters:
            columns["TimeSig"] = look.meter(song).take(moments.bar_of_note)
        for name, ids in columns.items():
            ids_TF[:, self._column[name]] = ids
        return ids_TF, bar_at
