import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from efficient_mae.tasks.classify.confusion import draw_confusion
from efficient_mae.tasks.classify.evaluation import Scorer
from efficient_mae.tasks.intervals import mean_and_interval


def test_scores_are_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 8, (500,), generator=generator)
    labels[labels == 6] = 5  # a class without images
    logits = torch.randn(500, 8, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 8)
    scorer = Scorer(8, torch.device("cpu"))
    for part in range(0, 500, 64):
        scorer.add(logits[part : part + 64], labels[part : part + 64])
    found, choice = scorer.result(), logits.argmax(dim=1)
    assert found.images == 500
    assert found.top1 == pytest.approx(metrics.accuracy_score(labels, choice), abs=1e-6)
    top5 = metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(8))
    assert found.top5 == pytest.approx(top5, abs=1e-6)
    assert found.confusion == metrics.confusion_matrix(labels, choice, labels=range(8)).tolist()
    recalls = metrics.recall_score(labels, choice, labels=range(8), average=None, zero_division=0)
    assert found.per_class[6] is None
    present = [k for k in range(8) if k != 6]
    assert [found.per_class[k] for k in present] == pytest.approx(recalls[present], abs=1e-6)


def test_no_top_5_of_five_classes():
    scorer = Scorer(5, torch.device("cpu"))
    scorer.add(torch.eye(5), torch.arange(5))
    assert scorer.result().top5 is None and scorer.result().scores() == {"top1": 1.0}


def test_the_interval_is_students():
    # By hand: mean 2, standard deviation 1, t(0.975; 2) = 4.302653, half-width 4.302653 / sqrt(3).
    found = mean_and_interval([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.half_width == pytest.approx(2.484138, abs=1e-6)
    values = np.random.default_rng(0).normal(size=5).tolist()
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    found = mean_and_interval(values)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    with pytest.raises(ValueError, match="two at least"):
        mean_and_interval([0.5])


@pytest.mark.parametrize("classes", [2, 12, 100])
def test_a_confusion_matrix_is_drawn(tmp_path, classes: int):
    draw_confusion(
        np.eye(classes, dtype=int).tolist(), [f"class {k}" for k in range(classes)], "t", tmp_path / "c.png"
    )
    assert (tmp_path / "c.png").stat().st_size > 3000
