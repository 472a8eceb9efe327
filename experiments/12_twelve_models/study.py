"""Twelve corpora, twelve models: one small decoder each, what it has learned and what it plays.

    python experiments/12_twelve_models/study.py                          # all twelve
    python experiments/12_twelve_models/study.py --replace rock=DIR       # real files for a corpus
    python experiments/12_twelve_models/study.py --rebuild-page           # from the samples there

The source's decoder (128 wide, 3 layers, 4 heads, 256 steps of its 291 tokens, Adam under a cosine,
1,200 updates) is trained on each corpus alone. Then it plays ``--bars`` at temperature 0.9, of the
40 likeliest tokens: 15 bars are half a minute, for its tokens know one meter and one tempo. A run
that has ended is not trained again, one that was stopped resumes (``--out``, where ``page.html`` is
written too: one file, to open or to send). The scores go to ``results/models.json``, the twelve
piano rolls to ``results/rolls.png``, the first sample of each to ``samples/``.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from midigenre.corpora.twelve import REAL
from midigenre.evaluation.compare import markdown_table
from midigenre.evaluation.figures import BLUE, FAINT, GRID, INK, RED, new_figure, save, small_axes
from midigenre.files import read_json, write_bytes, write_csv, write_json
from midigenre.midi.clean import clean
from midigenre.midi.read import read_score
from midigenre.midi.song import Grid, Song

sys.path.append(str(Path(__file__).parents[1]))
from quietly import midigenre, side_by_side, training

HERE = Path(__file__).parent
RESULTS, SAMPLES = HERE / "results", HERE / "samples"
CORPORA: Mapping[str, str] = {
    "bach": "Four-part chorales by Johann Sebastian Bach.",
    "palestrina": "Mass movements by Giovanni Pierluigi da Palestrina: Renaissance polyphony.",
    "trecento": "Songs of fourteenth-century Italy, two or three voices.",
    "ryansMammoth": "Fiddle tunes from Ryan's Mammoth Collection, one line.",
    "monteverdi": "Madrigals by Claudio Monteverdi, five voices.",
    "beethoven": "String quartets by Ludwig van Beethoven.",
    "essenFolksong": "Folk songs of the Essen collection, one line.",
    "atonal": "Synthesised: twelve-tone music, voices that run through forms of one row.",
    "metal": "Synthesised: riffs of power chords over a low muted string.",
    "rock": "Synthesised: strummed triads, a driving bass, a melody off the beat.",
    "pop": "Synthesised: four chords and their rotations under a high melody in eighths.",
    "rap": "Synthesised: a drum loop with a sparse bass, at times a short sample.",
}
MODEL = (
    "task=generate", "task.conditions=[]", "tokenizer=midilike291", "model=tiny",
    "model.conv_width=0", "model.dropout=0.1", "data.max_tokens=256", "data.batch_phrases=8",
    "optim=adamw", "optim.lr=1e-3", "optim.weight_decay=0", "optim.betas=[0.9,0.999]",
    "callbacks.early_stopping=null", "callbacks.samples=null",
)  # fmt: skip
"""The source's decoder and optimizer; its rate and batch are not given."""


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CORPORA, default=list(CORPORA))
    parser.add_argument("--replace", action="append", default=[], metavar="NAME=DIR",
                        help="a folder of MIDI files in the place of a corpus")  # fmt: skip
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--bars", type=int, default=15, help="of a sample; two seconds each")
    parser.add_argument("--jobs", type=int, help="models at a time; default: one a core")
    parser.add_argument("--out", type=Path, default=Path("runs/12_twelve_models"))
    parser.add_argument("--rebuild-page", action="store_true", help="page and figure alone")
    args = parser.parse_args()
    replaced = {}
    for given in args.replace:
        name, _, folder = given.partition("=")
        if name not in CORPORA or not Path(folder).is_dir():
            parser.error(f"--replace {given}: write NAME=DIR, NAME one of {', '.join(CORPORA)}")
        replaced[name] = Path(folder)
    if not args.rebuild_page:
        study(args.only, replaced, args.steps, args.bars, args.out, args.jobs)
    done = [name for name in args.only if (args.out / name / "samples" / "samples.json").is_file()]
    if not done:
        parser.error(f"{args.out} has no sample yet: run the study without --rebuild-page")
    found = {name: result(args.out / name) for name in done}
    write_json(RESULTS / "models.json", found)
    songs = {name: sample(args.out / name)[1] for name in done}
    save(rolls(songs), RESULTS / "rolls.png")
    SAMPLES.mkdir(exist_ok=True)
    for name in done:
        shutil.copyfile(sample(args.out / name)[0], SAMPLES / f"{name}.mid")
    print(table(found))
    print(write_page(args.out, found, songs))


def study(
    names: Sequence[str],
    replaced: Mapping[str, Path],
    steps: int,
    bars: int,
    out: Path,
    jobs: int | None = None,
) -> None:
    """Trains and plays what is missing."""

    def one(name: str) -> None:
        run, samples = out / name, out / name / "samples"
        begin = [*MODEL, f"trainer.max_steps={steps}", *clock(steps)]
        begin += songs_of(name, replaced.get(name), out)
        if (given := training(run, begin)) is not None:
            midigenre("train", *given)
        if not (samples / "samples.json").is_file():  # the last thing that it writes
            midigenre("generate", f"run={run}", f"out={samples}", "n=2", f"bars={bars}",
                      "temperature=0.9", "top_k=40", "audio=mp3")  # fmt: skip

    side_by_side("models", [partial(one, name) for name in names], jobs)


