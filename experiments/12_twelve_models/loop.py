"""Times a model of this study beside a plain PyTorch loop of the same shape, in turn.

    python experiments/12_twelve_models/loop.py --corpus bach --repeats 3

The loop is frozen: embedding, torch's own Transformer layers under a causal mask, Adam, a cosine;
no validation, no checkpoint, no log. Ours is ``midigenre train`` as the study runs it, with all of
these and a validation every 100 updates. Each trains for ``--steps`` updates in a process of its
own. Seconds are per 1,000 tokens, of which packed windows and padded batches hold different
numbers.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from study import CORPORA, MODEL, clock, songs_of
from torch import nn
from torch.nn import functional as fn

from midigenre.data.shards import ShardSet
from midigenre.evaluation.compare import markdown_table
from midigenre.files import read_json, write_json
from midigenre.run import RunFolder

sys.path.append(str(Path(__file__).parents[1]))
from quietly import commit, midigenre

LENGTH, BATCH = 256, 8


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", choices=CORPORA, default="bach")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/12_twelve_models/loop"))
    parser.add_argument("--plain", type=Path, metavar="SHARDS", help="the loop alone")
    args = parser.parse_args()
    if args.plain is not None:
        torch.set_num_threads(1)  # as quietly.midigenre runs ours
        print(plain(ShardSet(args.plain), args.steps))
        return
    pairs = []
    for repeat in range(args.repeats):
        ours, shards = _ours(args.out / str(time.time_ns()), args.corpus, args.steps)
        command = [sys.executable, __file__, "--plain", str(shards), "--steps", str(args.steps)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        pairs.append((ours, float(done.stdout)))
        said = f"{ours:.3f} and {pairs[-1][1]:.3f} s per 1,000 tokens"
        print(f"{repeat + 1} of {args.repeats}: {said}", file=sys.stderr)
    found = {"commit": commit(), "corpus": args.corpus, "steps": args.steps, "seconds": pairs}
    write_json(Path(__file__).parent / "results" / "loop.json", found)
    ours_s, plain_s = np.array(pairs).T
    ratio = ours_s / plain_s
    print(markdown_table(
        ["seconds per 1,000 tokens", "midigenre train", "plain loop", "ratio"],
        [["median", *(f"{np.median(of):.3f}" for of in (ours_s, plain_s, ratio))],
         ["least–most", *(f"{of.min():.3f}–{of.max():.3f}" for of in (ours_s, plain_s, ratio))]],
        1,
    ))  # fmt: skip


def _ours(run: Path, corpus: str, steps: int) -> tuple[float, Path]:
    """Seconds per 1,000 tokens of the study's training, and its shards."""
    midigenre(
        "train", f"hydra.run.dir={run}", *MODEL, f"trainer.max_steps={steps}", *clock(1200),
        *songs_of(corpus, None, run.parent), "test=false",
    )  # fmt: skip
    cost = read_json(run / "cost.json")
    return 1000 * cost["fit_seconds"] / cost["train_tokens"], RunFolder(run).shards


class PlainDecoder(nn.Module):
    """The same widths from torch's own parts; learned positions."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(n_tokens, 128), nn.Embedding(LENGTH, 128)
        layer = nn.TransformerEncoderLayer(
            128, 4, 128, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 3, nn.LayerNorm(128), False)
        self.out = nn.Linear(128, n_tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Logits of the next token, shape (B, T, V)."""
        h = self.tokens(ids_BT) + self.places.weight[: ids_BT.shape[1]]
        logits: torch.Tensor = self.out(self.layers(h, mask=self.mask, is_causal=True))
        return logits


def plain(shards: ShardSet, steps: int) -> float:
    """Seconds per 1,000 tokens of the loop."""
    songs = [shards.encoded(int(i)).ids_TF[:, 0].astype(np.int64) for i in shards.rows("train")]
    stream = np.concatenate(songs)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    model = PlainDecoder(shards.tokens.sizes[0]).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    began = time.perf_counter()
    for _ in range(steps):
        starts = random.integers(0, len(stream) - LENGTH - 1, BATCH)
        windows = torch.from_numpy(np.stack([stream[at : at + LENGTH + 1] for at in starts]))
        logits = model(windows[:, :-1])
        loss = fn.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return 1000 * (time.perf_counter() - began) / (steps * BATCH * LENGTH)


if __name__ == "__main__":
    main()
