"""``midigenre judge``: does the condition have an effect, is the music any good, was it copied?"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from midigenre.commands.generate import write_piece
from midigenre.corpora.base import Progress
from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.phrases import Phrases, consecutive
from midigenre.data.shards import ShardSet
from midigenre.errors import RejectedSongError, UserError
from midigenre.evaluation.figures import save
from midigenre.evaluation.figures.charts import confusion_figure
from midigenre.evaluation.music import control, descriptors, distance, novelty, structure
from midigenre.files import read_json, write_bytes, write_json
from midigenre.generation.audio import check_audio
from midigenre.generation.sampling import SamplingSettings
from midigenre.inference.generator import conditions_of, make_sampler, sampling_settings
from midigenre.midi.read import read_score
from midigenre.midi.song import Song
from midigenre.spec import UNKNOWN
from midigenre.storage import check_writable
from midigenre.tasks.kinds import context_for
from midigenre.tasks.predict import SongScores, classify_songs
from midigenre.tokenizers.base import Tokenizer, from_spec
from midigenre.trained import Run, device_of, load_run, own_shards
from midigenre.wording import plural

SOUND = {"mp3": "audio/mpeg", "wav": "audio/wav"}
"""Formats of the page's players and their MIME types."""


@dataclass(frozen=True)
class MusicSet:
    """Generated pieces or real excerpts, S of them, and how the judge classifies them.

    Attributes:
        songs: The music; None where there is not a note.
        classes: For each label the requested or the song's class, as the generator
            numbers them, shape (S,); ``UNKNOWN`` where none is known.
        groups: Number of the song that an excerpt belongs to, shape (S,).
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
    labels = _labels(cfg, generator, judge)
    folder = _folder(cfg, generator, judge, settings)
    check_writable(folder, "set out=DIR")
    with progress_bars() as progress:
        report, sets = _judgement(cfg, settings, generator, judge, labels, folder, progress)
        write_json(folder / "judgement.json", report)
        page = write_page(cfg, folder, report, generator, judge, sets, progress)
    _show(report)
    console.print(f"page: {page}", markup=False, highlight=False, soft_wrap=True)
    print(folder / "judgement.json")


def _labels(cfg: DictConfig, generator: Run, judge: Run) -> list[str]:
    """The labels that the generator is conditioned on and the judge classifies; checks ``over``."""
    conditions, heads = conditions_of(generator), judge.classifier.label_heads()
    shared = [label for label in conditions if label in heads]
    if not shared:
        raise UserError(
            f"judge={judge.checkpoint}: it classifies {', '.join(heads)}, but the generator is "
            f"conditioned on {', '.join(conditions) or 'nothing'}; give a judge for one of these"
        )
    classes = judge.labels.classes
    for label in shared:
        unknown = sorted(set(generator.labels.classes[label]) - set(classes[label]))
        if unknown:
            raise UserError(
                f"judge={judge.checkpoint} does not know {label} {unknown[0]!r}; it knows "
                f"{', '.join(classes[label])}"
            )
    for label, names in plain(cfg.over).items():
        given = f"over.{label}={','.join(map(str, names))}"
        if label not in shared:
            raise UserError(f"{given}: this judgement is about {', '.join(shared)}")
        for name in names:
            if name not in classes[label]:
                raise UserError(f"{given}: {name} is unknown, there is {', '.join(classes[label])}")
    return shared


def _folder(cfg: DictConfig, generator: Run, judge: Run, settings: SamplingSettings) -> Path:
    """Where this judgement is written: the same settings find their pieces again."""
    if cfg.out is not None:
        return Path(cfg.out).expanduser()
    about = [
        str(settings), cfg.quantize, cfg.n, cfg.shuffled, cfg.max_real, _mark(generator),
        _mark(judge),
    ]  # fmt: skip
    mark = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]
    name = judge.folder.parent.name if judge.folder is not None else judge.checkpoint.stem
    return (generator.folder or Path()) / "judgement" / f"{name}-{mark}"


def _mark(run: Run) -> list[Any]:
    """What distinguishes a checkpoint from others, and from itself after more training."""
    return [str(run.checkpoint.resolve()), run.checkpoint.stat().st_mtime_ns]


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
    known_rows = np.concatenate([judges_held.rows("train"), judges_held.rows("val")])
    started_from = [
        run.config["init_from"] for run in (generator, judge)
        if run.config is not None and run.config.get("init_from")
    ]  # fmt: skip
    independent, met = control.independence(
        songs, training, judges_songs, known_rows, progress, started_from
    )
    real = real_excerpts(songs, held.rows("test"), met, settings.bars, cfg.max_real)
    indices = songs.label_indices()
    owned = {label: values[real.song] for label, values in indices.items()}
    sizes = {label: len(generator.labels.classes[label]) for label in conditions_of(generator)}
    learnt = {label: values[training] for label, values in indices.items()}
    asked = control.plan_conditions(sizes, cfg.n, learnt)
    n, main = len(next(iter(asked.values()))), control.main_label(sizes)

    wanted = {"conditioned": asked} | (
        {"shuffled": control.shuffled(asked, cfg.seed)} if cfg.shuffled else {}
    )
    drawn, cut_short = draw_pieces(cfg, generator, settings, folder / "pieces", wanted, progress)
    tokenizer = from_spec(generator.tokens)
    music = {"generated": drawn.pop("conditioned"), **drawn}
    # As for a piece: bars after an excerpt's last onset do not count.
    music["real"] = [
        _cleaned(tokenizer, songs.song(int(s)).bars(int(first), int(end)).to_score())
        for s, first, end in zip(real.song, real.first, real.end, strict=True)
    ]
    sets = {}
    for what, of in music.items():
        scores = classify_songs(
            judge.classifier, of, from_spec(judge.tokens), judge.data, device_of(cfg.device),
            progress=partial(progress, f"judging ({what})"),
        )  # fmt: skip
        # Shuffled pieces are compared with the plan too: the judge should not find it in them.
        known = (owned, real.song) if what == "real" else (asked, np.arange(n))
        sets[what] = MusicSet(of, *known, scores)
    left_out = ("debug", "batch", "out", "home", "n_workers")
    report: dict[str, Any] = {
        "generator": _about(generator),
        "judge": _about(judge),
        "independence": independent,
        "settings": {key: value for key, value in plain(cfg).items() if key not in left_out},
        "version": __version__,
        "n_pieces": n,
        "n_real": len(music["real"]),
        "silent": sum(piece is None for piece in music["generated"]),
        "cut_short": cut_short["conditioned"],
        "end_early": {
            what: sum(song is not None and song.n_bars < settings.bars for song in music[what])
            for what in ("generated", "real")
        },
        "control": _control(generator, judge, sets, dict.fromkeys(labels)),
    }
    if cfg.over:
        report["control_over"] = _control(generator, judge, sets, plain(cfg.over))
    ours_N, theirs_N = control.equal_mix(asked[main], owned[main], cfg.seed)
    report["compared"] = {"pieces": len(ours_N), "excerpts": len(theirs_N), "label": main}
    ours = [song for i in ours_N if (song := music["generated"][i]) is not None]
    theirs = [song for i in theirs_N if (song := music["real"][i]) is not None]
    progress("measures", 0, 3)
    tables = [descriptors.describe_all(of) for of in (ours, theirs)]
    report["distance"] = _or_reason(lambda: distance.compare_sets(*tables))
    vectors = []
    for what, at_N in (("generated", ours_N), ("real", theirs_N)):
        scores = sets[what].scores
        vectors.append(scores.vectors_SD[at_N][scores.known_S[at_N]])
    few = cfg.components is not None and cfg.components < vectors[0].shape[1]
    components = cfg.components if few else None
    report["frechet"] = _or_reason(lambda: distance.frechet(*vectors, components=components))
    progress("measures", 1, 3)
    report["structure"] = {
        what: structure.mean_structure([structure.structure(song) for song in of])
        for what, of in (("generated", ours), ("real", theirs))
    }
    progress("measures", 2, 3)
    rows = training.tolist()
    names = [songs.manifest[row]["song_id"] for row in rows]
    known_music = novelty.TrainingMusic((songs.song(row) for row in rows), names)
    report["novelty"] = novelty.novelty_report(ours, theirs, known_music)
    progress("measures", 3, 3)
    return report, sets


def _control(
    generator: Run, judge: Run, sets: Mapping[str, MusicSet], over: Mapping[str, Any]
) -> dict[str, Any]:
    """How the judge classified each label of ``over``: over these classes, None for all."""
    found = {}
    for label, chosen in over.items():
        names = judge.labels.classes[label]
        to_judge = np.array([names.index(name) for name in generator.labels.classes[label]])
        verdicts = {}
        for what, music in sets.items():
            of_S = music.classes[label]
            truth_S = np.where(of_S == UNKNOWN, UNKNOWN, to_judge[of_S])
            verdicts[what] = control.Verdicts(truth_S, music.scores.classes(label), music.groups)
        found[label] = control.control(
            verdicts["generated"], verdicts["real"], names, verdicts.get("shuffled"), over=chosen
        )
    return found


def _or_reason(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A measure, or why there is none; the report goes without it."""
    try:
        return measure()
    except UserError as error:
        return {"reason": str(error)}


