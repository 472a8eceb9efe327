"""Training metrics give the numbers of scores.py, alone and over processes."""

import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist

from midigenre.evaluation.metrics import (
    METRICS,
    Counts,
    confusion_matrix,
    scores_of,
)
from midigenre.tasks.classify import LabelMetrics


def batches(seed, n=3, size=50, c=4):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        target = torch.randint(-1, c, (size,), generator=generator)
        logits = torch.randn(size, c, generator=generator)
        yield logits, torch.where(target == 2, 1, target)  # class 2 has no support


def expected(data, c=4):
    logits, target = (torch.cat(x) for x in zip(*data, strict=True))
    known = target != -1
    return confusion_matrix(target[known], logits.argmax(1)[known], c)


def test_equals_numpy():
    metric = LabelMetrics(4)
    for logits, target in batches(0):
        metric.update(logits, target)
    confusion_CC = expected(batches(0))
    assert (metric.confusion() == confusion_CC).all()
    values = metric.compute()
    assert set(values) == set(METRICS)
    for name, score in scores_of(Counts.of_confusion(confusion_CC)).items():
        assert values[name].item() == pytest.approx(score)


def test_forward_reset_and_pickle():
    metric = LabelMetrics(4)
    data = list(batches(1))
    for logits, target in data:
        metric(logits, target)
    assert (metric.confusion() == expected(data)).all()
    assert (pickle.loads(pickle.dumps(metric)).confusion() == expected(data)).all()
    metric.reset()
    metric.update(*data[0])
    assert (metric.confusion() == expected(data[:1])).all()


def test_nothing_known_is_nan_and_not_zero():
    metric = LabelMetrics(3)
    metric.update(torch.randn(5, 3), torch.full((5,), -1))
    assert all(torch.isnan(value) for value in metric.compute().values())


def test_one_class_and_class_predictions():
    metric = LabelMetrics(1)
    metric.update(torch.randn(4, 1), torch.tensor([0, 0, -1, 0]))
    assert metric.compute()["macro_f1"] == 1
    metric = LabelMetrics(3)
    metric.update(torch.tensor([0, 2]), torch.tensor([0, 1]))
    assert metric.confusion().tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="predictions"):
        LabelMetrics(3).update(torch.randn(4, 5), torch.zeros(4, dtype=torch.long))


def _worker(rank, store, out):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metric = LabelMetrics(4)
    for logits, target in batches(rank):
        metric.update(logits, target)
    values = {name: value.item() for name, value in metric.compute().items()}
    torch.save((values, metric.confusion()), f"{out}{rank}")
    dist.destroy_process_group()


def test_distributed_scores_are_those_of_all_phrases(tmp_path):
    torch.multiprocessing.spawn(_worker, (str(tmp_path / "store"), str(tmp_path / "out")), nprocs=2)
    confusion_CC = expected([*batches(0), *batches(1)])
    for rank in range(2):
        values, confusion = torch.load(tmp_path / f"out{rank}", weights_only=False)
        assert np.array_equal(confusion, confusion_CC)
        assert values == pytest.approx(scores_of(Counts.of_confusion(confusion_CC)))
