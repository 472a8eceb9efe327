"""``midigenre judge``: does the condition do anything, is the music any good, was it copied?"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.markup import escape
from rich.table import Table
from symusic.core import ScoreTick

from midigenre import __version__
from midigenre.arrays import Longs
from midigenre.build import plain
from midigenre.commands.console import console, progress_bars
from midigenre.commands.generate import (
    check_audio,
    conditions_of,
    make_sampler,
    sampling_settings,
    write_piece,
)
from midigenre.corpora.base import Progress
from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.phrases import Phrases, consecutive
from midigenre.data.shards import ShardSet
from midigenre.errors import RefusedSongError, UserError
from midigenre.evaluation.figures import save
from midigenre.evaluation.figures.heat_map import confusion_figure
from midigenre.evaluation.music.control import (
    Independence,
    Verdicts,
    control,
    equal_mix,
    independence,
    main_label,
    plan,
    shuffled,
)
from midigenre.evaluation.music.descriptors import describe_all
from midigenre.evaluation.music.distance import compare_sets, frechet
from midigenre.evaluation.music.figures import overlap_figure, repetition_figure, similarity_figure
from midigenre.evaluation.music.novelty import TrainingMusic, novelty_report
from midigenre.evaluation.music.structure import mean_structure, self_similarity, structure
from midigenre.files import read_json, write_bytes, write_json
from midigenre.generation.sampling import SamplingSettings
from midigenre.midi.clean import read_score
from midigenre.midi.song import Song
from midigenre.spec import UNKNOWN
from midigenre.storage import check_writable
from midigenre.tasks.predict import SongScores, score_songs
from midigenre.tasks.samples import context_for
from midigenre.tokenizers.base import from_spec
from midigenre.trained import Run, device_of, load_run, own_shards
from midigenre.wording import plural

SOUND = {"mp3": "audio/mpeg", "wav": "audio/wav"}
"""Formats of the page's players and their MIME types."""


