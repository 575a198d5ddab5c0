"""Enhanced training: one pass of the masked texts gives what separate passes would."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from dataset.batch import TextBatch
from objectives.masked_lm import MaskedLanguageModelling
from objectives.matching import HardNegativeMatching, match_logits
from tasks.encode import encode_step
from tests.ranks import run_on_ranks
from tests.tiny import build_model, make_batch, model_tree
from utils.distributed import all_reduce_sum

# Two words are hidden in every text but one of a single token: then the slots of masked words are not all used.
ALL_USED, ONE_UNUSED = [3, 6, 4, 2, 6], [3, 6, 1, 2, 6]
STILL = model_tree()["text_encoder"] | {"dropout": 0.0, "attention_dropout": 0.0}
NEGATIVES = torch.tensor([1, 2, 3, 4, 0]), torch.tensor([4, 0, 1, 2, 3])


def make_step(*, reads_masked, lengths=ONE_UNUSED, device="cpu", **changes):
    stacks = {"image_fusion": {"num_layers": 2}, "match_head": "linear", "text_encoder": STILL} | changes
    batch = make_batch(lengths, num_images=5).to(device)
    return encode_step(build_model(**stacks).to(device), batch, "uniform", reads_masked=reads_masked)


def mlm(step):
    return MaskedLanguageModelling(MaskedLanguageModelling.Config())(step)


@pytest.mark.parametrize("lengths", [ALL_USED, ONE_UNUSED])
def test_masked_words_are_guessed_as_in_a_pass_of_their_own(lengths):
    found, expected = (mlm(make_step(reads_masked=reads_masked, lengths=lengths)) for reads_masked in (True, False))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("lengths", [ALL_USED, ONE_UNUSED])
def test_pairs_are_scored_as_in_a_pass_of_their_own(lengths):
    step, apart = (make_step(reads_masked=True, lengths=lengths) for _ in range(2))
    apart.reads_masked = False
    own = torch.arange(5)
    found, expected = (match_logits(each, own, *NEGATIVES) for each in (step, apart))
    torch.testing.assert_close(found, expected)


def test_gradients_are_those_of_separate_passes():
    gradients = []
    for is_apart in (False, True):
        step = make_step(reads_masked=True)
        words = make_step(reads_masked=False) if is_apart else step
        step.reads_masked = not is_apart
        logits = match_logits(step, torch.arange(5), *NEGATIVES)
        (mlm(words) + logits.square().sum()).backward()
        models = (step.model, words.model) if is_apart else (step.model,)
        gradients.append(sum_of_gradients(models))
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, atol=1e-5, rtol=1e-4, msg=name)


def loss_of_rows(*rows):
    """Masked language modelling on some images of a batch."""
    batch, rows = make_batch(ONE_UNUSED, num_images=5), torch.tensor(rows)
    own = replace(
        batch,
        images=batch.images[rows],
        image_id=batch.image_id[rows],
        texts=TextBatch(batch.texts.ids[rows], [ONE_UNUSED[row] for row in rows]),
        image_of_text=torch.arange(len(rows)),
        masked=batch.masked.select(rows),
    )
    return mlm(encode_step(build_model(text_encoder=STILL), own, "uniform", reads_masked=True)).detach()


def check_ranks(number, expected):
    own = [(0, 1), (2,)][number]  # texts with two hidden words each, and one with a single one
    torch.testing.assert_close(all_reduce_sum(loss_of_rows(*own)) / 2, expected)


def test_the_mean_is_over_the_words_of_all_processes():
    run_on_ranks(check_ranks, 2, loss_of_rows(0, 1, 2))


def sum_of_gradients(models):
    total = {}
    for model in models:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[name] = total.get(name, 0) + parameter.grad
    return total


def test_the_towers_and_the_text_stack_see_a_positive_pair_once():
    step, passes = make_step(reads_masked=True), []
    fusion = step.model.text_fusion
    forward = fusion.forward

    def counted(texts, *rest, **named):
        passes.append(texts)
        return forward(texts, *rest, **named)

    with patch.object(fusion, "forward", counted):
        with patch.object(step.model.text_encoder, "encode_packed", side_effect=AssertionError("a second pass")):
            HardNegativeMatching(HardNegativeMatching.Config())(step)
            mlm(step)
    assert [texts.packing.num_texts for texts in passes] == [5, 10]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the slots of masked words are known to no host")
def test_an_accelerator_comes_to_the_same():
    for of_step in (mlm, logits_of):
        here, there = (of_step(make_step(reads_masked=True, device=device)) for device in ("cpu", "cuda"))
        torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=1e-3)


def logits_of(step):
    device = step.text_id.device
    return match_logits(step, torch.arange(5, device=device), *(numbers.to(device) for numbers in NEGATIVES))
