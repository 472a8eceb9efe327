"""Which bars make a phrase, and its tokens.

The same for every tokenizer: a phrase is ``phrase_bars`` consecutive bars with at least one onset;
a shorter last phrase is kept; a song shorter than a phrase is one phrase. With
``phrase_seconds`` the number of bars follows the tempo: as many whole bars as come nearest to it.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from midigenre.arrays import Floats, Ints, Keys, Longs
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.midi.song import Song
from midigenre.spec import TokenSpec
from midigenre.tokenizers.base import Encoded, Tokenizer, from_spec, phrase_cutter


@dataclass(frozen=True, eq=False)
class MemorySongs:
    """Songs that were just read and encoded, with the methods of :class:`ShardSet`."""

    songs: Sequence[tuple[Song, Encoded]]

    def __len__(self) -> int:
        return len(self.songs)

    def encoded(self, index: int) -> Encoded:
        """Tokens of a song."""
        return self.songs[index][1]

    def song(self, index: int) -> Song:
        """Notes of a song."""
        return self.songs[index][0]

    def bar_onsets(self, index: int) -> Ints:
        """Note onsets in each bar of a song."""
        return self.songs[index][0].onsets_per_bar()

    def bar_seconds(self, index: int) -> Floats:
        """See :meth:`midigenre.midi.song.Song.bar_seconds`."""
        return self.songs[index][0].bar_seconds()


SongSource: TypeAlias = ShardSet | MemorySongs
"""What phrases are cut from: shards, or files that were just read."""


@dataclass(frozen=True)
class Phrases:
    """Phrases as columns of shape (n,): song index, first bar, bar after the last.

    ``key`` is what an augmented phrase's changes are drawn from, 0 for one that stays as it is;
    None where none is changed, as in evaluation.
    """

    song: Longs
    first: Longs
    end: Longs
    key: Keys | None = None

    def __len__(self) -> int:
        return len(self.song)

    def select(self, chosen: NDArray[Any] | slice) -> Phrases:
        """The chosen ones."""
        key = None if self.key is None else self.key[chosen]
        return Phrases(self.song[chosen], self.first[chosen], self.end[chosen], key)

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Song, first bar and end of each phrase, as :class:`PhraseReader` takes them."""
        return zip(self.song.tolist(), self.first.tolist(), self.end.tolist(), strict=True)


@dataclass(frozen=True)
class Seconds:
    """A phrase's length in seconds, by the song's tempi as its tokenizer keeps them.

    Neutral songs and vocabularies without tempi have one tempo, 120 quarter notes per minute.

    Attributes:
        seconds: A phrase has the whole bars, at least one, that come nearest to it (of two equally
            near numbers of bars the smaller one).
        max_bars: Most bars of a phrase that the vocabulary can number.
    """

    seconds: float
    max_bars: int


PhraseLength = int | Seconds
"""Length of a phrase: a number of bars, or :class:`Seconds`."""

Change = Callable[[Song], Song]
"""Changes the notes of a phrase; it leaves one at least, and never makes more bars."""


def phrase_length(data: Mapping[str, Any], tokens: TokenSpec) -> PhraseLength:
    """The length that ``data.phrase_bars`` or ``data.phrase_seconds`` sets.

    Raises:
        UserError: Both or none are set, or the one is out of range; the vocabulary bounds it.
    """
    bars, seconds = data["phrase_bars"], data["phrase_seconds"]
    if (bars is None) == (seconds is None):
        given = [f"data.{k}={'null' if v is None else v}"
                 for k, v in (("phrase_bars", bars), ("phrase_seconds", seconds))]  # fmt: skip
        raise UserError(f"{' and '.join(given)}: set exactly one of them and the other to null")
    if seconds is not None:
        if not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
            raise UserError(f"data.phrase_seconds must be above 0, got {seconds}")
        return Seconds(float(seconds), tokens.max_bars)
    if not isinstance(bars, int) or not 1 <= bars <= tokens.max_bars:
        raise UserError(
            f"data.phrase_bars must lie in 1 to {tokens.max_bars} (tokenizer.max_bars), got {bars}"
        )
    return bars


