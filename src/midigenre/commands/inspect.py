"""``midigenre inspect``: one song's tokens in words, its phrases, as MIDI and piano roll."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from midigenre.build import make_tokenizer
from midigenre.commands.console import console
from midigenre.data.phrases import MemorySongs, PhraseReader, SongSource, consecutive, phrase_length
from midigenre.data.sandbox import FileReader
from midigenre.data.shards import ShardSet
from midigenre.errors import RejectedSongError, UserError
from midigenre.evaluation.figures import save
from midigenre.evaluation.figures.piano_roll import piano_roll_figure
from midigenre.files import safe_name, write_bytes
from midigenre.tokenizers.base import Tokenizer, from_spec
from midigenre.wording import plural


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Prints the tokens of a phrase on stdout, one step per line, and the song's data on stderr.

    Raises:
        UserError: Neither shards nor a file is given, or there is no such song or phrase.
    """
    if cfg.path is None and len(paths) != 1:
        raise UserError("give path=SHARDS [song=ID], or one MIDI file: inspect tokenizer=T -- FILE")
    songs: SongSource
    tokenizer: Tokenizer
    if cfg.path is not None:
        songs = shards = ShardSet(Path(cfg.path))
        index = 0 if cfg.song is None else shards.index_of(str(cfg.song))
        about = shards.manifest[index]
        labels = ", ".join(f"{k} {about[k]}" for k in shards.labels.classes if about[k])
        title = f"{about['song_id']} ({labels}; {about['split']})"
        tokenizer = from_spec(shards.tokens)
    else:
        tokenizer, title, index = make_tokenizer(cfg), Path(paths[0]).name, 0
        with FileReader() as files:
            try:
                songs = MemorySongs([files.read(Path(paths[0]), tokenizer.spec)])
            except RejectedSongError as error:
                raise UserError(f"{paths[0]}: {error}") from error
    spec, song = tokenizer.spec, songs.song(index)
    phrases = consecutive(songs, np.array([index]), phrase_length(cfg.data, spec))
    read = PhraseReader(songs, spec, cfg.data.max_tokens)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    meters = ", ".join(f"{n}/{d} at tick {t}" for t, n, d in song.time_signatures())
    tempi = [
        f"{qpm:g} at tick {tick}"
        for tick, qpm in zip(song.tempo_ticks.tolist(), song.tempo_qpm.tolist(), strict=True)
    ]
    at = song.file_seconds
    console.print(title, style="bold", markup=False, highlight=False)
    say(
        f"{plural(song.n_bars, 'bar')}, {plural(len(song.notes), 'note')}, {at[-1]:.2f} s, "
        f"{plural(len(songs.encoded(index).ids_TF), f'{spec.name} step')} of "
        f"{plural(len(spec.fields), 'field')}, {song.tpq} ticks per quarter"
    )
    say(f"meter {meters}")
    say(f"tempo {', '.join(tempi[:8])}{' ...' if len(tempi) > 8 else ''}")
    if song.repairs:
        say(", ".join(f"{n} {what}" for what, n in song.repairs.items()))
    bars = list(zip(phrases.first.tolist(), phrases.end.tolist(), strict=True))
    for i, ((first, end), length) in enumerate(zip(bars, read.lengths(phrases), strict=True)):
        say(
            f"phrase {i}: bars {first + 1} to {end}, {at[first]:.2f} to {at[end]:.2f} s, "
            f"{plural(int(length), 'step')}"
            + (", cut by data.max_tokens" if length >= cfg.data.max_tokens else "")
        )
    if not 0 <= cfg.phrase < len(bars):
        raise UserError(f"phrase={cfg.phrase}: this song has phrases 0 to {len(bars) - 1}")
    first, end = bars[cfg.phrase]
    ids, end = read(index, first, end)
    print("\n".join(spec.words(ids)))
    if cfg.out is None:
        return
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    name = f"{safe_name(title.split(' (')[0])}-phrase{cfg.phrase}"
    write_bytes(out / f"{name}.mid", tokenizer.decode(ids).dumps_midi())
    music, seconds = song.bars(first, end), at[first : end + 1]
    figure = piano_roll_figure(
        music.notes, music.bar_ticks, music.tpq, title, seconds, first_bar=first
    )
    save(figure, out / f"{name}.png")
    say(f"wrote {out / name}.mid and {out / name}.png")
