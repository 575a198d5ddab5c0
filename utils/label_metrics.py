"""Numbers of classification: accuracy and the area under the ROC curve, in percent."""

from __future__ import annotations

from torch import Tensor


def accuracy(logits: Tensor, label: Tensor) -> float:
    """Share of texts whose largest logit is that of their class; logits (T, C), label (T,)."""
    return 100 * (logits.argmax(dim=1) == label).double().mean().item()


def area_under_roc(logits: Tensor, label: Tensor) -> float:
    """How often a text of class 1 scores above one of class 0, ties counting half; ValueError without both classes.

    logits (T, 2), of which column 1 is the score.
    """
    is_positive = label == 1
    num_positive, num_negative = int(is_positive.sum()), int((~is_positive).sum())
    if not num_positive or not num_negative:
        found = f"found {num_positive} of class 1 among {len(label)}"
        raise ValueError(f"the area under the ROC curve needs texts of both classes; {found}")
    _, place, count = logits[:, 1].unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0)
    mean_rank = (last - (count - 1) / 2).double()  # ranks from 1; equal scores share their mean
    above = mean_rank[place][is_positive].sum() - num_positive * (num_positive + 1) / 2
    return 100 * (above / (num_positive * num_negative)).item()


METRICS = {"accuracy": accuracy, "auc": area_under_roc}


def chance(metric: str, num_classes: int) -> float:
    """What guessing reaches."""
    return 100 / num_classes if metric == "accuracy" else 50.0
