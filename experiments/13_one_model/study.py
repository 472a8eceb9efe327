"""One model for twelve corpora: beside twelve models; each corpus continued; chords as tokens.

    python experiments/12_twelve_models/study.py                # the twelve models, first
    python experiments/13_one_model/study.py                    # one question: --only together
    python experiments/13_one_model/study.py --table            # from what is kept

Three questions that the source left open, with its decoder (study 12):

- ``together``: one model that is conditioned on the genre, trained on the songs of all twelve for
  as many updates as one of the twelve had, and for as many as all of them had together. Nats per
  note of the same test songs as theirs.
- ``prompts``: each of the twelve models continues four bars of test songs of every corpus. What
  does a classifier, which reads other tokens, take the music for, from four bars to four bars?
- ``tokens``: the source's 291 tokens, REMI, and REMI with tempo and chord tokens: one conditioned
  model each, with equal updates, judged by the classifier (``midigenre judge``).

A run that has ended is not trained again, one that was stopped resumes; a piece that is there is
not drawn again (``--out``). Scores go to ``results/<question>.json``, figures beside them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from matplotlib.figure import Figure

from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.phrases import MemorySongs
from midigenre.data.shards import ShardSet
from midigenre.evaluation.bootstrap import interval, song_weights
from midigenre.evaluation.compare import markdown_table
from midigenre.evaluation.figures import BLUE, FAINT, GRID, INK, RED, new_figure, save, titles
from midigenre.evaluation.tokens import TokenMetrics
from midigenre.files import read_csv, read_json, write_bytes, write_csv, write_json
from midigenre.generation.sampling import Choice, SamplingSettings
from midigenre.inference.generator import make_sampler
from midigenre.midi.read import read_score
from midigenre.models import PhraseGenerator
from midigenre.run import RunFolder
from midigenre.tasks.predict import predict_songs
from midigenre.tokenizers.base import from_spec
from midigenre.trained import load_run

HERE = Path(__file__).parent
RESULTS = HERE / "results"
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "12_twelve_models")]
import study as twelve_models  # noqa: E402
from quietly import commit, midigenre, side_by_side, training  # noqa: E402

QUESTIONS = ("together", "prompts", "tokens")
BARS = 4
"""Of a primer, and of what the classifier reads at once."""

CONDITIONED = (
    "task.conditions=[genre]",
    *(of for of in twelve_models.MODEL if not of.startswith(("task.conditions", "tokenizer="))),
)
TOKENS: Mapping[str, Sequence[str]] = {
    "291": ("tokenizer=midilike291",),
    "remi": ("tokenizer=remi",),
    "remi-chords": ("tokenizer=remi", "+tokenizer.params.use_chords=true",
                    "tokenizer.neutral=false", "tokenizer.params.use_velocities=false"),
}  # fmt: skip
NAMES = {"291": "291 tokens", "remi": "REMI", "remi-chords": "REMI with tempo and chords"}
# As the 291 tokens, the judge knows no meters: it must not take a genre by them.
JUDGE = ("tokenizer=octuple", "tokenizer.params.use_time_signatures=false",
         "tokenizer.time_signatures=[4/4]", f"data.phrase_bars={BARS}",
         "tokenizer.neutral=true")  # fmt: skip


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--singles", type=Path, default=Path("runs/12_twelve_models"),
                        help="what study 12 has written")  # fmt: skip
    parser.add_argument("--primers", type=int, default=4, help="test songs of each corpus")
    parser.add_argument("--pieces", type=int, default=20, help="of each genre that are judged")
    parser.add_argument("--jobs", type=int, help="at a time; default: one a core")
    parser.add_argument("--out", type=Path, default=Path("runs/13_one_model"))
    parser.add_argument("--table", action="store_true", help="print what is kept")
    args = parser.parse_args()
    names = [n for n in twelve_models.CORPORA if RunFolder(args.singles / n).tested]
    if not args.table:
        if len(names) < 2:
            parser.error(f"--singles {args.singles}: run experiments/12_twelve_models/study.py")
        songs = songs_table(args.singles, names, args.out)
        steps = read_json(args.singles / names[0] / "metrics.json")["steps"]
        train(args.only, songs, steps, len(names), args.out, args.jobs)
        if "together" in args.only:
            keep("together", together(args.singles, names, args.out))
        if "prompts" in args.only:
            pieces = continued(args.singles, names, songs, args.primers, args.out, args.jobs)
            keep("prompts", heard(pieces, names, args.out / "judge"))
        if "tokens" in args.only:
            keep("tokens", {key: judged(args.out, key, args.pieces) for key in TOKENS})
    for question in args.only:
        if (RESULTS / f"{question}.json").is_file():
            found = read_json(RESULTS / f"{question}.json")
            if question == "prompts":
                save(figure(found), RESULTS / "prompts.png")
            print({"together": together_table, "prompts": prompts_table,
                   "tokens": tokens_table}[question](found), end="\n\n")  # fmt: skip


def keep(question: str, found: Mapping[str, Any]) -> None:
    """Writes the scores of a question."""
    write_json(RESULTS / f"{question}.json", {"commit": commit(), **found})


# --- songs and training ---------------------------------------------------------------------------


def songs_table(singles: Path, names: Sequence[str], out: Path) -> Path:
    """Writes all songs of the twelve models with the splits that these were trained with."""
    rows = []
    for name in names:
        for song in read_csv(RunFolder(singles / name).shards / "manifest.csv"):
            row = {key: song[key] for key in ("song_id", "group", "split", "genre")}
            rows.append({"path": str(Path(song["path"]).resolve()), **row})
    write_csv(out / "songs.csv", rows, list(rows[0]))
    return out / "songs.csv"


def train(
    questions: Sequence[str], songs: Path, steps: int, n: int, out: Path, jobs: int | None
) -> None:
    """Trains what is missing for some questions: the models, longest first, and the judge."""
    corpus = ("corpus=manifest", f"corpus.path={songs}", "tokenizer.tracks=merged",
              "labels.min_songs=1", "prepare.grouping=none", "prepare.conflicts=keep")  # fmt: skip

    def generator(tokens: str, updates: int) -> list[str]:
        neutral = () if tokens == "remi-chords" else ("tokenizer.neutral=true",)
        return [*CONDITIONED, *TOKENS[tokens], *neutral, *corpus, f"trainer.max_steps={updates}",
                *twelve_models.clock(updates)]  # fmt: skip

    wanted: dict[str, list[str]] = {}
    if "together" in questions:
        wanted["together-long"] = generator("291", n * steps)
        wanted["together"] = generator("291", steps)
    if "tokens" in questions:
        wanted |= {f"tokens-{key}": generator(key, 4 * steps) for key in TOKENS}
    if {"prompts", "tokens"} & {*questions}:
        wanted["judge"] = [*JUDGE, *corpus]
    side_by_side("trainings", [partial(_train, out / k, of) for k, of in wanted.items()], jobs)


def _train(run: Path, overrides: Sequence[str]) -> None:
    if (given := training(run, overrides)) is not None:
        midigenre("train", *given)


# --- one model beside twelve ----------------------------------------------------------------------


def by_song(run: Path) -> dict[str, tuple[str, float, int]]:
    """Genre, nats and notes of each test song of a generator, by the song's id."""
    trained = load_run(str(run), kind="generator")
    model, shards = trained.model, ShardSet(RunFolder(run).shards)
    assert isinstance(model, PhraseGenerator)
    metrics = TokenMetrics(trained.tokens)
    nats, notes = np.zeros(len(shards)), np.zeros(len(shards), np.int64)
    with torch.no_grad():
        for batch in PhraseDataModule(shards, **trained.data).eval_dataloader("test"):
            nats_NF, _ = model.loss(batch)
            song_N = np.repeat(batch.song_B.numpy(), batch.lengths)
            nats += np.bincount(song_N, nats_NF.sum(1).double().numpy(), len(shards))
            notes += np.bincount(song_N, metrics.notes_N(batch.ids_NF).numpy(), len(shards)).astype(
                np.int64
            )
    songs = shards.manifest
    return {
        songs[row]["song_id"]: (songs[row]["genre"], float(nats[row]), int(notes[row]))
        for row in shards.rows("test").tolist()
    }


