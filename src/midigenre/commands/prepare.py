"""``midigenre prepare``: corpus to manifest to shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from midigenre.build import make_corpus, make_tokenizer, prepare_settings, prepared
from midigenre.commands.console import console, progress_bars
from midigenre.commands.prepared import answer, remove_matching, show
from midigenre.data.phrases import phrase_length
from midigenre.data.prepare import estimate, refresh_report
from midigenre.data.report import label_file, print_report
from midigenre.errors import UserError
from midigenre.evaluation.figures import save
from midigenre.evaluation.figures.charts import label_figure
from midigenre.storage import location
from midigenre.wording import plural


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Prepares shards and prints their folder on stdout.

    Raises:
        UserError: The corpus cannot be used.
    """
    if paths:
        raise UserError(f"prepare takes no paths after --, got {paths[0]!r}; set corpus.root=DIR")
    if cfg.list or cfg.clean is not None:
        folder = cfg.prepare.folder
        root = Path(cfg.home) / "shards" if folder is None else location(folder)
        if not isinstance(root, Path):
            raise UserError(
                f"prepare.folder={root}: list=true and clean=... look at folders here only"
            )
        if cfg.clean is not None:
            remove_matching(
                root, str(cfg.clean), console, lambda question: answer(question, console, cfg.yes)
            )
        if cfg.list:
            show(root, console)
        return
    if cfg.dry_run:
        corpus = make_corpus(cfg)
        settings = prepare_settings(cfg)
        about = estimate(corpus, make_tokenizer(cfg, corpus), Path(cfg.home), settings)
        console.print(
            f"{plural(about['songs'], 'song')}: about {about['seconds']:,} s with "
            f"{plural(settings.workers.n, 'process', 'processes')} and "
            f"{about['megabytes']:,} MB on disk ({about['free_megabytes']:,} MB are free); "
            f"{about['rejected_in_sample']} of {plural(about['sampled'], 'sampled song')} would be "
            "rejected"
        )
        return
    with progress_bars() as progress:
        shards = prepared(cfg, progress, any_tokenizer=True)
    if cfg.verify:
        shards.verify()
        console.print(f"all {len(shards.parts)} shards are whole", highlight=False)
    report = refresh_report(shards, phrase_length(cfg.data, shards.tokens), cfg.data.max_tokens)
    print_report(report, console)
    for i, table in enumerate(report["label_tables"]):
        path = shards.folder / f"{label_file(table, first=i == 0)}.png"
        if not path.is_file():
            title = f"{report['corpus']}: {' × '.join(table['labels'])}"
            save(label_figure(table["songs"], table["labels"], table["classes"], title), path)
        console.print(f"{path} and .csv hold this table", highlight=False, soft_wrap=True)
    print(shards.folder)