@dataclass(frozen=True)
class MusicSet:
    """Generated pieces or real excerpts, S of them, and what the judge makes of them.

    Attributes:
        songs: The music; None where there is not a note.
        classes: For each label the class that was asked for or that the song has, as the generator
            numbers them, shape (S,); ``UNKNOWN`` where none is known.
        groups: What belongs together (the excerpts of one song), shape (S,).
        scores: The judge's answers.
    """

    songs: Sequence[Song | None]
    classes: Mapping[str, Longs]
    groups: Longs
    scores: SongScores


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Writes ``RUN/judgement/<judge>-<hash>/`` and prints the path of its ``judgement.json``.

    Raises:
        UserError: The runs do not fit together, or a setting makes no sense.
    """
    if paths:
        raise UserError(f"judge takes no paths after --, got {paths[0]!r}; set run= and judge=")
    if cfg.judge is None:
        raise UserError("judge= is missing; give a classifier's run folder (task=genre, fold=1/2)")
    for key in ("n", "batch", "max_real", "components"):
        if cfg[key] is not None and cfg[key] < 1:
            raise UserError(f"{key}={cfg[key]} must be 1 or more")
    check_audio(cfg.audio, cfg.soundfont)
    settings = sampling_settings(cfg)
    if settings.bars is None:
        raise UserError("bars=null: judge compares pieces of one length; give a number of bars")
    device_of(cfg.device)  # before the work
    generator = load_run(cfg.run, cfg.ckpt, "generator")
    judge = load_run(cfg.judge, cfg.judge_ckpt, "classifier", "judge")
    labels = _labels(generator, judge)
    _check_over(cfg, judge, labels)
    folder = _folder(cfg, generator, judge, settings)
    check_writable(folder, "set out=DIR")
    with progress_bars() as progress:
        report, sets = _judgement(cfg, settings, generator, judge, labels, folder, progress)
        write_json(folder / "judgement.json", report)
        page = write_page(cfg, folder, report, _examples(cfg, generator, judge, sets), progress)
    _show(report)
    console.print(f"page: {page}", markup=False, highlight=False, soft_wrap=True)
    print(folder / "judgement.json")


def _judgement(
    cfg: DictConfig,
    settings: SamplingSettings,
    generator: Run,
    judge: Run,
    labels: Sequence[str],
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, MusicSet]]:
    """The report, and the music that it is about: ``generated``, ``shuffled`` and ``real``."""
    assert settings.bars is not None
    songs = own_shards(generator, cfg.home, cfg.n_workers, progress)
    judges_songs = own_shards(judge, cfg.home, cfg.n_workers, progress)
    held = PhraseDataModule(songs, **generator.data)
    judges_held = PhraseDataModule(judges_songs, **judge.data)
    training = held.rows("train")
    how = independence(
        songs, training, judges_songs,
        np.concatenate([judges_held.rows("train"), judges_held.rows("val")]), progress,
        [run.config["init_from"] for run in (generator, judge)
         if run.config is not None and run.config.get("init_from")],
    )  # fmt: skip
    real = real_excerpts(songs, held.rows("test"), how, settings.bars, cfg.max_real)
    indices = songs.label_indices()
    owned = {label: values[real.song] for label, values in indices.items()}
    sizes = {label: len(generator.labels.classes[label]) for label in conditions_of(generator)}
    asked = plan(sizes, cfg.n, {label: values[training] for label, values in indices.items()})
    n, main = len(next(iter(asked.values()))), main_label(sizes)

    pieces = PieceCache(cfg, generator, settings, folder, progress)
    music = {"generated": pieces.draw("told", asked, 0)}
    if cfg.shuffled:
        music["shuffled"] = pieces.draw("shuffled", shuffled(asked, cfg.seed), n)
    music["real"] = [
        pieces.excerpt(songs.song(int(s)).bars(int(first), int(end)))
        for s, first, end in zip(real.song, real.first, real.end, strict=True)
    ]
    sets = {}
    for what, of in music.items():

        def report_songs(done: int, total: int, what: str = what) -> None:
            progress(f"judging ({what})", done, total)

        scores = score_songs(
            judge.classifier, of, from_spec(judge.tokens), judge.data, device_of(cfg.device),
            progress=report_songs,
        )  # fmt: skip
        # Shuffled pieces, too, are held against the plan: the judge should not find it in them.
        known = (owned, real.song) if what == "real" else (asked, np.arange(n))
        sets[what] = MusicSet(of, *known, scores)
    report: dict[str, Any] = {
        "generator": _about(generator),
        "judge": _about(judge),
        "independence": how.to_dict(),
        "settings": _settings(cfg),
        "version": __version__,
        "n_pieces": n,
        "n_real": len(music["real"]),
        "silent": sum(piece is None for piece in music["generated"]),
        "cut_short": pieces.cut_short["told"],
        "end_early": {
            what: sum(song is not None and song.n_bars < settings.bars for song in music[what])
            for what in ("generated", "real")
        },
        "control": _control(generator, judge, sets, labels, {}),
    }
    if cfg.over:
        report["control_over"] = _control(generator, judge, sets, list(cfg.over), plain(cfg.over))
    ours_N, theirs_N = equal_mix(asked[main], owned[main], cfg.seed)
    report["compared"] = {"pieces": len(ours_N), "excerpts": len(theirs_N), "label": main}
    ours = [song for i in ours_N if (song := music["generated"][i]) is not None]
    theirs = [song for i in theirs_N if (song := music["real"][i]) is not None]
    progress("measures", 0, 3)
    report["distance"] = _or_reason(lambda: compare_sets(describe_all(ours), describe_all(theirs)))
    report["frechet"] = _or_reason(
        lambda: _frechet(
            sets["generated"].scores, ours_N, sets["real"].scores, theirs_N, cfg.components
        )
    )
    progress("measures", 1, 3)
    report["structure"] = {
        "generated": mean_structure([structure(song) for song in ours]),
        "real": mean_structure([structure(song) for song in theirs]),
    }
    progress("measures", 2, 3)
    known_music = TrainingMusic(
        (songs.song(int(i)) for i in training),
        [songs.manifest[int(i)]["song_id"] for i in training],
    )
    report["novelty"] = novelty_report(ours, theirs, known_music)
    progress("measures", 3, 3)
    return report, sets


def _labels(generator: Run, judge: Run) -> list[str]:
    """The labels that one is conditioned on and the other classifies.

    Raises:
        UserError: There is none, or their classes differ.
    """
    conditions, heads = conditions_of(generator), judge.classifier.heads
    shared = [label for label in conditions if label in heads]
    if not shared:
        raise UserError(
            f"judge={judge.checkpoint}: it classifies {', '.join(heads)}, but the generator is "
            f"conditioned on {', '.join(conditions) or 'nothing'}; give a judge for one of these"
        )
    for label in shared:
        known = judge.labels.classes[label]
        unknown = sorted(set(generator.labels.classes[label]) - set(known))
        if unknown:
            raise UserError(
                f"judge={judge.checkpoint} does not know {label} {unknown[0]!r}; it knows "
                f"{', '.join(known)}"
            )
    return shared


def _folder(cfg: DictConfig, generator: Run, judge: Run, settings: SamplingSettings) -> Path:
    """Where this judgement goes: the same settings find their pieces again."""
    if cfg.out is not None:
        return Path(cfg.out).expanduser()
    about = [
        str(settings), cfg.quantize, cfg.n, cfg.shuffled, cfg.max_real, mark_of(generator),
        mark_of(judge),
    ]  # fmt: skip
    mark = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]
    base = generator.folder if generator.folder is not None else Path()
    name = judge.folder.parent.name if judge.folder is not None else judge.checkpoint.stem
    return base / "judgement" / f"{name}-{mark}"


def _control(
    generator: Run,
    judge: Run,
    sets: Mapping[str, MusicSet],
    labels: Sequence[str],
    over: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """What the judge made of each label, over all its classes or some."""
    found = {}
    for label in labels:
        names = judge.labels.classes[label]
        to_judge = np.array([names.index(name) for name in generator.labels.classes[label]])
        verdicts = {}
        for what, music in sets.items():
            of_S = music.classes[label]
            truth_S = np.where(of_S == UNKNOWN, UNKNOWN, to_judge[of_S])
            verdicts[what] = Verdicts(truth_S, music.scores.classes(label), music.groups)
        found[label] = control(
            verdicts["generated"], verdicts["real"], names, verdicts.get("shuffled"),
            over=over.get(label),
        )  # fmt: skip
    return found


def _check_over(cfg: DictConfig, judge: Run, labels: Sequence[str]) -> None:
    """Refuses classes that there are not."""
    for label, names in plain(cfg.over).items():
        known = judge.labels.classes.get(label, ()) if label in labels else ()
        unknown = [name for name in names if name not in known]
        if unknown or not known:
            raise UserError(
                f"over.{label}={','.join(map(str, names))}: "
                + (f"{unknown[0]} is unknown, there is {', '.join(known)}" if known
                   else f"this judgement is about {', '.join(labels)}")
            )  # fmt: skip


def _frechet(
    ours: SongScores, ours_N: Longs, theirs: SongScores, theirs_N: Longs, components: int | None
) -> dict[str, Any]:
    width = ours.vectors_SD.shape[1]
    found = frechet(
        ours.vectors_SD[ours_N][ours.known_S[ours_N]],
        theirs.vectors_SD[theirs_N][theirs.known_S[theirs_N]],
        components=None if components is None or components >= width else components,
    )
    return vars(found) | {"n_parts": list(found.n_parts)}


def _or_reason(measure: Any) -> dict[str, Any]:
    """A measure, or why there is none: the others do without it."""
    try:
        found: dict[str, Any] = measure()
    except UserError as error:
        return {"reason": str(error)}
    return found


def _about(run: Run) -> dict[str, Any]:
    return {
        "checkpoint": str(run.checkpoint),
        "tokenizer": run.tokens.name,
        "fold": run.data["fold"],
        "parameters": sum(p.numel() for p in run.model.parameters()),
    }


def _settings(cfg: DictConfig) -> dict[str, Any]:
    left_out = ("debug", "batch", "out", "home", "n_workers")
    found: dict[str, Any] = plain(cfg)
    return {key: value for key, value in found.items() if key not in left_out}


def _show(report: Mapping[str, Any]) -> None:
    """The control table and the other verdicts in a line each."""
    for note in report["independence"]["notes"]:
        console.print(note, style="yellow", markup=False, highlight=False)
    for label, found in [*report["control"].items(), *report.get("control_over", {}).items()]:
        table = Table(title=f"{label}: the judge's accuracy", title_justify="left")
        for name in ("class", "generated", "real", "shuffled"):
            table.add_column(name, justify="left" if name == "class" else "right")
        other = found["shuffled"] or {"recall": {}, "accuracy": None}
        for name in found["classes"]:
            table.add_row(
                escape(name),
                *(_share(part["recall"].get(name))
                  for part in (found["generated"], found["real"], other)),
            )  # fmt: skip
        table.add_section()
        table.add_row(
            "all",
            *(_share(part["accuracy"]) for part in (found["generated"], found["real"], other)),
        )
        console.print(table)
        if found["of_ceiling"] is not None:
            low, high = found["of_ceiling"]["ci95"]
            console.print(
                f"{found['of_ceiling']['value']:.0%} of the ceiling ({low:.0%}–{high:.0%}); chance "
                f"is {found['chance']:.0%}",
                highlight=False,
            )
        else:
            console.print(
                "no real music has this label, so there is no ceiling"
                if found["real"]["accuracy"] is None
                else f"the ceiling is no clear step above chance: too little {label} is heard",
                style="yellow", highlight=False,
            )  # fmt: skip
    copied = report["novelty"]["generated"]["copied"]
    console.print(
        f"{copied['n']} of {plural(report['novelty']['generated']['n'], 'piece')} share more than "
        f"{report['novelty']['settings']['copied_above_bars']} bars in a row with a training song; "
        f"{report['silent']} are silent, {report['cut_short']} were cut short of their bars, "
        f"{report['end_early']['generated']} have no note in their last one (of "
        f"{plural(report['n_real'], 'real excerpt')} {report['end_early']['real']})",
        highlight=False,
    )
    for what in ("distance", "frechet"):
        if "reason" in report[what]:
            console.print(f"{what}: {report[what]['reason']}", style="yellow", markup=False)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


# --- music ----------------------------------------------------------------------------------------


def mark_of(run: Run) -> list[Any]:
    """What tells a checkpoint from another, and from itself after more training."""
    return [str(run.checkpoint.resolve()), run.checkpoint.stat().st_mtime_ns]


def real_excerpts(songs: ShardSet, test: Longs, how: Independence, bars: int, most: int) -> Phrases:
    """Excerpts of the held-out songs that the judge has not met, as long as the pieces.

    Raises:
        UserError: There is none.
    """
    rows = np.array([i for i in test if int(i) not in how.known_to_judge], np.int64)
    found = consecutive(songs, rows, bars)
    if len(found) == 0:
        raise UserError(
            f"{songs.folder}: the judge was trained on every test song of the generator; train "
            "both with the same split.seed"
        )
    # The rest of a song is left out: it is shorter than a piece. A short song is one excerpt.
    length = found.end - found.first
    found = found.select((length == bars) | (found.first == 0))
    step = max(1.0, len(found) / most)
    return found.select(np.arange(0, len(found), step).astype(np.int64))


class PieceCache:
    """Draws pieces in batches; those that an earlier call has finished are read instead.

    Args:
        cfg: The command's config, of which ``batch``, ``device`` and ``quantize`` are read.
        generator: The generator.
        settings: How they are drawn.
        folder: The judgement's folder; the MIDI files go into ``pieces/``.
        progress: Called with the pieces that are done.

    Attributes:
        cut_short: How many pieces of each set ended before their last bar, because they had
            reached the most tokens or a bar had become longer than the model's context.
    """

    def __init__(
        self,
        cfg: DictConfig,
        generator: Run,
        settings: SamplingSettings,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.tokenizer = from_spec(generator.tokens)
        self.sampler = make_sampler(generator, device_of(cfg.device), cfg.quantize)
        self.settings, self.folder, self.progress = settings, folder / "pieces", progress
        self.batch = cfg.batch
        self.cut_short: dict[str, int] = {}
        context = context_for(generator.data, generator.tokens)
        self.about = [str(settings), mark_of(generator), str(context), cfg.quantize]

    def draw(self, name: str, conditions: Mapping[str, Longs], first: int) -> list[Song | None]:
        """The pieces under these conditions; None where not a note was drawn.

        Args:
            name: Folder of their MIDI files.
            conditions: Class of each piece for each condition.
            first: Number of the first under the seed.

        Raises:
            UserError: The folder holds pieces that were drawn otherwise.
        """
        n = len(next(iter(conditions.values())))
        # What the pieces follow from: others are never taken for these.
        mark = json.dumps([*self.about, first, {k: v.tolist() for k, v in conditions.items()}])
        stored, ends = self.folder / name / "settings.json", self.folder / name / "stops.json"
        if stored.is_file() and stored.read_text() != mark:
            raise UserError(
                f"{self.folder / name} holds pieces of other settings; give another out="
            )
        write_bytes(stored, mark.encode())
        stops: dict[str, str] = read_json(ends) if ends.is_file() else {}
        paths = [self.folder / name / f"{i:05d}.mid" for i in range(n)]
        what = f"pieces ({name})"
        for begin in range(0, n, self.batch):
            rows = range(begin, min(begin + self.batch, n))
            if not all(paths[i].is_file() for i in rows):
                labels = {k: v[rows.start : rows.stop].tolist() for k, v in conditions.items()}
                samples = self.sampler.sample(
                    labels, self.settings, n=len(rows), first=first + begin
                )
                # Before the pieces: one that is there is never drawn again to learn how it ended.
                stops |= {paths[i].stem: s.stop for i, s in zip(rows, samples, strict=True)}
                write_json(ends, stops)
                for i, sample in zip(rows, samples, strict=True):
                    write_bytes(paths[i], self.tokenizer.decode(sample.ids_TF).dumps_midi())
            self.progress(what, rows.stop, n)
        self.cut_short[name] = sum(stop in ("tokens", "context") for stop in stops.values())
        return [self._read(path) for path in paths]

    def excerpt(self, song: Song) -> Song | None:
        """A real excerpt on the same way as a piece: bars behind its last onset do not count."""
        return self._read_score(song.to_score())

    def _read(self, path: Path) -> Song | None:
        return self._read_score(read_score(path.read_bytes()))

    def _read_score(self, score: ScoreTick) -> Song | None:
        try:
            return self.tokenizer.clean(score)
        except RefusedSongError as error:
            if error.reason != "empty":
                raise
            return None


# --- the page -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A piece that the page plays.

    Attributes:
        kind: ``generated`` or ``real``.
        name: Name of its files.
        asked: Class of each label that was asked for or that it has.
        heard: For each label the class that the judge heard and its probability.
        song: The music.
    """

    kind: str
    name: str
    asked: Mapping[str, str]
    heard: Mapping[str, tuple[str, float]]
    song: Song

    @property
    def title(self) -> str:
        """What it is, in words."""
        return f"{self.kind}: {', '.join(self.asked.values()) or 'no label'}"