def together(singles: Path, names: Sequence[str], out: Path) -> dict[str, Any]:
    """Nats per note of each corpus: its own model, and one model of all, for two lengths."""
    runs = {key: out / key for key in ("together", "together-long")}
    of_all = {key: by_song(run) for key, run in runs.items()}
    found: dict[str, Any] = {}
    for name in names:
        own = by_song(singles / name)
        songs = sorted(own)
        notes_S = np.array([own[song][2] for song in songs])
        nats = {"single": np.array([own[song][1] for song in songs])}
        for key, of in of_all.items():
            if any(of[song][2] != own[song][2] for song in songs):
                sys.exit(f"{runs[key]} has other notes of {name}'s test songs than {singles}")
            nats[key] = np.array([of[song][1] for song in songs])
        found[name] = {"songs": len(songs), "notes": int(notes_S.sum())}
        weights_RS = np.concatenate(list(song_weights(len(songs))))
        for key, nats_S in nats.items():
            more_S = nats_S - nats["single"]
            found[name][key] = {
                "nats_per_note": float(nats_S.sum() / notes_S.sum()),
                "more": float(more_S.sum() / notes_S.sum()),
                "ci95": interval((weights_RS @ more_S) / (weights_RS @ notes_S)),
            }
    cost = {
        key: {"steps": read_json(run / "metrics.json")["steps"],
              "seconds": read_json(run / "cost.json")["fit_seconds"]}
        for key, run in runs.items()
    }  # fmt: skip
    return {"corpora": found, "cost": cost}