def _about(run: Run) -> dict[str, Any]:
    return {
        "checkpoint": str(run.checkpoint),
        "tokenizer": run.tokens.name,
        "fold": run.data["fold"],
        "parameters": sum(p.numel() for p in run.model.parameters()),
    }


def _show(report: Mapping[str, Any]) -> None:
    """The control table and the other verdicts in a line each."""
    for note in report["independence"]["notes"]:
        console.print(note, style="yellow", markup=False, highlight=False)
    for label, found in [*report["control"].items(), *report.get("control_over", {}).items()]:
        table = Table(title=f"{label}: the judge's accuracy", title_justify="left")
        parts = [found[name] for name in ("generated", "real", "shuffled")]
        for name in ("class", "generated", "real", "shuffled"):
            table.add_column(name, justify="left" if name == "class" else "right")
        for name in found["classes"]:
            shares = [part and part["recall"].get(name) for part in parts]
            table.add_row(escape(name), *(_percent(share, "") for share in shares))
        table.add_section()
        table.add_row("all", *(_percent(part and part["accuracy"], "") for part in parts))
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
                else f"the ceiling is not clearly above chance: too little {label} is recognized",
                style="yellow", highlight=False,
            )  # fmt: skip
    copied = report["novelty"]["generated"]["copied"]
    console.print(
        f"of {plural(report['novelty']['generated']['n'], 'piece')}: more than "
        f"{report['novelty']['settings']['copied_above_bars']} bars in a row of a training song in "
        f"{copied['n']}, silent {report['silent']}, ending early {report['cut_short']}, "
        f"no note in the last bar {report['end_early']['generated']} (of "
        f"{plural(report['n_real'], 'real excerpt')} {report['end_early']['real']})",
        highlight=False,
    )
    for what in ("distance", "frechet"):
        if "reason" in report[what]:
            console.print(f"{what}: {report[what]['reason']}", style="yellow", markup=False)


