"""What may happen to ``trainer.fit`` ends in one line that says how to continue."""

from types import SimpleNamespace

import pytest
import torch

from midigenre.errors import UserError
from midigenre.tasks.base import Cost, fit, peak_memory_bytes


class Trainer:
    global_step, accumulate_grad_batches = 7, 2

    def __init__(self, error, n_batches=0):
        self.error, self.n_batches, self.callbacks = error, n_batches, []

    def fit(self, *_, **__):
        for callback in self.callbacks * self.n_batches:
            callback.on_train_batch_end()
        raise self.error


def allocation_failure():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), allocation_failure()]
)
def test_out_of_memory_names_the_remedy(error):
    trainer = Trainer(error)
    data = SimpleNamespace(settings=SimpleNamespace(batch_phrases=32, max_tokens=1024))
    with pytest.raises(UserError) as caught:
        fit(trainer, SimpleNamespace(trainer=trainer), data, None, print)
    message = str(caught.value)
    assert "step 7" in message
    assert "data.batch_phrases=16 trainer.accumulate_grad_batches=4" in message


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes"):
        fit(Trainer(RuntimeError("shapes")), None, None, None, print)


def test_what_fails_before_a_resumed_run_has_trained_is_the_checkpoint():
    with pytest.raises(UserError, match=r"last\.ckpt cannot be resumed.* shapes.*delete it"):
        fit(Trainer(RuntimeError("shapes")), None, None, "last.ckpt", print)
    with pytest.raises(RuntimeError, match="shapes"):
        fit(Trainer(RuntimeError("shapes"), n_batches=1), None, None, "last.ckpt", print)


def test_cost_counts_over_interruptions():
    first = Cost()
    first.add(100, 3)
    second = Cost(**first.state_dict())
    second.add(50, 1)
    assert (second.tokens, second.phrases) == (150, 4)
    assert 10 <= Cost(seconds=10.0).seconds < 20
    assert second.rate() > 0


def test_memory_is_at_least_what_is_held():
    held = torch.ones(50_000_000)
    assert peak_memory_bytes(torch.device("cpu")) > held.numel() * 4
