"""Each kind of batch becomes a step; the lean forms of regions and parallel texts equal the plain ones."""

import pytest
import torch

from bench import plain
from dataset.batch import ImageTextBatch, MaskedText, Regions, TextBatch, TextPairBatch
from objectives.boxes import BoxPrediction
from objectives.contrastive import Contrastive, TextContrastive
from objectives.masked_lm import MaskedLanguageModelling
from objectives.matching import HardNegativeMatching, TextMatching
from tasks.encode import encode_step
from tests.tiny import VOCAB, build_model, make_batch, make_texts, model_tree

LENGTHS, OTHER_LENGTHS = [3, 6, 4, 2], [5, 2, 7, 4]
SWIN = {"name": "swin", "image_size": 32, "window_size": 4, "width": 8, "depths": [2, 1], "num_heads": [1, 2]}
WITHOUT_DROPOUT = model_tree()["text_encoder"] | {"dropout": 0.0, "attention_dropout": 0.0}


def make_model(**changes):
    changes = {"image_encoder": SWIN, "text_encoder": WITHOUT_DROPOUT, "has_box_head": True} | changes
    return build_model(**changes).eval()


def make_region_batch(num_tokens: int) -> ImageTextBatch:
    batch, rows = make_batch(LENGTHS, num_images=4), torch.arange(4)
    mask = torch.rand(4, num_tokens, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[:, :2] = True
    box = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.2, 0.3, 0.1, 0.2], [0.5, 0.5, 1.0, 1.0], [0.6, 0.7, 0.2, 0.3]])
    batch.regions = Regions(torch.tensor([0, 0, 1, 1]), mask, box, torch.tensor([True, False, True, False]))
    batch.images = batch.images[:2]
    batch.image_id, batch.image_of_text = rows, rows
    return batch


def make_pair_batch(is_joined: bool = False) -> TextPairBatch:
    first, second = make_texts(LENGTHS)[0], make_texts(OTHER_LENGTHS, seed=1)[0]
    masked, lengths = make_batch(LENGTHS, num_images=4).masked, None
    if is_joined:
        lengths = [a + b for a, b in zip(LENGTHS, OTHER_LENGTHS)]
        joined = make_texts(lengths, seed=2)[0]
        positions = torch.tensor([[1, length - 1] for length in lengths])
        masked = MaskedText(joined.scatter(1, positions, VOCAB - 1), positions, joined.gather(1, positions))
    return TextPairBatch(TextBatch(first, LENGTHS), TextBatch(second, OTHER_LENGTHS), masked, lengths)


def objective_of(kind):
    return kind(kind.Config())


def padded(model, texts: TextBatch):
    mask = torch.arange(texts.ids.shape[1])[None, :] < torch.tensor(texts.lengths)[:, None]
    return plain.encode_text(model.text_encoder, texts.ids, mask), mask


def test_regions_that_share_patches_have_the_keys_of_regions_projected_whole():
    model, batch = make_model(), make_region_batch(17)
    step = encode_step(model, batch, "uniform")
    whole = model.text_fusion.project(step.images.tokens, step.images.mask)
    for lean, expected in zip(step.image_keys, whole, strict=True):
        torch.testing.assert_close(lean.key, expected.key, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lean.value, expected.value, atol=1e-5, rtol=1e-5)
        assert torch.equal(lean.mask, batch.regions.mask)


def test_boxes_are_predicted_from_the_whole_image():
    model, batch = make_model(), make_region_batch(17)
    step = encode_step(model, batch, "uniform")
    hidden, mask = padded(model, batch.texts)
    images = model.encode_image(batch.images).tokens[batch.regions.image_of_region]
    expected = model.box_head(plain.fuse(model, hidden, mask, images)[:, 0]).sigmoid()
    found = model.predict_boxes(step.texts, step.full_keys, batch.regions.image_of_region)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("image_encoder", [SWIN, model_tree()["image_encoder"]], ids=["swin", "vit"])