# --- music ----------------------------------------------------------------------------------------


def real_excerpts(songs: ShardSet, test: Longs, met: Longs, bars: int, most: int) -> Phrases:
    """Excerpts, as long as the pieces, of held-out songs that the judge was not trained on.

    Raises:
        UserError: There is none.
    """
    found = consecutive(songs, test[~np.isin(test, met)], bars)
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


def draw_pieces(
    cfg: DictConfig,
    generator: Run,
    settings: SamplingSettings,
    folder: Path,
    wanted: Mapping[str, Mapping[str, Longs]],
    progress: Progress,
) -> tuple[dict[str, list[Song | None]], dict[str, int]]:
    """Samples sets of pieces in batches; pieces that an earlier call finished are read instead.

    Args:
        cfg: The command's config, of which ``batch``, ``device`` and ``quantize`` are read.
        generator: The generator.
        settings: How they are drawn.
        folder: A folder in it holds the MIDI files of each set.
        wanted: For each set the class of each piece for each condition.
        progress: Called with the pieces that are done.

    Returns:
        The pieces of each set, None where not a note was drawn; and how many ended before their
        last bar, at the most tokens or because a bar had become longer than the model's context.

    Raises:
        UserError: The folder holds pieces drawn with other settings.
    """
    tokenizer = from_spec(generator.tokens)
    sampler = make_sampler(generator, device_of(cfg.device), cfg.quantize)
    context = context_for(generator.data, generator.tokens)
    pieces: dict[str, list[Song | None]] = {}
    cut_short: dict[str, int] = {}
    first = 0  # number of the set's first piece under the seed
    for name, conditions in wanted.items():
        n = len(next(iter(conditions.values())))
        # What determines the pieces: others are never mistaken for these.
        about = [str(settings), _mark(generator), str(context), cfg.quantize, first]
        mark = json.dumps([*about, {k: v.tolist() for k, v in conditions.items()}])
        stored, ends = folder / name / "settings.json", folder / name / "stops.json"
        if stored.is_file() and stored.read_text() != mark:
            raise UserError(f"{folder / name} holds pieces of other settings; give another out=")
        write_bytes(stored, mark.encode())
        stops: dict[str, str] = read_json(ends) if ends.is_file() else {}
        paths = [folder / name / f"{i:05d}.mid" for i in range(n)]
        for begin in range(0, n, cfg.batch):
            batch = paths[begin : begin + cfg.batch]
            if not all(path.is_file() for path in batch):
                labels = {k: v[begin : begin + cfg.batch].tolist() for k, v in conditions.items()}
                samples = sampler.sample(labels, settings, n=len(batch), first=first + begin)
                # Before the pieces: an existing one is never drawn again to learn how it ended.
                stops |= {path.stem: s.stop for path, s in zip(batch, samples, strict=True)}
                write_json(ends, stops)
                for path, sample in zip(batch, samples, strict=True):
                    write_bytes(path, tokenizer.decode(sample.ids_TF).dumps_midi())
            progress(f"pieces ({name})", begin + len(batch), n)
        cut_short[name] = sum(stop in ("tokens", "context") for stop in stops.values())
        pieces[name] = [_cleaned(tokenizer, read_score(path.read_bytes())) for path in paths]
        first += n
    return pieces, cut_short


