"""What FSDP does to batches and to the names of parameters does not change the training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.precision import FSDPPrecision
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from midigenre.models import Encoder
from midigenre.models.transformer import EncoderLayer
from midigenre.spec import Batch
from midigenre.tasks.base import Task
from midigenre.tasks.optim import AdamWSettings, matrices


@pytest.fixture
def one_process(tmp_path: Path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:FSDP is switching")
def test_the_same_parameters_decay_when_sharded() -> None:
    model = Encoder(8, 2, 2, 8)
    optim = AdamWSettings(lr=0.1, weight_decay=0.3)
    decayed = matrices(model)
    plain = [len(group["params"]) for group in optim.optimizer(model, decayed).param_groups]
    wrapped = FullyShardedDataParallel(
        model, auto_wrap_policy=ModuleWrapPolicy({EncoderLayer}), use_orig_params=True,
        device_id=torch.device("cpu"),
    )  # fmt: skip
    names = [name for name, _ in wrapped.module.named_parameters()]
    assert any("_fsdp_wrapped_module" in name for name in names)
    groups = optim.optimizer(wrapped.module, decayed).param_groups
    assert [len(group["params"]) for group in groups] == plain
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]


def test_a_batch_passes_the_precision_of_fsdp_unchanged() -> None:
    zeros_B = torch.zeros(1, dtype=torch.int64)
    batch = Batch(
        torch.zeros(3, 1, dtype=torch.int64), torch.tensor([0, 3], dtype=torch.int32), (3,),
        {"genre": zeros_B}, zeros_B, zeros_B, {"genre": torch.tensor([257.0])},
    )  # fmt: skip
    plugin = FSDPPrecision("bf16-mixed")
    Task.setup(SimpleNamespace(trainer=SimpleNamespace(precision_plugin=plugin)), "fit")  # type: ignore[arg-type]
    passed = plugin.convert_input(batch)
    assert passed.step_counts["genre"].dtype == torch.float32  # bfloat16 knows no 257
    assert passed.step_counts["genre"].item() == 257


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_fsdp_trains_and_its_checkpoint_loads(tmp_path: Path, precision: str) -> None:
    def midigenre(*arguments: str) -> str:
        command = [sys.executable, "-m", "midigenre", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    run = midigenre(
        "train", "corpus=toy", f"home={tmp_path}", "trainer=fsdp", "trainer.devices=1",
        f"precision={precision}", "model=tiny", "optim=adamw", "trainer.max_epochs=1",
    )  # fmt: skip
    midigenre("train", f"resume={run}", f"home={tmp_path}", "trainer.max_epochs=2")
    assert Path(tmp_path, midigenre("evaluate", f"run={run}", "device=cuda")).is_file()
