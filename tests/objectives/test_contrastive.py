import math

import pytest
import torch
import torch.nn.functional as F

from bench import plain
from objectives import chunked_contrastive
from objectives.chunked_contrastive import Positives, contrastive_losses
from objectives.contrastive import gathered_contrastive_losses
from tests.ranks import run_on_ranks


def unit(rows: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=1).requires_grad_()


def dense_losses(rows, columns, temperature, positives):
    """Both losses straight from their definition."""
    scores = rows @ columns.T / temperature
    right = positives.matrices(slice(None))[0].float()
    weight = right / right.sum(1, keepdim=True).clamp_min(1) if positives.is_mean else right
    if positives.is_exclusive:
        negatives = scores.masked_fill(right.bool(), -torch.inf).logsumexp(1, keepdim=True)
        row = -(weight * (scores - torch.logaddexp(scores, negatives))).sum(1).mean()
    else:
        row = -(weight * scores.log_softmax(1)).sum(1).mean()
    column = -(right / right.sum(0).clamp_min(1) * scores.log_softmax(0)).sum(0).mean()
    return row, column


@pytest.mark.parametrize("is_exclusive", [False, True])
@pytest.mark.parametrize("is_mean", [False, True])
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_chunks_agree_with_the_dense_definition(is_mean, is_exclusive, chunk, monkeypatch):
    monkeypatch.setattr(chunked_contrastive, "CHUNK_ELEMENTS", chunk)
    rows, columns, temperature = unit(6), unit(15, 1), torch.tensor(0.07, requires_grad=True)
    positives = Positives(torch.tensor([0, 1, 2, 3, 4, 1]), torch.arange(15) % 5, is_mean, is_exclusive)
    found = contrastive_losses(rows, columns, temperature, positives)
    expected = dense_losses(rows, columns, temperature, positives)
    for scale in ((1.0, 0.0), (0.0, 1.0), (0.3, 0.7)):
        pair = [sum(s * loss for s, loss in zip(scale, losses, strict=True)) for losses in (found, expected)]
        torch.testing.assert_close(pair[0], pair[1], atol=1e-5, rtol=1e-5)
        gradients = [torch.autograd.grad(x, (rows, columns, temperature), retain_graph=True) for x in pair]
        for lean, dense in zip(*gradients, strict=True):
            torch.testing.assert_close(lean, dense, atol=1e-5, rtol=1e-4)


def test_three_equal_captions_share_the_probability():
    image = F.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    text = image.repeat_interleave(3, dim=0)
    ids = Positives(torch.arange(2), torch.arange(2).repeat_interleave(3))
    row, _ = contrastive_losses(image, text, torch.tensor(1e-3), ids)
    assert row.item() == pytest.approx(math.log(3), abs=1e-3)


def test_exclusive_captions_do_not_compete():
    image = F.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    text = image.repeat_interleave(3, dim=0)
    ids = Positives(torch.arange(2), torch.arange(2).repeat_interleave(3), is_exclusive=True)
    row, _ = contrastive_losses(image, text, torch.tensor(1e-3), ids)
    assert row.item() == pytest.approx(0, abs=1e-5)


def test_one_picture_alone_has_no_negative_and_finite_gradients():
    image, text = unit(1), unit(3, 1)
    for is_exclusive in (False, True):
        ids = Positives(torch.zeros(1), torch.zeros(3), is_exclusive=is_exclusive)
        row, column = contrastive_losses(image, text, torch.tensor(0.07), ids)
        gradients = torch.autograd.grad(row + column, (image, text))
        assert torch.isfinite(row + column) and all(g.isfinite().all() for g in gradients)


def test_low_temperature_stays_finite():
    image, text, temperature = unit(5), unit(5, 1), torch.tensor(1e-3, requires_grad=True)
    losses = contrastive_losses(image, text, temperature, Positives(torch.arange(5), torch.arange(5)))
    sum(losses).backward()
    assert torch.isfinite(sum(losses)) and image.grad.isfinite().all() and temperature.grad.isfinite()


def test_itc_equals_the_plain_cross_entropy():
    image, text, temperature = unit(5), unit(5, 1), torch.tensor(0.1)
    ids = torch.arange(5)
    found = sum(gathered_contrastive_losses(image, text, temperature, ids, ids, gather="exact")) / 2
    assert found.item() == pytest.approx(plain.contrastive_loss(image, text, temperature).item(), abs=1e-6)


def _exact_gather(rank: int, counts: list[int], captions: int) -> None:
    """Mean over ranks of loss and gradients equals the whole batch in one process, unequal shares included."""
    import torch.distributed as dist

    total = sum(counts)
    all_image, all_text = unit(total).detach(), unit(total * captions, 1).detach()
    start = sum(counts[:rank])
    own = slice(start, start + counts[rank])
    own_text = slice(start * captions, (start + counts[rank]) * captions)
    image, text = all_image[own].clone().requires_grad_(), all_text[own_text].clone().requires_grad_()
    temperature = torch.tensor(0.07, requires_grad=True)
    ids = torch.arange(total)
    text_ids = ids.repeat_interleave(captions)
    loss = sum(
        gathered_contrastive_losses(
            image, text, temperature, ids[own], text_ids[own_text], gather="exact", is_mean=False
        )
    )
    loss.backward()
    whole = [
        all_image.clone().requires_grad_(),
        all_text.clone().requires_grad_(),
        torch.tensor(0.07, requires_grad=True),
    ]
    expected = sum(contrastive_losses(*whole, Positives(ids, text_ids, is_mean=False)))
    expected.backward()
    mean = torch.stack([loss.detach(), temperature.grad])
    dist.all_reduce(mean)
    mean /= len(counts)
    torch.testing.assert_close(mean, torch.stack([expected.detach(), whole[2].grad]), atol=1e-5, rtol=1e-5)
    # Data-parallel training divides by the number of ranks.
    torch.testing.assert_close(image.grad / len(counts), whole[0].grad[own], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text.grad / len(counts), whole[1].grad[own_text], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("counts", [[3, 3], [4, 2], [2, 3, 1]])
def test_exact_gather_gives_the_whole_batch_gradient(counts):
    run_on_ranks(_exact_gather, len(counts), counts, 2)


@pytest.mark.parametrize("options", [{}, {"is_mean": False}, {"is_exclusive": True}, {"smoothing": 0.2}])
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_two_kinds_of_ids_at_once_are_their_weighted_losses(options, chunk, monkeypatch):
    monkeypatch.setattr(chunked_contrastive, "CHUNK_ELEMENTS", chunk)
    rows, columns, temperature = unit(6), unit(15, 1), torch.tensor(0.07, requires_grad=True)
    row_id, column_id = torch.tensor([0, 1, 2, 3, 4, 1]), torch.arange(15) % 5
    kinds = [(row_id, column_id), (row_id.flip(0), column_id)]
    both = Positives(*(torch.stack(ids, dim=1) for ids in zip(*kinds)), shares=(0.3, 0.7), **options)
    found = contrastive_losses(rows, columns, temperature, both)
    apart = [contrastive_losses(rows, columns, temperature, Positives(*ids, **options)) for ids in kinds]
    expected = [0.3 * first + 0.7 * second for first, second in zip(*apart)]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))
    gradients = [
        torch.autograd.grad(losses[0] + 2 * losses[1], (rows, columns, temperature)) for losses in (found, expected)
    ]
    for once, twice in zip(*gradients, strict=True):
        torch.testing.assert_close(once, twice, atol=1e-5, rtol=1e-4)
