"""What a run has cost: tokens, phrases, seconds, memory."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch


class Cost:
    """Counts what training has seen and how long it took, over interruptions too.

    Args:
        tokens: Packed steps that were trained on so far (there is no padding).
        phrases: Phrases, likewise.
        seconds: Time in ``fit`` so far, validation included.
    """

    def __init__(self, tokens: int = 0, phrases: int = 0, seconds: float = 0.0) -> None:
        self.tokens, self.phrases = tokens, phrases
        self._before = seconds
        self.start()

    def start(self) -> None:
        """Starts the clock."""
        self._started = self._since = time.perf_counter()
        self._tokens_since = self.tokens

    @property
    def seconds(self) -> float:
        """Time in ``fit``, that of earlier, interrupted calls included."""
        return self._before + time.perf_counter() - self._started

    def add(self, tokens: int, phrases: int) -> None:
        """Counts a batch."""
        self.tokens += tokens
        self.phrases += phrases

    def rate(self) -> float:
        """Tokens a second since the last call."""
        now = time.perf_counter()
        rate = (self.tokens - self._tokens_since) / (now - self._since)
        self._tokens_since, self._since = self.tokens, now
        return rate

    def state_dict(self) -> dict[str, Any]:
        """Arguments that make an equal one."""
        return {"tokens": self.tokens, "phrases": self.phrases, "seconds": self.seconds}


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory so far: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
