"""The loss and the accuracies within batches are those of Chinese-CLIP's validation, pair by pair."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from tasks.in_batch import in_batch_metrics

NUM_PAIRS, SEED = 23, 123


class PaddedPairs:
    """Numbers of pairs, filled up to whole batches of all processes with the first ones."""

    def __init__(self, batch_size: int, num_processes: int) -> None:
        whole = batch_size * num_processes
        self.count = -(-NUM_PAIRS // whole) * whole

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> int:
        return number % NUM_PAIRS


def plain_metrics(image, text, temperature, pairs, batch_size, num_processes) -> list[float]:
    """As the paper's trainer does it: a process reads its own batches, one after the other; sums over all of them."""
    data, sums = PaddedPairs(batch_size, num_processes), torch.zeros(3)
    for rank in range(num_processes):
        sampler = DistributedSampler(data, num_processes, rank, shuffle=True, seed=SEED)
        for numbers in DataLoader(data, batch_size, sampler=sampler):
            texts, images = pairs[numbers].T
            logits, target = image[images] @ text[texts].T / temperature, torch.arange(batch_size)
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            hits = [(side.argmax(dim=1) == target).sum() for side in (logits, logits.T)]
            sums += torch.tensor([loss * batch_size, *hits])
    return (sums / len(data)).tolist()


@pytest.mark.parametrize("num_processes", [1, 3])
@pytest.mark.parametrize("batch_size", [4, 32])
def test_numbers_equal_those_of_batches_read_one_after_the_other(batch_size, num_processes, monkeypatch):
    monkeypatch.setattr("tasks.in_batch._BLOCK_ELEMENTS", 40)
    draw = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(count, 8, generator=draw), dim=1) for count in (9, 12))
    text = F.normalize(text + image[torch.arange(12) % 9], dim=1)  # most pairs find each other
    pairs = torch.stack([torch.arange(NUM_PAIRS) % 12, torch.arange(NUM_PAIRS) % 12 % 9], dim=1)
    temperature = torch.tensor(0.07)
    options = {"batch_size": batch_size, "num_processes": num_processes, "seed": SEED}
    found = in_batch_metrics(image, text, temperature, pairs, **options)
    loss, image_to_text, text_to_image = plain_metrics(image, text, temperature, pairs, batch_size, num_processes)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["image_to_text_accuracy"] == pytest.approx(100 * image_to_text)
    assert found["text_to_image_accuracy"] == pytest.approx(100 * text_to_image)