def clock(steps: int) -> list[str]:
    """Training for a number of updates, with twelve validations."""
    return ["trainer.max_epochs=-1", "trainer.check_val_every_n_epoch=null",
            f"trainer.val_check_interval={max(1, steps // 12)}"]  # fmt: skip


def songs_of(name: str, folder: Path | None, out: Path) -> list[str]:
    """What ``midigenre train`` is told of the songs of one corpus, or of a folder in its place."""
    if folder is None:
        return ["corpus=twelve", *(f"labels.map.genre.{o}=null" for o in CORPORA if o != name)]
    table_path = out / f"{name}.csv"
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".mid", ".midi"))
    rows = [{"path": str(path.resolve()), "genre": name} for path in files]
    write_csv(table_path, rows, ["path", "genre"])
    return ["corpus=manifest", f"corpus.path={table_path}", "tokenizer.tracks=merged",
            "tokenizer.neutral=true", "labels.min_songs=1"]  # fmt: skip


def result(run: Path) -> dict[str, Any]:
    """Held-out scores of a model, and what it cost."""
    of = read_json(run / "evaluation.json")["tokens"]
    cost, steps = read_json(run / "cost.json"), read_json(run / "metrics.json")["steps"]
    return {
        "loss": of["loss"],
        "accuracy": of["accuracy"],
        "nats_per_note": of["nats_per_note"],
        "ci95": of["ci95"]["nats_per_note"],
        "notes": of["n_notes"],
        "steps": steps,
        "parameters": cost["parameters"],
        "seconds": cost["fit_seconds"],
    }


def played(run: Path) -> list[dict[str, Any]]:
    """What ``samples.json`` says of the samples that have a note."""
    pieces = read_json(run / "samples" / "samples.json")["pieces"]
    if not (there := [piece for piece in pieces if piece["notes"]]):
        sys.exit(f"{run}: no sample has a note; train it for longer (--steps)")
    return there


def sample(run: Path) -> tuple[Path, Song]:
    """The first sample's file, and its music."""
    path = run / "samples" / played(run)[0]["midi"]
    return path, clean(read_score(path.read_bytes()), Grid())


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Held-out loss and nats per note of each model."""
    header = ["", "nats per step", "token accuracy", "nats per note", "updates", "minutes"]
    lines = [
        [name, f"{of['loss']:.3f}", f"{of['accuracy']:.3f}",
         f"{of['nats_per_note']:.3f} [{of['ci95'][0]:.3f}, {of['ci95'][1]:.3f}]",
         f"{of['steps']:,}", f"{of['seconds'] / 60:.1f}"]
        for name, of in found.items()
    ]  # fmt: skip
    return markdown_table(header, lines, 1)


def rolls(songs: Mapping[str, Song]) -> Figure:
    """The first sample of each model as a piano roll, by seconds."""
    columns = min(4, len(songs))
    rows = -(-len(songs) // columns)
    figure = new_figure(3.6 * columns, 2.2 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (name, song) in zip(grid, songs.items(), strict=False):
        small_axes(axes, name)
        _draw(axes, name, song)
    for axes in grid[len(songs) :]:
        axes.set_visible(False)
    figure.supxlabel("seconds", fontsize=9, color=INK)
    figure.supylabel("pitch", fontsize=9, color=FAINT)
    return figure


def _draw(axes: Axes, name: str, song: Song) -> None:
    seconds = 60 / float(song.tempo_qpm[0]) / song.tpq  # of a tick: these have one tempo
    begin = song.notes.onset * seconds
    end = begin + song.notes.duration * seconds
    color = BLUE if name in REAL else RED
    axes.hlines(song.notes.pitch, begin, end, color=color, linewidth=1.6)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))


def _roll(name: str, song: Song) -> Figure:
    """A sample's piano roll for the page, whose card has the title."""
    figure = new_figure(6.4, 2.4)
    axes = figure.subplots()
    _draw(axes, name, song)
    axes.tick_params(length=0, colors=INK, labelsize=8)
    axes.set_xlabel("seconds", fontsize=8, color=FAINT)
    axes.set_ylabel("pitch", fontsize=8, color=FAINT)
    return figure


def write_page(
    out: Path, found: Mapping[str, Mapping[str, Any]], songs: Mapping[str, Song]
) -> Path:
    """The page: of each corpus its description, players, piano roll and figures."""
    shown = []
    for name, of in found.items():
        folder = out / name / "samples"
        pieces = played(out / name)
        shown.append({
            "name": name,
            "about": CORPORA[name],
            "roll": _data(save(_roll(name, songs[name]), out / name / "roll.png"), "image/png"),
            "sounds": [_data(folder / piece["audio"], "audio/mpeg") for piece in pieces],
            "sample_notes": len(songs[name].notes),
            **of,
        })  # fmt: skip
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined
    )
    html = environment.get_template("page.html").render(models=shown)
    write_bytes(out / "page.html", html.encode())
    return out / "page.html"


def _data(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


if __name__ == "__main__":
    main()
