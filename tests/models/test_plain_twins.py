"""The lean forms agree with the plain ones: padded texts, an image repeated per pair, every layer at every position."""

import dataclasses

import pytest
import torch

from bench import plain
from models.packing import pack_uniform, read_positions
from models.text_encoder import TextState
from tests.tiny import WIDTH, build_model, make_batch, make_texts

LENGTHS = [5, 9, 2, 5, 1, 7]


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_text_tower_without_padding_equals_the_padded_one(pooling):
    model = build_model().eval()
    model.text_encoder.config.pooling = pooling
    ids, mask = make_texts(LENGTHS)
    state = model.encode_text(ids, LENGTHS)
    hidden = plain.encode_text(model.text_encoder, ids, mask)
    torch.testing.assert_close(state.padded(), hidden * mask[..., None], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state.embed, plain.embed_text(model, hidden, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_training", [False, True])
def test_match_logits_equal_those_of_repeated_images(is_training):
    model = build_model(text_encoder=without_dropout()).train(is_training)
    ids, mask = make_texts(LENGTHS)
    tokens = torch.randn(3, 5, 24)
    image_of_text = torch.tensor([0, 2, 2, 1, 0, 2])
    texts = model.encode_text(ids, LENGTHS)
    logits = model.match_logits(texts, model.project_images(tokens), image_of_text)
    hidden = plain.encode_text(model.text_encoder, ids, mask)
    torch.testing.assert_close(
        logits, plain.match_logits(model, hidden, mask, tokens[image_of_text]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("is_training", [False, True])
def test_two_images_of_a_text_are_read_in_turn_with_one_projection(is_training):
    fusion = {"num_layers": 2, "num_images": 2}
    parts = {"text_fusion": fusion, "classifier": {"num_classes": 3}, "projections": "none", "has_match_head": False}
    model = build_model(text_encoder=without_dropout(), **parts).train(is_training)
    assert not any("projection" in name or "temperature" in name for name in model.state_dict())
    assert sum(name.endswith("key_value.weight") for name in model.state_dict()) == 2
    ids, mask = make_texts(LENGTHS)
    tokens, pairs = torch.randn(4, 5, 24), torch.tensor([[0, 1, 2, 3, 0, 2], [3, 2, 1, 0, 0, 1]])
    logits = model.class_logits(model.encode_text(ids, LENGTHS), model.project_images(tokens), pairs)
    hidden = plain.encode_text(model.text_encoder, ids, mask)
    expected = model.classifier(plain.fuse(model, hidden, mask, tokens[pairs[0]], tokens[pairs[1]])[:, 0])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_texts_attended_once_give_the_same_logits():
    model = build_model().eval()
    ids, _ = make_texts(LENGTHS)
    keys = model.project_images(torch.randn(2, 5, 24))
    texts, image_of_text = model.encode_text(ids, LENGTHS), torch.tensor([0, 1, 1, 0, 1, 0])
    attended = model.text_fusion.attend_texts(texts)
    found = model.match_logits(attended, keys, image_of_text, is_attended=True)
    torch.testing.assert_close(found, model.match_logits(texts, keys, image_of_text), atol=1e-5, rtol=1e-5)


def test_lengths_known_only_to_the_device_give_the_same_logits():
    model = build_model().eval()
    ids, mask = make_texts(LENGTHS)
    keys, image_of_text = model.project_images(torch.randn(2, 5, 24)), torch.tensor([0, 1, 1, 0, 1, 0])
    exact = model.encode_text(ids, LENGTHS)
    packing = pack_uniform(torch.tensor(LENGTHS), ids.shape[1])
    uniform = TextState(plain.encode_text(model.text_encoder, ids, mask).flatten(0, 1), packing)
    expected = model.match_logits(exact, keys, image_of_text)
    torch.testing.assert_close(model.match_logits(uniform, keys, image_of_text), expected, atol=1e-5, rtol=1e-5)


TWO_STACKS = {"image_fusion": {"num_layers": 2}, "match_head": "linear", "has_masked_language_head": False}


@pytest.mark.parametrize("lengths", [LENGTHS, [5] * 6, [2, 3, 4, 3, 2, 2]], ids=["ragged", "equal", "short"])
@pytest.mark.parametrize("is_reused", [False, True])
def test_both_stacks_equal_the_plain_ones(lengths, is_reused):
    model = build_model(**TWO_STACKS).eval()
    ids, mask = make_texts(lengths)
    tokens = torch.randn(3, 5, 24)
    image, text = torch.tensor([0, 2, 2, 1, 0, 2, 1]), torch.tensor([0, 1, 0, 3, 5, 2, 4])
    texts = model.encode_text(ids, lengths)
    image_side, text_side = model.image_side(tokens, is_reused=is_reused), model.text_side(texts, is_reused=is_reused)
    found = model.pair_logits(image_side, text_side, image, text)
    hidden = plain.encode_text(model.text_encoder, ids, mask)[text]
    for side, form in zip(found.unbind(1), (plain.match_logits, plain.image_match_logits), strict=True):
        torch.testing.assert_close(side, form(model, hidden, mask[text], tokens[image]), atol=1e-5, rtol=1e-5)


def test_both_stacks_run_in_bf16_where_rows_are_added():
    model = build_model(**TWO_STACKS).eval()
    ids, _ = make_texts(LENGTHS)
    tokens, image, text = torch.randn(3, 5, 24), torch.tensor([0, 2, 1]), torch.tensor([5, 0, 3])
    exact = model.pair_logits(model.image_side(tokens), model.text_side(model.encode_text(ids, LENGTHS)), image, text)
    with torch.autocast("cpu", torch.bfloat16):
        sides = model.image_side(tokens, is_reused=True), model.text_side(model.encode_text(ids, LENGTHS))
        half = model.pair_logits(*sides, image, text)
    torch.testing.assert_close(half, exact, atol=0.05, rtol=0.05)


def test_gradients_of_both_stacks_equal_the_plain_ones():
    model = build_model(text_encoder=without_dropout(), **TWO_STACKS).train()
    ids, mask = make_texts(LENGTHS)
    tokens, image = torch.randn(3, 5, 24), torch.tensor([0, 2, 2, 1, 0, 2])
    sides = model.image_side(tokens), model.text_side(model.encode_text(ids, LENGTHS))
    lean = model.pair_logits(*sides, image, torch.arange(6)).softmax(dim=2)[..., 1].mean(dim=1).sum()
    full = plain.match_probability(model, plain.encode_text(model.text_encoder, ids, mask), mask, tokens[image]).sum()
    parameters = dict(model.image_fusion.named_parameters(), projection=model.image_fusion_projection.weight)
    found, expected = (torch.autograd.grad(loss, list(parameters.values())) for loss in (lean, full))
    for name, ours, theirs in zip(parameters, found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_masked_word_loss_and_its_gradients_equal_the_plain_ones():
    from objectives.masked_lm import masked_language_loss
    from objectives.step import Step

    model = build_model(text_encoder=without_dropout())
    batch = make_batch(LENGTHS, num_images=6)
    step = Step(model, batch, model.encode_image(batch.images), model.encode_text(batch.texts.ids, batch.texts.lengths))
    chosen, masked = torch.arange(6), batch.masked
    lean = masked_language_loss(step, masked.ids, masked.positions, masked.targets, chosen)
    mask = torch.arange(max(LENGTHS))[None, :] < torch.tensor(LENGTHS)[:, None]
    full = plain.word_loss(model, masked.ids, mask, step.images.tokens, masked.positions, masked.targets)
    assert lean.item() == pytest.approx(full.item(), abs=1e-5)
    parameters = dict(model.text_fusion.named_parameters(), word=model.text_encoder.word.weight)
    lean_gradients = torch.autograd.grad(lean, list(parameters.values()), retain_graph=True)
    for name, found, expected in zip(
        parameters, lean_gradients, torch.autograd.grad(full, list(parameters.values())), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_texts_of_one_length_that_outnumber_the_image_tokens_are_fused_in_bf16():
    model = build_model().eval()
    ids, _ = make_texts([9, 9, 9])
    tokens = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0))
    expected = model.fuse_texts(model.encode_text(ids, [9] * 3), model.project_images(tokens), torch.arange(3))
    with torch.autocast("cpu", torch.bfloat16):  # a matrix gets spare rows behind the real ones
        half = model.fuse_texts(model.encode_text(ids, [9] * 3), model.project_images(tokens), torch.arange(3))
    torch.testing.assert_close(half.padded().float(), expected.padded(), atol=0.1, rtol=0.1)


def test_a_reading_computes_only_the_wanted_rows():
    model = build_model().eval()
    ids, _ = make_texts(LENGTHS)
    texts, keys = model.encode_text(ids, LENGTHS), model.project_images(torch.randn(6, 5, 24))
    wanted = torch.tensor([[True, True], [False, False], [True, False], [False, True], [True, False], [True, True]])
    positions = torch.tensor([[0, 4], [1, 2], [1, 0], [0, 3], [0, 0], [5, 6]])
    reading = read_positions(texts.packing, positions, wanted)
    everything = dataclasses.replace(texts, tokens=model.text_fusion(texts, keys, torch.arange(6))).padded()
    found = model.text_fusion(texts, keys, torch.arange(6), reading)
    assert found.shape == (int(wanted.sum()), WIDTH)
    order = texts.packing.order
    expected = everything[order].gather(1, positions[order][..., None].expand(-1, -1, WIDTH))[wanted[order]]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def without_dropout() -> dict:
    from tests.tiny import model_tree

    return model_tree()["text_encoder"] | {"dropout": 0.0, "attention_dropout": 0.0}
