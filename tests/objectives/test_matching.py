from unittest.mock import patch

import pytest
import torch
from torch.nn.functional import cross_entropy

from objectives.matching import HardNegativeMatching, draw, global_match_logits, match_loss, negative_weights
from objectives.step import Step, positive_text_weights
from tests.ranks import run_on_ranks
from tests.tiny import build_model, make_batch, model_tree

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}
TWO_STACKS = {
    "image_fusion": {"num_layers": 2},
    "match_head": "linear",
    "has_masked_language_head": False,
    "text_encoder": model_tree()["text_encoder"] | NO_DROPOUT,
}


def make_step(num_images: int, lengths: list[int]) -> Step:
    model, batch = build_model(), make_batch(lengths, num_images)
    return Step(model, batch, model.encode_image(batch.images), model.encode_text(batch.texts.ids, batch.texts.lengths))


def test_negatives_never_show_the_same_picture():
    step = make_step(4, [3, 4, 5, 2, 3, 4, 5, 2])
    step.batch.image_id[2] = step.batch.image_id[0]
    for _ in range(20):
        weights = negative_weights(step.similarity, step.positive_text, step.batch.image_id, step.text_id)
        image, has_image = draw(weights.image)
        text, has_text = draw(weights.text)
        assert has_image.all() and has_text.all()
        assert (step.batch.image_id[image] != step.batch.image_id).all()
        assert (step.text_id[text] != step.batch.image_id).all()


def test_batch_of_one_picture_counts_its_positive_pair_alone():
    torch.manual_seed(0)
    step = make_step(1, [3, 4])
    loss = HardNegativeMatching(HardNegativeMatching.Config())(step)
    assert torch.isfinite(loss)
    logits = torch.tensor([[0.0, 1.0], [5.0, 0.0], [5.0, 0.0]])
    only_positive = match_loss(logits, torch.tensor([True, False, False]))
    assert only_positive == torch.nn.functional.cross_entropy(logits[:1], torch.tensor([1]))


def test_vanished_probabilities_fall_back_to_any_other_picture():
    # At a temperature near zero the softmax of the true pair is 1 and all others are exactly 0.
    similarity = torch.eye(3) / 1e-3
    number = torch.arange(3)
    weights = negative_weights(similarity, number, number, number, floor=0.0)
    assert torch.equal(weights.image, 1 - torch.eye(3)) and torch.equal(weights.text, 1 - torch.eye(3))


def test_a_batch_without_any_negative_is_told(caplog):
    step = make_step(2, [3, 4])
    step.batch.image_id[:] = 7
    loss = HardNegativeMatching(HardNegativeMatching.Config(candidates="all", floor=0.0))(step)
    assert torch.isfinite(loss)
    assert "2 of 2 pictures have no negative in the batch" in caplog.text


def test_class_weights_are_those_of_the_weighted_cross_entropy():
    torch.manual_seed(0)
    logits, label = torch.randn(6, 2, 2), torch.tensor([1, 1, 0, 0, 0, 0])
    expected = sum(cross_entropy(side, label, weight=torch.tensor([1.0, 2.0])) for side in logits.unbind(1)) / 2
    torch.testing.assert_close(match_loss(logits, torch.ones(6), (1.0, 2.0)), expected)


def _losses_on(rank, num_ranks, expected, texts_taken):
    model = build_model(**TWO_STACKS)
    lengths, texts = [3, 6, 4, 2], 4 // num_ranks
    whole = make_batch(lengths, 4)
    own = slice(rank * texts, (rank + 1) * texts)
    encoded = model.encode_text(whole.texts.ids[own], lengths[own])
    batch = make_batch(lengths[own], texts)
    step = Step(model, batch, model.encode_image(whole.images[own]), encoded)
    negative_image, negative_text = torch.tensor([3, 3, 0, 1])[own], torch.tensor(texts_taken)[own]
    logits = global_match_logits(step, torch.arange(texts), negative_image, negative_text)
    match_loss(logits, torch.ones(3 * texts)).backward()
    found = {}
    for name, parameter in model.named_parameters():
        found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad / num_ranks
        if num_ranks > 1:
            torch.distributed.all_reduce(found[name])
    for name, gradient in (expected or {}).items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    return found


@pytest.mark.parametrize("texts_taken", [[1, 2, 3, 0], [1, 0, 3, 0]], ids=["by_both", "by_the_second_alone"])
def test_negatives_of_other_ranks_give_the_gradient_of_the_whole_batch(texts_taken):
    run_on_ranks(_two_rank_losses, 2, texts_taken)


def _two_rank_losses(rank, texts_taken):
    with patch("utils.exchange.world_size", return_value=1), patch("utils.exchange.rank", return_value=0):
        with patch("objectives.matching.exchange", lambda x, given, taken: x[:0]):
            expected = _losses_on(0, 1, None, texts_taken)
    _losses_on(rank, 2, expected, texts_taken)


def test_positive_captions_are_the_image_s_own():
    step = make_step(3, [3, 4, 5, 2, 3, 4])
    for choice in ("uniform", "probability", "similarity"):
        own = step.batch.image_of_text[None, :] == torch.arange(3)[:, None]
        weights = positive_text_weights(step.similarity, own, choice)
        assert (weights[~own] == 0).all() and (weights[own] > 0).all()
    assert (step.batch.image_of_text[step.positive_text] == torch.arange(3)).all()
