import pytest
import torch

from utils.label_metrics import accuracy, area_under_roc


def test_accuracy_counts_the_largest_logit():
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 1.0, 2.0], [0.0, 0.0, 1.0], [5.0, 6.0, 7.0]])
    assert accuracy(logits, torch.tensor([1, 0, 2, 0])) == 75


def test_area_under_roc_is_the_share_of_pairs_in_order_with_ties_half():
    torch.manual_seed(0)
    score, label = torch.randint(0, 5, (60,)).float(), torch.randint(0, 2, (60,))
    positive, negative = score[label == 1], score[label == 0]
    pairs = (positive[:, None] > negative[None, :]).double() + 0.5 * (positive[:, None] == negative[None, :])
    found = area_under_roc(torch.stack([-score, score], dim=1), label)
    assert found == pytest.approx(100 * pairs.mean().item())


def test_area_under_roc_of_one_class_is_an_error():
    with pytest.raises(ValueError, match="needs texts of both classes; found 3 of class 1 among 3"):
        area_under_roc(torch.zeros(3, 2), torch.ones(3, dtype=torch.long))