def test_every_objective_of_regions_has_a_gradient(image_encoder):
    model = make_model(image_encoder=image_encoder).train()
    step = encode_step(model, make_region_batch(17 if image_encoder is SWIN else 5), "uniform")
    kinds = (Contrastive, HardNegativeMatching, MaskedLanguageModelling, BoxPrediction)
    sum(objective_of(kind)(step) for kind in kinds).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_parallel_texts_match_as_in_the_plain_form():
    model, batch = make_model(), make_pair_batch()
    step = encode_step(model, batch, "uniform")
    (first, first_mask), (second, mask) = padded(model, batch.first), padded(model, batch.second)
    expected = plain.match_logits(model, second, mask, first, first_mask)
    found = model.match_logits(step.texts, step.image_keys, torch.arange(4))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_masked_words_read_the_other_text_as_in_the_plain_form():
    model, batch = make_model(), make_pair_batch()
    found = objective_of(MaskedLanguageModelling)(encode_step(model, batch, "uniform"))
    (_, mask), (second, second_mask) = padded(model, batch.first), padded(model, batch.second)
    masked = batch.masked
    expected = plain.word_loss(model, masked.ids, mask, second, masked.positions, masked.targets, second_mask)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_joined_pair_reads_nothing_but_itself():
    model, batch = make_model(), make_pair_batch(is_joined=True)
    found = objective_of(MaskedLanguageModelling)(encode_step(model, batch, "uniform"))
    masked = batch.masked
    mask = torch.arange(masked.ids.shape[1])[None, :] < torch.tensor(batch.masked_lengths)[:, None]
    expected = plain.word_loss(model, masked.ids, mask, None, masked.positions, masked.targets)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_negatives_of_parallel_texts_are_other_pairs():
    model = make_model().train()
    step = encode_step(model, make_pair_batch(), "uniform")
    loss = objective_of(TextMatching)(step) + objective_of(TextContrastive)(step)
    loss.backward()
    assert step.image_id.tolist() == [0, 1, 2, 3] and loss.isfinite()


def test_second_captions_meet_the_contrastive_losses_only():
    model = make_model()
    batch = make_batch(LENGTHS, num_images=2)
    step = encode_step(model, batch, "first")
    every = model.encode_text(batch.texts.ids, batch.texts.lengths)
    torch.testing.assert_close(step.texts.embed, every.embed[::2])
    torch.testing.assert_close(step.text_embeds[1], every.embed[1::2])
    assert torch.equal(step.masked.ids, batch.masked.ids[::2])
    in_turn = [plain.contrastive_loss(step.images.embed, embed, step.temperature) for embed in step.text_embeds]
    torch.testing.assert_close(objective_of(Contrastive)(step), sum(in_turn) / 2, atol=1e-6, rtol=1e-5)
    expected = plain.contrastive_loss(*step.text_embeds, step.temperature)
    torch.testing.assert_close(objective_of(TextContrastive)(step), expected, atol=1e-6, rtol=1e-5)


def test_three_captions_have_no_first_and_second():
    with pytest.raises(ValueError, match="needs one or two captions for every image; found 6 captions of 2 images"):
        encode_step(make_model(), make_batch([2] * 6, num_images=2), "first")


def test_single_captions_have_no_texts_to_compare():
    step = encode_step(make_model(), make_batch(LENGTHS, num_images=4), "uniform")
    with pytest.raises(ValueError, match="needs parallel texts, or two captions per image"):
        objective_of(TextContrastive)(step)


def test_texts_of_another_width_cannot_stand_in_for_images():
    step = encode_step(make_model(image_encoder=model_tree()["image_encoder"]), make_pair_batch(), "uniform")
    with pytest.raises(ValueError, match="found image 24, text 16"):
        objective_of(TextMatching)(step)


BATCHES = {
    "captions": lambda: (make_batch(LENGTHS, num_images=4), "uniform"),
    "two captions": lambda: (make_batch(LENGTHS, num_images=2), "first"),
    "regions": lambda: (make_region_batch(17), "uniform"),
    "parallel": lambda: (make_pair_batch(), "uniform"),
    "joined pairs": lambda: (make_pair_batch(is_joined=True), "uniform"),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_masked_texts_may_share_the_towers_pass(kind):
    model, (batch, choice) = make_model(), BATCHES[kind]()
    losses, gradients = [], []
    for joins_masked in (False, True):
        step = encode_step(model, batch, choice, joins_masked=joins_masked)
        assert (step.encoded_masked is not None) == joins_masked
        loss = objective_of(MaskedLanguageModelling)(step) + step.texts.embed.sum()
        model.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        gradients.append(model.text_encoder.word.weight.grad)
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_a_step_that_reads_embeddings_alone_has_the_same_loss_and_gradients():
    model, batch = make_model(image_encoder=model_tree()["image_encoder"]), make_batch(LENGTHS, num_images=2)
    losses, gradients = [], []
    for reads_tokens in (True, False):
        step = encode_step(model, batch, "uniform", reads_tokens=reads_tokens)
        assert hasattr(step.images, "tokens") == hasattr(step.texts, "tokens") == reads_tokens
        loss = objective_of(Contrastive)(step)
        model.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