def together_table(found: Mapping[str, Any]) -> str:
    """Nats per note, and how many more (or fewer) than the single models'."""
    steps = {key: of["steps"] for key, of in found["cost"].items()}
    header = [
        "nats per note",
        "its own model",
        *(f"one model, {n:,} updates" for n in steps.values()),
    ]
    lines = []
    for name, of in found["corpora"].items():
        lines.append([name, f"{of['single']['nats_per_note']:.3f}"])
        for key in steps:
            low, high = of[key]["ci95"]
            lines[-1].append(f"{of[key]['nats_per_note']:.3f} ({of[key]['more']:+.3f} "
                             f"[{low:+.3f}, {high:+.3f}])")  # fmt: skip
    means = [
        np.mean([of[key]["nats_per_note"] for of in found["corpora"].values()])
        for key in ("single", *steps)
    ]
    lines.append(["mean", *(f"{value:.3f}" for value in means)])
    return markdown_table(header, lines, 1)


# --- every corpus continued by every model --------------------------------------------------------


def continued(
    singles: Path, names: Sequence[str], songs: Path, n: int, out: Path, jobs: int | None
) -> dict[tuple[str, str], list[Path]]:
    """Draws what is missing; the pieces of each model and corpus."""
    primers: dict[str, list[Path]] = {name: [] for name in names}
    for row in read_csv(songs):
        if row["split"] == "test":
            primers[row["genre"]].append(Path(row["path"]))
    # Spread over the test songs, for neighbours may be of one work.
    few = {
        name: [paths[int(i)] for i in np.linspace(0, len(paths) - 1, min(n, len(paths)))]
        for name, paths in primers.items()
    }
    made = joblib.Parallel(jobs or -1)(
        joblib.delayed(_continue)(singles / name, few, out / "prompts" / name) for name in names
    )
    return {
        (name, of): paths for name, by in zip(names, made, strict=True) for of, paths in by.items()
    }


