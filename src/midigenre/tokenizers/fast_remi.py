"""REMI (Huang and Yang 2020, "Pop Music Transformer") with MidiTok's ids, without its loops."""

from __future__ import annotations

import miditok
import numpy as np

from midigenre.midi.song import Song
from midigenre.tokenizers.fast_columns import Ids, Longs, Lookups, Moments


class FastREMI:
    """``Bar TimeSig`` for a bar, ``Position`` for a moment, then its ``Tempo`` and its notes.

    A note is ``Program Pitch Velocity Duration``; what the vocabulary does not have is left out.
    The order is that of ``miditok.REMI._add_time_events`` on events sorted by time, in which a
    stable sort leaves meters before tempi before notes, and notes by track.
    """

    def __init__(self, tok: miditok.MusicTokenizer) -> None:
        self.look = Lookups(tok)
        (self._bar_id,) = self.look.ids_of("Bar", ["None"])

    def write(self, song: Song) -> tuple[Ids, Longs]:
        """The stream, shape (T, 1), and the step of each bar in it, shape (bars,)."""
        look = self.look
        moments = Moments.of(song, tempi=look.tempi, meters=look.meters)
        columns: dict[str, Ids] = {}
        if look.programs:
            columns["Program"] = look.program(song)
        columns["Pitch"] = look.pitch(song)
        if look.velocities:
            columns["Velocity"] = look.velocity(song)
        if look.durations:
            columns["Duration"] = look.duration(song, moments.bar_of_note)

        places = moments.places(note=len(columns), bar=1 + look.meters, tempo=int(look.tempi))
        bar_at, moment_at = places.bars, places.moments
        ids = np.empty(places.n_steps, np.uint16)
        is_note = np.ones(places.n_steps, bool)
        ids[bar_at] = self._bar_id
        is_note[bar_at] = False
        if look.meters:
            ids[bar_at + 1] = look.meter(song)[: len(bar_at)]
            is_note[bar_at + 1] = False
        positions = moments.positions(song, look.step_ticks(song))
        is_note[moment_at] = False
        ids[moment_at] = look.position_ids.take(positions, mode="clip")
        if look.tempi:
            ids[moment_at.take(moments.tempo_at) + 1] = look.tempo(song)
            is_note[moment_at.take(moments.tempo_at) + 1] = False
        # What is left are the notes, in their order: faster than to compute a place for each token.
        notes = np.empty((len(song.notes), len(columns)), np.uint16)
        for i, column in enumerate(columns.values()):
            notes[:, i] = column
        ids[is_note] = notes.ravel()
        return ids[:, None], bar_at
