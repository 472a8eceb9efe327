"""``midigenre inspect``: one song's tokens in words, its phrases, as MIDI and piano roll."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from midigenre.build import make_tokenizer
from midigenre.commands.console import console
from midigenre.data.phrases import PhraseReader, consecutive, phrase_length
from midigenre.data.sandbox import FileReader
from midigenre.data.shards import MemorySongs, ShardSet, SongSource
from midigenre.errors import RefusedSongError, UserError
from midigenre.evaluation.figures import save
from midigenre.evaluation.figures.piano_roll import piano_roll_figure
from midigenre.files import safe_name, write_bytes
from midigenre.midi.song import Song
from midigenre.spec import TokenSpec
from midigenre.tokenizers.base import Tokenizer, from_spec
from midigenre.wording import plural


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Prints the tokens of a phrase on stdout, one step a line, and what it knows on stderr.

    Raises:
        UserError: Neither shards nor a file is given, or there is no such song or phrase.
    """
    songs: SongSource
    tokenizer: Tokenizer
    if cfg.path is not None:
        shards = ShardSet(Path(cfg.path))
        index = 0 if cfg.song is None else shards.index_of(str(cfg.song))
        row = shards.manifest[index]
        labels = ", ".join(f"{k} {row[k]}" for k in shards.labels.classes if row[k])
        title = f"{row['song_id']} ({labels}; {row['split']})"
        songs, tokenizer = shards, from_spec(shards.tokens)
    elif len(paths) == 1:
        path = Path(paths[0])
        with FileReader() as reader:
            tokenizer = make_tokenizer(cfg)
            try:
                read = reader.read(path, tokenizer.spec)
            except RefusedSongError as error:
                raise UserError(f"{path}: {error}") from error
        songs, index, title = MemorySongs([read]), 0, path.name
    else:
        raise UserError("give path=SHARDS [song=ID], or one MIDI file: inspect tokenizer=T -- FILE")
    _show(songs, index, title, tokenizer, cfg)


def _show(songs: SongSource, index: int, title: str, tokenizer: Tokenizer, cfg: DictConfig) -> None:
    spec: TokenSpec = tokenizer.spec
    song = songs.song(index)
    phrases = consecutive(songs, np.array([index]), phrase_length(cfg.data, spec))
    reader = PhraseReader(songs, spec, cfg.data.max_tokens)
    lengths = reader.lengths(phrases)
    meters = ", ".join(f"{n}/{d} at tick {t}" for t, n, d in song.time_signatures())
    console.print(title, style="bold", markup=False, highlight=False)
    console.print(
        f"{plural(song.n_bars, 'bar')}, {plural(len(song.notes), 'note')}, "
        f"{song.file_seconds[-1]:.2f} s, "
        f"{plural(len(songs.encoded(index).ids_TF), f'{spec.name} step')} of "
        f"{plural(len(spec.fields), 'field')}, {song.tpq} ticks a quarter\n"
        f"meter {meters}\n"
        f"tempo {', '.join(f'{q:g} at tick {t}' for t, q in _tempi(song)[:8])}"
        f"{' ...' if len(song.tempo_ticks) > 8 else ''}",
        markup=False, highlight=False,
    )  # fmt: skip
    if song.repairs:
        console.print(", ".join(f"{n} {what}" for what, n in song.repairs.items()))
    at = song.file_seconds
    for i, (first, end) in enumerate(zip(phrases.first, phrases.end, strict=True)):
        console.print(
            f"phrase {i}: bars {first + 1} to {end}, {at[first]:.2f} to {at[end]:.2f} s, "
            f"{plural(int(lengths[i]), 'step')}"
            + (", cut by data.max_tokens" if lengths[i] >= cfg.data.max_tokens else ""),
            markup=False, highlight=False,
        )  # fmt: skip
    if not 0 <= cfg.phrase < len(phrases):
        raise UserError(f"phrase={cfg.phrase}: this song has phrases 0 to {len(phrases) - 1}")
    row, first, end = (int(c[cfg.phrase]) for c in (phrases.song, phrases.first, phrases.end))
    ids, end = reader(row, first, end)
    for word in spec.words(ids):
        print(word)
    if cfg.out is not None:
        out = Path(cfg.out)
        out.mkdir(parents=True, exist_ok=True)
        name = f"{safe_name(title.split(' (')[0])}-phrase{cfg.phrase}"
        write_bytes(out / f"{name}.mid", tokenizer.decode(ids).dumps_midi())
        music = song.bars(first, end)
        figure = piano_roll_figure(
            music.notes,
            music.bar_ticks,
            music.tpq,
            title,
            song.file_seconds[first : end + 1],
            first_bar=first,
        )
        save(figure, out / f"{name}.png")
        console.print(f"wrote {out / name}.mid and {out / name}.png", markup=False, highlight=False)


def _tempi(song: Song) -> list[tuple[int, float]]:
    ticks, qpm = song.tempo_ticks, song.tempo_qpm
    return list(zip(ticks.tolist(), qpm.tolist(), strict=True))