def _continue(run: Path, primers: Mapping[str, Sequence[Path]], out: Path) -> dict[str, list[Path]]:
    """Twelve more bars after the first four of each song, by one model."""
    torch.set_num_threads(1)
    trained = load_run(str(run), kind="generator")
    tokenizer = from_spec(trained.tokens)
    sampler = make_sampler(trained, torch.device("cpu"), None)
    settings = SamplingSettings(Choice(temperature=0.9, top_k=40), bars=3 * BARS)
    made: dict[str, list[Path]] = {}
    for name, paths in primers.items():
        made[name] = [out / f"{name}-{i}.mid" for i in range(len(paths))]
        for i, (path, piece) in enumerate(zip(paths, made[name], strict=True)):
            if piece.is_file():
                continue
            song = tokenizer.clean(read_score(path.read_bytes()))
            first = int(np.flatnonzero(song.onsets_per_bar())[0])
            phrase = song.bars(first, min(first + BARS, song.n_bars))
            ids_TF = tokenizer.encode(phrase).ids_TF.astype(np.int64)
            (sample,) = sampler.sample(
                {}, settings, n=1, first=i, primer=ids_TF, primer_bars=phrase.n_bars
            )
            write_bytes(piece, tokenizer.decode(sample.ids_TF).dumps_midi())
    return made


def heard(
    pieces: Mapping[tuple[str, str], Sequence[Path]], names: Sequence[str], judge: Path
) -> dict[str, Any]:
    """What the classifier takes the music for: of each model and corpus, from four bars to four.

    Returns:
        ``probability``: mean over the pieces, shape (models, corpora, parts, classes); the first
        part is the primer. ``share``: of the pieces with the class as the likeliest, likewise.
    """
    trained = load_run(str(judge))
    tokenizer, classes = from_spec(trained.tokens), trained.labels.classes["genre"]
    order = [classes.index(name) for name in names]
    parts = 4
    shape = (len(names), len(names), parts, len(names))
    probability, share = np.full(shape, np.nan), np.full(shape, np.nan)
    for (model, corpus), paths in pieces.items():
        songs = [tokenizer.clean(read_score(path.read_bytes())) for path in paths]
        read = MemorySongs([(song, tokenizer.encode(song)) for song in songs])
        predicted = predict_songs(trained.classifier, read, trained.tokens, trained.data)
        log_probs_NC = predicted.found.log_probs["genre"][:, order]
        part_N = predicted.phrases.first // BARS
        place = names.index(model), names.index(corpus)
        for part in range(parts):
            of_NC = np.exp(log_probs_NC[part_N == part])
            if len(of_NC):
                probability[(*place, part)] = of_NC.mean(0)
                chosen_N = of_NC.argmax(1)
                share[(*place, part)] = np.bincount(chosen_N, minlength=len(names)) / len(chosen_N)
    return {
        "names": list(names),
        "pieces": len(next(iter(pieces.values()))),
        "judge": read_json(judge / "evaluation.json")["genre"]["phrase"]["macro_f1"],
        "probability": np.round(probability, 4).tolist(),
        "share": np.round(share, 4).tolist(),
    }


def _curves(found: Mapping[str, Any]) -> dict[str, Any]:
    """Mean probability of the model's and the primer's corpus by part, of foreign primers."""
    p = np.array(found["probability"], float)
    n = len(p)
    foreign = [(m, c) for m in range(n) for c in range(n) if m != c]
    own = np.array([p[m, c, :, m] for m, c in foreign])
    primer = np.array([p[m, c, :, c] for m, c in foreign])
    home = np.array([p[m, m, :, m] for m in range(n)])
    return {"the model's corpus": own, "the primer's corpus": primer, "its own primers": home}


