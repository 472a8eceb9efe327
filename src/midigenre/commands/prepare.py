"""``midigenre prepare``: corpus to manifest to shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from midigenre.build import make_corpus, make_tokenizer, plain, prepared
from midigenre.commands.console import console, progress_bars
from midigenre.data.labels import LabelSettings
from midigenre.data.phrases import phrase_length
from midigenre.data.prepare import Settings, default_workers, estimate, refresh_report
from midigenre.data.report import label_file, print_report
from midigenre.errors import UserError
from midigenre.evaluation.figures import save
from midigenre.evaluation.label_figures import label_figure


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Prepares shards and prints their folder on stdout.

    Raises:
        UserError: The corpus cannot be used.
    """
    if paths:
        raise UserError(f"prepare takes no paths after --, got {paths[0]!r}; set corpus.root=DIR")
    if cfg.dry_run:
        corpus = make_corpus(cfg)
        workers = cfg.n_workers or default_workers()
        settings = Settings(n_workers=workers, labels=LabelSettings.of(plain(cfg.labels)))
        about = estimate(corpus, make_tokenizer(cfg, corpus), Path(cfg.home), settings)
        console.print(
            f"{about['songs']:,} songs: about {about['seconds']:,} s with {workers} processes and "
            f"{about['megabytes']:,} MB on disk ({about['free_megabytes']:,} MB are free); "
            f"{about['refused_in_sample']} of {about['sampled']} sampled songs would be refused"
        )
        return
    with progress_bars() as progress:
        shards = prepared(cfg, progress)
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