def _examples(
    cfg: DictConfig, generator: Run, judge: Run, sets: Mapping[str, MusicSet]
) -> list[Example]:
    """The first pieces and excerpts of each class that have a note."""
    found: list[Example] = []
    conditions = conditions_of(generator)
    classes = generator.labels.classes
    main = main_label({label: len(classes[label]) for label in conditions})
    for c in range(len(classes[main])):
        for kind in ("generated", "real"):
            music = sets[kind]
            rows = [
                int(i) for i in np.flatnonzero(music.classes[main] == c)
                if music.songs[int(i)] is not None
            ]  # fmt: skip
            for i in rows[: cfg.shown]:
                asked = {
                    label: classes[label][int(values[i])]
                    for label, values in music.classes.items()
                    if values[i] != UNKNOWN and label in conditions
                }
                heard = {
                    label: (
                        judge.labels.classes[label][int(p[i].argmax())],
                        float(np.exp(p[i].max())),
                    )
                    for label, p in music.scores.log_probs.items()
                    if music.scores.known_S[i]
                }
                name = "-".join([kind, *asked.values(), str(i)]).replace("/", "_")
                song = music.songs[i]
                assert song is not None
                found.append(Example(kind, name, asked, heard, song))
    return found


def write_page(
    cfg: DictConfig,
    folder: Path,
    report: Mapping[str, Any],
    examples: Sequence[Example],
    progress: Progress,
) -> Path:
    """Writes ``judgement.html``, and figures and examples as files beside it.

    The page holds pictures and sound itself, so that it can be sent as one file.

    Args:
        cfg: The command's config, of which ``audio`` and ``soundfont`` are read.
        folder: The judgement's folder.
        report: Content of ``judgement.json``.
        examples: What it plays, in order.
        progress: Called with the examples.

    Returns:
        The page.
    """
    figures = {
        name: _picture(save(figure, folder / "figures" / f"{name}.png"))
        for name, figure in _figures(report).items()
    }
    shown = []
    for i, example in enumerate(examples):
        about = write_piece(
            folder / "examples", example.name, example.song.to_score(), example.song,
            example.title, cfg.audio, cfg.soundfont,
        )  # fmt: skip
        alike = similarity_figure(self_similarity(example.song), "Bars that are alike")
        path = save(alike, folder / "examples" / f"{example.name}-similarity.png")
        file = about.get("audio")
        shown.append(
            {
                "example": example,
                "about": about,
                "roll": _picture(folder / "examples" / about["piano_roll"]),
                "similarity": _picture(path),
                "sound": file and _data(folder / "examples" / file, SOUND[str(cfg.audio)]),
            }
        )
        progress("page", i + 1, len(examples))
    # Names come from files and labels of anybody's corpus: everything is escaped.
    environment = Environment(
        loader=PackageLoader("midigenre.commands", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["number"] = _number
    environment.filters["plural"] = plural
    html = environment.get_template("judgement.html").render(
        report=report, figures=figures, shown=shown
    )
    path = folder / "judgement.html"
    write_bytes(path, html.encode(errors="backslashreplace"))  # names need not be UTF-8
    return path


def _figures(report: Mapping[str, Any]) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for label, scores in report["control"].items():
        names = list(scores["generated"]["recall"])
        for what in ("generated", "real"):
            matrix = np.array(scores[what]["confusion"])[:, : len(names)]  # without the silent
            title = f"{label}: what the judge hears in {what} music"
            found[f"{label}-{what}"] = confusion_figure(matrix, names, title)
    if "reason" not in report["distance"]:
        found["overlap"] = overlap_figure(report["distance"], "Overlap with real music")
    found["repetition"] = repetition_figure(
        report["structure"]["generated"]["repetition"],
        report["structure"]["real"]["repetition"],
        "What comes back after so many bars",
    )
    return found


def _picture(path: Path) -> str:
    return _data(path, "image/png")


def _data(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