def figure(found: Mapping[str, Any]) -> Figure:
    """Two matrices of what is heard in the last eight bars, and how it moves."""
    names, share = found["names"], np.array(found["share"], float)
    late = np.nanmean(share[:, :, 2:], 2)
    n = len(names)
    made = new_figure(15, 6.4)
    panels = made.subplots(1, 3, width_ratios=[1, 1, 1.05])
    rows, columns = np.indices((n, n))
    matrices = (
        ("Taken for the model's corpus", late[rows, columns, rows]),
        ("Taken for the primer's corpus", late[rows, columns, columns]),
    )
    for axes, (title, values) in zip(panels, matrices, strict=False):
        axes.imshow(values, cmap="Blues", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(values):
            axes.text(column, row, f"{value:.0%}".rstrip("%"), ha="center", va="center",
                      fontsize=7, color="white" if value > 0.55 else INK)  # fmt: skip
        axes.set_xticks(range(n), names, rotation=60, ha="right", fontsize=8, color=INK)
        axes.set_yticks(range(n), names, fontsize=8, color=INK)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        titles(axes, title, "% of bars 9 to 16; row: model, column: primer")
    axes = panels[2]
    axes.set_box_aspect(1)
    labels = [f"{1 + BARS * i}–{BARS * (i + 1)}" for i in range(share.shape[2])]
    for (name, values), color in zip(_curves(found).items(), (BLUE, RED, FAINT), strict=True):
        axes.plot(labels, np.nanmean(values, 0), color=color, marker="o", label=name)
    axes.set_ylim(0, 1)
    axes.tick_params(length=0, colors=INK, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    titles(axes, "From the primer to the model", "mean probability of a corpus, by bars")
    return made


def prompts_table(found: Mapping[str, Any]) -> str:
    """Mean probabilities from four bars to four, with intervals over pairs of model and corpus."""
    header = ["probability, by bars"]
    header += [f"{1 + BARS * i}–{BARS * (i + 1)}" for i in range(4)]
    lines = []
    for name, values in _curves(found).items():
        lines.append([name])
        for of in values.T:
            known = of[np.isfinite(of)]
            drawn = np.concatenate(list(song_weights(len(known)))) @ known / len(known)
            low, high = interval(drawn)
            lines[-1].append(f"{known.mean():.2f} [{low:.2f}, {high:.2f}]")
    return markdown_table(header, lines, 1)


# --- chords and tempo -----------------------------------------------------------------------------


def judged(out: Path, key: str, n: int) -> dict[str, Any]:
    """Nats per note on the test songs, and what the judge says of pieces."""
    run, judgement = out / f"tokens-{key}", out / f"tokens-{key}" / "judged"
    if not (judgement / "judgement.json").is_file():
        midigenre("judge", f"run={run}", f"judge={out / 'judge'}", f"n={n}", "bars=16",
                  "temperature=0.9", "top_k=40", "shuffled=false", "audio=null",
                  f"out={judgement}")  # fmt: skip
    report = read_json(judgement / "judgement.json")
    of, control = read_json(run / "evaluation.json")["tokens"], report["control"]["genre"]
    form = report["structure"]
    return {
        "nats_per_note": of["nats_per_note"],
        "ci95": of["ci95"]["nats_per_note"],
        "steps_per_note": of["n_steps"] / of["n_notes"],
        "accuracy": {
            k: [control[k]["accuracy"], control[k]["ci95"]] for k in ("generated", "real")
        },
        "frechet": report["frechet"].get("value"),
        "similarity": {k: form[k]["repetition"]["similarity"][BARS - 1] for k in form},
        "tonic": {k: form[k]["tonic"]["share"] for k in form},
        "copied": report["novelty"]["generated"]["copied"]["share"],
        "silent": report["silent"],
        "seconds": read_json(run / "cost.json")["fit_seconds"],
    }


def tokens_table(found: Mapping[str, Any]) -> str:
    """The three vocabularies side by side; the last row is real music."""
    header = ["", "nats per note", "steps per note", "judge's accuracy", "Fréchet distance",
              f"similarity at {BARS} bars", "ends on the tonic", "copied"]  # fmt: skip
    lines = []
    for key, name in NAMES.items():
        of = found[key]
        score, (low, high) = of["accuracy"]["generated"]
        lines.append([
            name, f"{of['nats_per_note']:.3f} [{of['ci95'][0]:.3f}, {of['ci95'][1]:.3f}]",
            f"{of['steps_per_note']:.2f}", f"{score:.3f} [{low:.3f}, {high:.3f}]",
            "–" if of["frechet"] is None else f"{of['frechet']:.2f}",
            f"{of['similarity']['generated']:.3f}", f"{of['tonic']['generated']:.0%}",
            f"{of['copied']:.1%}",
        ])  # fmt: skip
    real, (low, high) = of["accuracy"]["real"]
    lines.append(["real", "", "", f"{real:.3f} [{low:.3f}, {high:.3f}]", "",
                  f"{of['similarity']['real']:.3f}", f"{of['tonic']['real']:.0%}", ""])  # fmt: skip
    return markdown_table(header, lines, 1)


if __name__ == "__main__":
    main()
