"""Packed attention and the model ``base`` on one GPU; ``python experiments/speed/gpu.py``.

Checks that packed attention in bfloat16 on the GPU equals float32 on the CPU within the tolerance
of bfloat16, then measures real tokens/s and model FLOP/s utilisation of the training step (bfloat16
autocast, 64 phrases with the lengths of real full-band songs). Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch

from midigenre.models import packed_attention

# Dense bfloat16 with float32 sums, TFLOP/s, from NVIDIA's data sheets.
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "4090": 165}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--peak-tflops", type=float, help="bfloat16 peak of a GPU not known here")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu: torch sees no CUDA device here; run this on a machine with an NVIDIA GPU")
    name = torch.cuda.get_device_name()
    peak = args.peak_tflops or next((v for k, v in PEAK_TFLOPS.items() if k in name), None)
    if peak is None:
        sys.exit(f"gpu: no peak known for {name}; give its dense bfloat16 one with --peak-tflops")
    print(json.dumps({"device": name, **agreement(), **training(args.steps, peak)}))


def agreement() -> dict[str, float]:
    """Largest difference of outputs and gradients to the CPU's; stops if it is beyond bfloat16."""
    lengths = (5, 1, 130, 64, 700)
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    torch.manual_seed(0)
    # Rounded first, so that both sides start from the same numbers.
    qkv = torch.randn(sum(lengths), 3, 8, 64).bfloat16()
    gradient = torch.randn(sum(lengths), 8, 64).bfloat16()
    results = []
    for device, kind in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        x = qkv.to(device, kind).requires_grad_()
        q, k, v = x.unbind(1)
        out = packed_attention(q, k, v, cu_seqlens.to(device), lengths, causal=False)
        out.backward(gradient.to(device, kind))  # type: ignore[no-untyped-call]
        assert x.grad is not None
        results.append([out.detach().cpu().float(), x.grad.cpu().float()])
    for gpu, cpu in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(gpu, cpu, atol=2e-2, rtol=2e-2)
    differences = [float((a - b).abs().max()) for a, b in zip(*results, strict=True)]
    return dict(zip(("output_difference", "gradient_difference"), differences, strict=True))


def training(steps: int, peak_tflops: float) -> dict[str, float]:
    """Throughput of the step of ``model=base`` and its share of the GPU's peak."""
    from phrase_sets import composed, full_band
    from sides import model_flops

    from midigenre import build

    cfg = composed("model=base")
    phrases = full_band(64, 64)
    torch.manual_seed(0)
    model = build.make_model(
        build.plain(cfg.model), build.plain(cfg.task), phrases.tokens, phrases.classes
    )
    model.cuda().train()
    optimizer = build.make_optim(cfg).optimizer(model)
    batch = phrases.batches()[0].to("cuda")

    def run(n: int) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(n):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = model.loss(model(batch), batch)[0]
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    run(5)  # Compiles kernels and fills caches.
    seconds = run(steps)
    flops = model_flops(phrases, cfg.model) * steps
    return {
        "tokens_per_second": batch.n_tokens * steps / seconds,
        "model_tflops": flops / seconds / 1e12,
        "mfu": flops / seconds / 1e12 / peak_tflops,
    }


if __name__ == "__main__":
    main()