def length_settings(length: PhraseLength) -> dict[str, int | float | None]:
    """The two settings of a length; the inverse of :func:`phrase_length`."""
    if isinstance(length, Seconds):
        return {"phrase_bars": None, "phrase_seconds": length.seconds}
    return {"phrase_bars": length, "phrase_seconds": None}


def phrase_ends(songs: SongSource, row: int, length: PhraseLength) -> tuple[Longs, Longs]:
    """Where the phrases of a song end.

    Returns:
        For each bar the bar after the phrase that would start there, shape (bars,). It may lie
        after the song's last bar, as if bars like that one followed: such a phrase is cut short by
        the end of the song. And the first bars of the phrases that lie end to end.
    """
    if isinstance(length, Seconds):
        edges = songs.bar_seconds(row)
        bars = np.arange(len(edges) - 1)
        more = np.arange(1, length.max_bars + 1) * (edges[-1] - edges[-2])
        wanted = edges[:-1] + length.seconds
        edges = np.r_[edges, edges[-1] + more]
        after = np.minimum(np.searchsorted(edges, wanted), len(edges) - 1)
        before = after - 1
        nearest = np.where(wanted - edges[before] <= edges[after] - wanted, before, after)
        ends: Longs = np.clip(nearest, bars + 1, bars + length.max_bars)
    else:
        ends = np.arange(len(songs.bar_onsets(row))) + length
    starts, bar, following = [], 0, ends.tolist()
    while bar < len(following):
        starts.append(bar)
        bar = following[bar]
    return ends, np.array(starts, np.int64)


def consecutive(songs: SongSource, rows: Longs, length: PhraseLength) -> Phrases:
    """All non-overlapping phrases of the songs ``rows``, in order."""
    # Numbers side by side: three small arrays for each of a hundred thousand songs take 100 MB.
    song, first, end = array("q"), array("q"), array("q")
    for row in rows.tolist():
        total = np.r_[0, np.cumsum(songs.bar_onsets(row))]
        _, starts = phrase_ends(songs, row, length)
        ends = np.r_[starts[1:], len(total) - 1][: len(starts)]
        filled = total[ends] > total[starts]
        song.extend([row] * int(filled.sum()))
        first.extend(starts[filled].tolist())
        end.extend(ends[filled].tolist())
    columns = [np.frombuffer(column, np.int64) for column in (song, first, end)]
    return Phrases(columns[0], columns[1], columns[2])


