"""``midigenre judge``: does the condition do anything, is the music any good, was it copied?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.markup import escape
from rich.table import Table

from midigenre import __version__
from midigenre.build import plain
from midigenre.commands.console import console, progress_bars
from midigenre.commands.judge_music import (
    Pieces,
    examples_of,
    mark_of,
    real_excerpts,
)
from midigenre.commands.judgement_page import write_page
from midigenre.commands.pieces import check_audio
from midigenre.commands.run_songs import own_phrases, own_shards
from midigenre.commands.sampling import conditions_of, sampling_settings
from midigenre.data.phrases import Phrases
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.evaluation.music.control import (
    Verdicts,
    control,
    equal_mix,
    main_label,
    plan,
    shuffled,
)
from midigenre.evaluation.music.descriptors import describe_all
from midigenre.evaluation.music.distance import compare_sets
from midigenre.evaluation.music.frechet import frechet
from midigenre.evaluation.music.independence import independence
from midigenre.evaluation.music.novelty import TrainingMusic, novelty_report
from midigenre.evaluation.music.structure import mean_structure, structure
from midigenre.files import write_json
from midigenre.generation.sampling import SamplingSettings
from midigenre.midi.song import Song
from midigenre.spec import UNKNOWN
from midigenre.storage import check_writable
from midigenre.tasks.listen import Heard, listen
from midigenre.tokenizers.base import from_spec
from midigenre.trained import Run, device_of, load_run
from midigenre.wording import plural

Longs = NDArray[np.int64]


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
    device = device_of(cfg.device)
    generator = load_run(cfg.run, cfg.ckpt, "generator")
    judge = load_run(cfg.judge, cfg.judge_ckpt, "classifier", "judge")
    labels = _labels(generator, judge)
    _check_over(cfg, judge, labels)
    folder = _folder(cfg, generator, judge, settings)
    check_writable(folder, "set out=DIR")
    with progress_bars() as progress:
        songs = own_shards(generator, cfg.home, cfg.n_workers, progress)
        heard_before = own_shards(judge, cfg.home, cfg.n_workers, progress)
        held = own_phrases(songs, generator)
        training = held.rows("train")
        how = independence(
            songs, training, heard_before, _trained_on(heard_before, judge), progress,
            [run.config["init_from"] for run in (generator, judge)
             if run.config is not None and run.config.get("init_from")],
        )  # fmt: skip
        real = real_excerpts(songs, held.rows("test"), how, settings.bars, cfg.max_real)
        indices = songs.label_indices()
        sizes = {label: len(generator.labels.classes[label]) for label in conditions_of(generator)}
        main = main_label(sizes)
        told = plan(
            sizes,
            cfg.n,
            {label: values[training] for label, values in indices.items()},
        )
        pieces = Pieces(generator, settings, folder, device, cfg.batch, cfg.quantize, progress)
        n = len(next(iter(told.values())))
        sets = {"told": pieces.draw("told", told, 0)}
        if cfg.shuffled:
            sets["shuffled"] = pieces.draw("shuffled", shuffled(told, cfg.seed), n)
        excerpts: list[Song | None] = [
            pieces.excerpt(songs.song(int(s)).bars(int(first), int(end)))
            for s, first, end in zip(real.song, real.first, real.end, strict=True)
        ]
        heard = {
            what: _listen(judge, music, device, what, progress)
            for what, music in {**sets, "real": excerpts}.items()
        }
        report: dict[str, Any] = {
            "generator": _about(generator),
            "judge": _about(judge),
            "independence": how.to_dict(),
            "settings": _settings(cfg),
            "version": __version__,
            "n_pieces": n,
            "n_real": len(excerpts),
            "silent": sum(piece is None for piece in sets["told"]),
            "cut_short": pieces.cut_short["told"],
            "end_early": {
                what: sum(song is not None and song.n_bars < settings.bars for song in music)
                for what, music in (("generated", sets["told"]), ("real", excerpts))
            },
            "control": _control(generator, judge, labels, told, heard, indices, real, {}),
        }
        if cfg.over:
            report["control_over"] = _control(
                generator, judge, list(cfg.over), told, heard, indices, real, plain(cfg.over)
            )
        ours_N, theirs_N = equal_mix(told[main], indices[main][real.song], cfg.seed)
        report["compared"] = {"pieces": len(ours_N), "excerpts": len(theirs_N), "label": main}
        music = [piece for i in ours_N if (piece := sets["told"][i]) is not None]
        theirs = [song for i in theirs_N if (song := excerpts[i]) is not None]
        progress("measures", 0, 3)
        report["distance"] = _or_reason(lambda: compare_sets(*map(describe_all, (music, theirs))))
        report["frechet"] = _or_reason(
            lambda: _frechet(heard["told"], ours_N, heard["real"], theirs_N, cfg.components)
        )
        progress("measures", 1, 3)
        report["structure"] = {
            "generated": mean_structure([structure(song) for song in music]),
            "real": mean_structure([structure(song) for song in theirs]),
        }
        progress("measures", 2, 3)
        known = TrainingMusic(
            (songs.song(int(i)) for i in training),
            [songs.manifest[int(i)]["song_id"] for i in training],
        )
        report["novelty"] = novelty_report(music, theirs, known)
        progress("measures", 3, 3)
        write_json(folder / "judgement.json", report)
        owned = {label: values[real.song] for label, values in indices.items()}
        examples = [
            example
            for c in range(len(generator.labels.classes[main]))
            for kind, songs_of, classes in (
                ("generated", sets["told"], told), ("real", excerpts, owned)
            )
            for example in examples_of(
                kind, songs_of, classes, heard["told" if kind == "generated" else kind],
                generator, judge, main, c, cfg.shown,
            )
        ]  # fmt: skip
        page = write_page(folder, report, examples, cfg.audio, cfg.soundfont, progress)
    _show(report)
    console.print(f"page: {page}", markup=False, highlight=False, soft_wrap=True)
    print(folder / "judgement.json")


def _labels(generator: Run, judge: Run) -> list[str]:
    """The labels that one was told of and the other hears.

    Raises:
        UserError: There is none, or their classes differ.
    """
    told, heard = conditions_of(generator), judge.labels.classes
    shared = [label for label in told if label in judge.classifier.heads]
    if not shared:
        raise UserError(
            f"judge={judge.checkpoint}: it hears {', '.join(judge.classifier.heads)}, but the "
            f"generator was told of {', '.join(told) or 'nothing'}; give a judge for one of these"
        )
    for label in shared:
        unknown = sorted(set(generator.labels.classes[label]) - set(heard[label]))
        if unknown:
            raise UserError(
                f"judge={judge.checkpoint} does not know {label} {unknown[0]!r}; it knows "
                f"{', '.join(heard[label])}"
            )
    return shared


def _trained_on(shards: ShardSet, judge: Run) -> Longs:
    """Songs that a run was trained on or chosen by."""
    data = own_phrases(shards, judge)
    return np.concatenate([data.rows("train"), data.rows("val")])


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


def _listen(
    judge: Run, music: Sequence[Song | None], device: Any, what: str, progress: Any
) -> Heard:
    return listen(
        judge.classifier, music, from_spec(judge.tokens), judge.data, device,
        progress=lambda done, total: progress(f"listening ({what})", done, total),
    )  # fmt: skip


def _control(
    generator: Run,
    judge: Run,
    labels: Sequence[str],
    told: Mapping[str, Longs],
    heard: Mapping[str, Heard],
    indices: Mapping[str, Longs],
    real: Phrases,
    over: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """What the judge made of each label, over all its classes or some."""
    found = {}
    for label in labels:
        names = judge.labels.classes[label]
        to_judge = np.array([names.index(name) for name in generator.labels.classes[label]])
        asked = to_judge[told[label]]
        of_song = indices[label][real.song]
        truth = np.where(of_song == UNKNOWN, UNKNOWN, to_judge[of_song])
        alone = np.arange(len(asked))
        verdicts = {
            what: Verdicts(asked, heard[what].classes(label), alone)
            for what in ("told", "shuffled")
            if what in heard
        }
        found[label] = control(
            verdicts["told"],
            Verdicts(truth, heard["real"].classes(label), real.song),
            names,
            verdicts.get("shuffled"),
            over=over.get(label),
        )
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
    ours: Heard, ours_N: Longs, theirs: Heard, theirs_N: Longs, components: int | None
) -> dict[str, Any]:
    width = ours.vectors_SD.shape[1]
    found = frechet(
        ours.vectors_SD[ours_N][ours.heard_S[ours_N]],
        theirs.vectors_SD[theirs_N][theirs.heard_S[theirs_N]],
        components=None if components is None or components >= width else components,
    )
    return vars(found) | {"n_parts": list(found.n_parts)}


def _or_reason(measure: Any) -> dict[str, Any]:
    """A measure, or why it is refused: the others go on without it."""
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
                *(_percent(part["recall"].get(name))
                  for part in (found["generated"], found["real"], other)),
            )  # fmt: skip
        table.add_section()
        table.add_row(
            "all",
            *(_percent(part["accuracy"]) for part in (found["generated"], found["real"], other)),
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


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