def _cleaned(tokenizer: Tokenizer, score: ScoreTick) -> Song | None:
    """The music as the generator's tokenizer cleans it; None without a note."""
    try:
        return tokenizer.clean(score)
    except RejectedSongError as error:
        if error.reason != "empty":
            raise
        return None


# --- the page -------------------------------------------------------------------------------------


def write_page(
    cfg: DictConfig,
    folder: Path,
    report: Mapping[str, Any],
    generator: Run,
    judge: Run,
    sets: Mapping[str, MusicSet],
    progress: Progress,
) -> Path:
    """Writes ``judgement.html``, and figures and examples as files beside it.

    The page embeds pictures and sound, so that it can be sent as one file.

    Args:
        cfg: The command's config, of which ``audio``, ``soundfont`` and ``shown`` are read.
        folder: The judgement's folder.
        report: Content of ``judgement.json``.
        generator: The generator.
        judge: The judge.
        sets: The music, ``generated`` and ``real``, of which the page plays some.
        progress: Called with the examples.

    Returns:
        The page.
    """
    figures = {
        name: _data(save(figure, folder / "figures" / f"{name}.png"), "image/png")
        for name, figure in _figures(report).items()
    }
    shown = []
    examples = list(_examples(cfg, generator, judge, sets))
    for i, (song, example) in enumerate(examples):
        beside = folder / "examples"
        about = write_piece(
            beside, example["name"], song.to_score(), song, example["title"], cfg.audio,
            cfg.soundfont,
        )  # fmt: skip
        alike = structure.similarity_figure(structure.self_similarity(song), "Bars that are alike")
        path = save(alike, beside / f"{example['name']}-similarity.png")
        file = about.get("audio")
        sound = file and _data(beside / file, SOUND[str(cfg.audio)])
        roll, similarity = (_data(p, "image/png") for p in (beside / about["piano_roll"], path))
        shown.append(
            example | {"about": about, "roll": roll, "similarity": similarity, "sound": sound}
        )
        progress("page", i + 1, len(examples))
    # Names come from untrusted files and labels: everything is escaped.
    environment = Environment(
        loader=PackageLoader("midigenre.commands", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": _percent, "number": _number, "plural": plural}
    html = environment.get_template("judgement.html").render(
        report=report, figures=figures, shown=shown
    )
    path = folder / "judgement.html"
    write_bytes(path, html.encode(errors="backslashreplace"))  # names need not be UTF-8
    return path


def _examples(
    cfg: DictConfig, generator: Run, judge: Run, sets: Mapping[str, MusicSet]
) -> Iterator[tuple[Song, dict[str, Any]]]:
    """The first pieces and excerpts of each class that have a note, with their captions."""
    conditions, classes = conditions_of(generator), generator.labels.classes
    main = control.main_label({label: len(classes[label]) for label in conditions})
    for c in range(len(classes[main])):
        for kind in ("generated", "real"):
            music = sets[kind]
            rows = np.flatnonzero(music.classes[main] == c).tolist()
            some = [(i, song) for i in rows if (song := music.songs[i]) is not None]
            for i, song in some[: cfg.shown]:
                asked = [
                    classes[label][int(values[i])]
                    for label, values in music.classes.items()
                    if values[i] != UNKNOWN and label in conditions
                ]
                predicted = {
                    label: (judge.labels.classes[label][int(p[i].argmax())], np.exp(p[i].max()))
                    for label, p in music.scores.log_probs.items()
                    if music.scores.known_S[i]
                }
                yield (
                    song,
                    {
                        "kind": kind,
                        "name": "-".join([kind, *asked, str(i)]).replace("/", "_"),
                        "title": f"{kind}: {', '.join(asked) or 'no label'}",
                        "predicted": predicted,
                    },
                )


def _figures(report: Mapping[str, Any]) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for label, scores in report["control"].items():
        names = list(scores["generated"]["recall"])
        for what in ("generated", "real"):
            matrix = np.array(scores[what]["confusion"])[:, : len(names)]  # without the silent
            title = f"{label}: how the judge classifies {what} music"
            found[f"{label}-{what}"] = confusion_figure(matrix, names, title)
    if "reason" not in report["distance"]:
        found["overlap"] = distance.overlap_figure(report["distance"], "Overlap with real music")
    found["repetition"] = structure.repetition_figure(
        report["structure"]["generated"]["repetition"],
        report["structure"]["real"]["repetition"],
        "What repeats after this many bars",
    )
    return found


def _data(path: Path, kind: str) -> str:
    """A file as a URL that holds it."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _percent(value: float | None, none: str = "–") -> str:
    return none if value is None else f"{value:.0%}"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
