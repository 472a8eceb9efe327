"""``midigenre prepare``: corpus to manifest to shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from midigenre.build import make_corpus, make_tokenizer, prepared
from midigenre.commands.console import console, progress_bars
from midigenre.data.prepare import default_workers, estimate, refresh_report
from midigenre.data.report import print_report
from midigenre.errors import UserError


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
        about = estimate(corpus, make_tokenizer(cfg, corpus), Path(cfg.home), workers)
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
    report = refresh_report(shards, cfg.data.phrase_bars, cfg.data.max_tokens)
    print_report(report, console)
    print(shards.folder)
