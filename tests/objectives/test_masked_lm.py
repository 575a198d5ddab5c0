import pytest
import torch

from bench import plain
from objectives.masked_lm import vocabulary_loss


@pytest.mark.parametrize("chunk", [1, 90, 1 << 20])
def test_vocabulary_chunks_agree_with_all_logits(chunk):
    generator = torch.Generator().manual_seed(0)
    shapes = ((9, 6), (50, 6), (50,))
    tokens, weight, bias = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    target = torch.tensor([3, -100, 0, 49, 7, 7, -100, 12, 30])
    lean = vocabulary_loss(tokens, weight, bias, target, chunk)
    full = plain.full_vocabulary_loss(tokens, weight, bias, target)
    torch.testing.assert_close(lean, full, atol=1e-6, rtol=1e-6)
    found = torch.autograd.grad(2 * lean, (tokens, weight, bias))
    for ours, expected in zip(found, torch.autograd.grad(2 * full, (tokens, weight, bias)), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_no_masked_word_is_a_loss_of_zero():
    tokens = torch.randn(2, 4, requires_grad=True)
    loss = vocabulary_loss(tokens, torch.randn(5, 4), torch.zeros(5), torch.tensor([-100, -100]))
    loss.backward()
    assert loss.item() == 0 and tokens.grad.abs().sum() == 0


def test_half_precision_stays_near_and_leaves_gradients_in_the_weight_s_type():
    generator = torch.Generator().manual_seed(0)
    tokens, weight, bias = (
        torch.randn(shape, generator=generator).requires_grad_() for shape in ((9, 6), (50, 6), (50,))
    )
    target = torch.randint(0, 50, (9,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        loss = vocabulary_loss(tokens, weight, bias, target, 90)
    loss.backward()
    assert loss.item() == pytest.approx(plain.full_vocabulary_loss(tokens, weight, bias, target).item(), rel=2e-2)
    assert tokens.grad.dtype == weight.grad.dtype == torch.float32
