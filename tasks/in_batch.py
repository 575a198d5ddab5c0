"""Chinese-CLIP's validation: the contrastive loss and the accuracies within batches of shuffled pairs.

Its trainer never ranks a whole gallery; its log says how well pairs are told apart in batches of --valid-batch-size.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)
_BLOCK_ELEMENTS = 1 << 24  # similarities that are held at once


def shuffled_batches(num_pairs: int, batch_size: int, num_processes: int, seed: int) -> Tensor:
    """Numbers of the pairs in the batches of all processes: (b, N), a row for each process's batch of N.

    As torch's DistributedSampler hands them out: the count is filled up to whole batches of all processes with the
    first pairs, shuffled by the seed, and process r takes every R-th from r.
    """
    total = -(-num_pairs // (batch_size * num_processes)) * batch_size * num_processes
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)) % num_pairs
    return order.view(-1, num_processes).T.reshape(-1, batch_size)  # (b, N)


def in_batch_metrics(
    image: Tensor,
    text: Tensor,
    temperature: Tensor,
    pairs: Tensor,
    *,
    batch_size: int,
    num_processes: int,
    seed: int,
) -> dict[str, float]:
    """Loss and percent of right answers in both directions, means over all pairs; image (M, E) and text (T, E) are unit
    vectors, pairs (P, 2) rows of (text, image), batch_size counts the pairs of a process.

    Only the pair itself is right, so a batch that shows a picture twice never reaches 100.
    """
    batches = shuffled_batches(len(pairs), batch_size, num_processes, seed)
    target = torch.arange(batch_size, device=image.device)
    sums = torch.zeros(3, device=image.device)
    for block in batches.split(max(1, _BLOCK_ELEMENTS // batch_size**2)):
        texts, images = pairs[block].to(image.device).unbind(dim=-1)  # (b, N) each
        with torch.autocast(image.device.type, enabled=False):
            logits = image[images] @ text[texts].transpose(1, 2) / temperature  # (b, N, N)
        wanted = target.repeat(len(block))  # (b * N,)
        sides = logits.flatten(0, 1), logits.transpose(1, 2).flatten(0, 1)  # (b * N, N)
        losses = [F.cross_entropy(side, wanted, reduction="sum") for side in sides]
        right = [(side.argmax(dim=1) == wanted).sum() for side in sides]
        sums += torch.stack([sum(losses) / 2, *right])
    loss, image_to_text, text_to_image = (sums / batches.numel()).tolist()
    log.info(
        "%d pairs in batches of %d: loss %.6f, image to text %.2f, text to image %.2f",
        *(len(pairs), batch_size, loss, 100 * image_to_text, 100 * text_to_image),
    )
    return {
        "loss": loss,
        "image_to_text_accuracy": 100 * image_to_text,
        "text_to_image_accuracy": 100 * text_to_image,
        "batch_size": batch_size,
    }