def at_most(phrases: Phrases, per_song: int) -> Phrases:
    """At most this many phrases of each song, evenly spaced; phrases of a song are contiguous."""
    _, begin, counts = np.unique(phrases.song, return_index=True, return_counts=True)
    order = np.argsort(begin)
    n = np.repeat(counts[order], counts[order])
    place = np.arange(len(phrases)) - np.repeat(begin[order], counts[order])
    wanted = np.minimum(n, per_song)
    return phrases.select((place + 1) * wanted // n > place * wanted // n)


class PhraseReader:
    """Tokens of phrases: slices where the tokenizer allows it, else encoded from the notes.

    Args:
        songs: Where the songs are.
        spec: Their token spec.
        max_tokens: Longest phrase in steps, marks included; longer ones end at the last whole bar
            that fits.
        marks: Whether a phrase that begins its song has BOS before it, and one that ends its song
            EOS after it.

    Raises:
        UserError: ``marks`` with a vocabulary that has no BOS or EOS, or with no room for both.
    """

    def __init__(
        self, songs: SongSource, spec: TokenSpec, max_tokens: int | None = None, marks: bool = False
    ) -> None:
        self.songs, self.spec, self.max_tokens, self.marks = songs, spec, max_tokens, marks
        if marks:
            bos, eos = spec.special("BOS"), spec.special("EOS")
            if bos is None or eos is None:
                raise UserError(
                    f"data.marks=true needs BOS and EOS, which tokenizer {spec.name!r} lacks; add "
                    "them to tokenizer.special_tokens and prepare again"
                )
            if max_tokens is not None and max_tokens < 3:
                raise UserError(f"data.max_tokens={max_tokens} leaves no room for BOS and EOS")
            self._marks = np.array([bos], np.int64), np.array([eos], np.int64)
        self._cutter = phrase_cutter(spec)
        self._tokenizer: Tokenizer | None = None

    def __call__(
        self, song: int, first: int, end: int, change: Change | None = None
    ) -> tuple[Longs, int]:
        """Token ids of bars ``first`` to ``end``, int64 (T, F), and the bar at which they end.

        ``change`` changes the phrase before it is encoded, which is slower than a slice.
        """
        begins = ends = False
        if self.marks:
            n_bars = len(self.songs.bar_onsets(song))
            begins, ends = first == 0, end == n_bars
        room = None if self.max_tokens is None else self.max_tokens - begins - ends
        if self._cutter is None or change is not None:
            ids, stop = self._encode(song, first, end, room, change)
        else:
            encoded = self.songs.encoded(song)
            stream = (encoded.ids_TF, encoded.bar_steps, encoded.bar_tempo)
            ids, stop = self._cutter.cut(*stream, first, end, room)
            if stop < end:
                onsets = self.songs.bar_onsets(song)[first:end]
                if not onsets[: stop - first].any():
                    # Empty bars before one that does not fit: that one is cut inside.
                    stop = first + int(np.flatnonzero(onsets)[0]) + 1
                    ids = self._cutter.cut(*stream, first, stop)[0][:room]
        if begins or ends:
            bos, eos = self._marks
            # A bar that is too long by itself is cut inside: no EOS.
            whole = stop == end and (room is None or len(ids) < room)
            ids = np.concatenate([bos] * begins + [ids] + [eos] * (ends and whole))
        return ids, stop

    def _encode(
        self, song: int, first: int, end: int, room: int | None, change: Change | None
    ) -> tuple[Longs, int]:
        if self._tokenizer is None:
            self._tokenizer = from_spec(self.spec)
        music = self.songs.song(song)
        for stop in range(end, first, -1):
            phrase = music.bars(first, stop)
            if len(phrase.notes) == 0:
                stop += 1
                break
            phrase = phrase if change is None else change(phrase)
            ids = self._tokenizer.encode(phrase).ids_TF.astype(np.int64)
            if room is None or len(ids) <= room:
                return ids, stop
        return ids[:room], stop

    def lengths(self, phrases: Phrases) -> Longs:
        """Steps of each phrase, for planning batches.

        Exact but for the two steps that may restate the tempo; where phrases are not slices, an
        estimate from the number of notes.
        """
        out = np.zeros(len(phrases.song), np.int64)
        order = np.argsort(phrases.song, kind="stable")
        edges = np.flatnonzero(np.diff(phrases.song[order])) + 1
        for chosen in np.split(order, edges) if len(order) else ():
            song = int(phrases.song[chosen[0]])
            first, end = phrases.first[chosen], phrases.end[chosen]
            encoded = self.songs.encoded(song)
            if self._cutter is not None:
                steps = encoded.bar_steps
            else:
                notes = np.r_[0, np.cumsum(self.songs.bar_onsets(song))]
                steps = np.ceil(notes * (len(encoded.ids_TF) / max(1, notes[-1])))
            out[chosen] = steps[end] - steps[first]
            if self.marks:
                out[chosen] += (first == 0) + (end == len(self.songs.bar_onsets(song)))
        return np.minimum(out, self.max_tokens) if self.max_tokens else out
