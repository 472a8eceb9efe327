"""``midigenre export``: a trained model as a folder to hand on, or to put on the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import DictConfig
from safetensors.torch import save

from midigenre import __version__
from midigenre.commands.console import say
from midigenre.errors import UserError
from midigenre.evaluation.blend import SONG_MODELS_FOLDER
from midigenre.evaluation.calibration import CALIBRATION_FILE, Calibration
from midigenre.evaluation.compare import markdown_table
from midigenre.files import read_json, write_bytes, write_json
from midigenre.run import EXPORTED, EXPORTED_ABOUT, RunFolder, folder_of, settings_of
from midigenre.tasks.kinds import CHECKPOINT_KEY
from midigenre.tasks.predict import load_song_models
from midigenre.trained import Run, describe_checkpoint, load_run

CARD = "README.md"


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Writes the folder, uploads it where ``push`` names a repository, and prints it on stdout.

    Raises:
        UserError: There is no such run, it is an exported model already, the folder holds something
            else, or the upload failed.
    """
    if paths:
        raise UserError(f"{' '.join(paths)}: export takes no file; give run=RUN")
    if cfg.to != "hub":
        raise UserError(f"to={cfg.to}; choose hub")
    trained = load_run(cfg.run, cfg.ckpt, ("classifier", "generator"))
    if trained.checkpoint.name == EXPORTED:
        raise UserError(
            f"run={cfg.run} is an exported model already: copy the folder, or export the run again"
        )
    out = Path(cfg.out).expanduser() if cfg.out else folder_of(trained.checkpoint) / "hub"
    if out.exists() and not (out / EXPORTED).is_file() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"out={out} holds something else; give a new folder")
    write_folder(trained, out, cfg.license)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    say(f"{trained.kind}, {size / 1e6:.1f} MB; use it as run={out} or midigenre.load({str(out)!r})")
    if cfg.push is not None:
        say(f"uploaded: {upload(out, str(cfg.push), bool(cfg.private))}")
    print(out)


def write_folder(trained: Run, out: Path, licence: str | None) -> None:
    """Writes weights, settings, calibration, song models and the model card."""
    out.mkdir(parents=True, exist_ok=True)
    (out / EXPORTED).unlink(missing_ok=True)  # an earlier export's never stand beside new settings
    weights = {k: v.detach().cpu().contiguous() for k, v in trained.model.state_dict().items()}
    about = {CHECKPOINT_KEY: describe_checkpoint(trained.checkpoint), "version": __version__}
    write_json(out / EXPORTED_ABOUT, about)
    shutil.rmtree(out / SONG_MODELS_FOLDER, ignore_errors=True)  # of an earlier export
    (out / CALIBRATION_FILE).unlink(missing_ok=True)
    if trained.kind == "classifier":
        source = folder_of(trained.checkpoint)
        blends, _ = load_song_models(trained.checkpoint, trained.classifier, trained.task)
        if blends is not None:
            blends.save(out / SONG_MODELS_FOLDER)
        if Calibration.of_run(source, trained.checkpoint, blends is not None) is not None:
            shutil.copyfile(source / CALIBRATION_FILE, out / CALIBRATION_FILE)
    write_bytes(out / CARD, card(trained, licence).encode())
    write_bytes(out / EXPORTED, save(weights, {"format": "pt"}))  # what makes it an export: last


def card(trained: Run, licence: str | None) -> str:
    """The model card: front matter for the Hub, use, labels, data, scores, limits."""
    run = RunFolder(folder_of(trained.checkpoint))
    config = run.config if run.has_config else {}
    evaluation: dict[str, Any] = {}
    if run.tested:
        tested = read_json(run.path / "metrics.json")["tested"]
        if (tested["epoch"], tested["step"]) == (trained.epoch, trained.step):
            evaluation = read_json(run.path / "evaluation.json")
    corpus = str(settings_of(config)["corpus"]) if config else "unknown"
    what = "classification" if trained.kind == "classifier" else "generation"
    name = str(config.get("name", trained.kind))
    head: dict[str, Any] = {
        "library_name": "midigenre",
        "tags": ["midi", "symbolic-music", "music", f"music-{what}", "pytorch"],
    }
    if licence is not None:
        head["license"] = licence
    if results := list(_results(evaluation, corpus, what)):
        head["model-index"] = [{"name": name, "results": results}]
    environment = Environment(
        loader=PackageLoader("midigenre", "commands"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    labels = {k: v for k, v in trained.labels.classes.items() if k in _labels(trained)}
    return environment.get_template("card.md").render(
        head=yaml.safe_dump(head, sort_keys=False, allow_unicode=True), name=name,
        kind=trained.kind, labels=labels, corpus=corpus, tokens=trained.tokens.name,
        parameters=sum(p.numel() for p in trained.model.parameters()), data=trained.data,
        scores=_scores(evaluation), licence=licence, version=__version__,
    )  # fmt: skip


def _labels(trained: Run) -> Sequence[str]:
    if trained.kind == "classifier":
        return list(trained.classifier.label_heads())
    return list(trained.task["conditions"])


def _results(evaluation: Mapping[str, Any], corpus: str, what: str) -> Iterator[dict[str, Any]]:
    """Entries of the Hub's ``model-index``."""
    about = {
        "task": {"type": f"music-{what}", "name": f"Symbolic music {what}"},
        "dataset": {"name": corpus, "type": corpus, "split": "test"},
    }
    for label, levels in evaluation.items():
        if label == "tokens":
            yield about | {"metrics": [
                {"type": "nats_per_note", "name": "nats per note", "value": levels["nats_per_note"]}
            ]}  # fmt: skip
            continue
        yield about | {"metrics": [
            {"type": kind, "name": f"{label}, {level}: {name}", "value": levels[level][key]}
            for level in ("song", "phrase") if level in levels
            for kind, key, name in (("accuracy", "accuracy", "accuracy"),
                                    ("f1", "macro_f1", "macro-F1"))
        ]}  # fmt: skip


def _scores(evaluation: Mapping[str, Any]) -> str:
    """The test's table: of a classifier by song, beside the baselines; empty without a test."""
    lines = []
    for label, levels in evaluation.items():
        if label == "tokens":
            value, (low, high) = levels["nats_per_note"], levels["ci95"]["nats_per_note"]
            return f"Test songs: {value:.3f} nats per note [{low:.3f}, {high:.3f}]."
        scores = levels["song"]
        rows = {"this model": scores} | {
            name: of for name, of in scores["baselines"].items() if of is not None
        }
        for name, of in rows.items():
            low, high = of["ci95"]["macro_f1"]
            f1 = f"{of['macro_f1']:.3f} [{low:.3f}, {high:.3f}]"
            lines.append([label, name, f"{of['accuracy']:.3f}", f1])
    header = ["label", "by song", "accuracy", "macro-F1 [95 % interval over songs]"]
    return markdown_table(header, lines, 2) if lines else ""


def upload(folder: Path, repository: str, private: bool) -> str:
    """Uploads an exported folder to the Hub; makes the repository where there is none.

    Returns:
        Where it is.

    Raises:
        UserError: The Hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.create_repo(repository, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder))
    except Exception as error:  # also those of the HTTP client that it happens to use
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"push={repository}: {said}; log in with `hf auth login` and push again, {folder} stays"
        ) from error
