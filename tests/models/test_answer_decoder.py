"""Answers without padding, the question's keys projected once, agree with padded ones and repeated questions."""

import pytest
import torch

from bench import plain
from bench.answers import make_answers
from models.text_encoder import TextState
from objectives.answering import answer_loss
from tasks.answer_ranking import first_word_log_probability, rank_answers
from tests.models.test_plain_twins import without_dropout
from tests.tiny import VOCAB, build_model, make_texts

QUESTIONS, ANSWERS = [5, 2, 7], [3, 5, 3, 4, 6, 4]
NUM_ANSWERS = [1, 3, 2]


def decoder_and_questions():
    model = build_model(text_encoder=without_dropout(), answer_decoder={"num_layers": 2})
    ids, mask = make_texts(QUESTIONS)
    tokens = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1))
    keys = model.project_images(tokens)
    questions = model.fuse_texts(model.encode_text(ids, QUESTIONS), keys, torch.arange(3))
    return model.answer_decoder, questions, questions.padded(), mask.float()


def answers_with_mask(lengths):
    torch.manual_seed(3)
    answers = make_answers(lengths, VOCAB)
    return answers, (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).float()


def test_answer_loss_and_its_gradients_equal_the_plain_ones():
    decoder, questions, states, mask = decoder_and_questions()
    answers, answer_mask = answers_with_mask(ANSWERS)
    weight = torch.tensor([1, 1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2])
    lean = answer_loss(decoder, questions, answers, NUM_ANSWERS, weight)
    repeat = torch.arange(3).repeat_interleave(torch.tensor(NUM_ANSWERS))
    losses = plain.answer_losses(decoder, answers.ids, answer_mask, states[repeat], mask[repeat])
    full = (weight * losses).sum() / 3
    assert lean.item() == pytest.approx(full.item(), rel=1e-5)
    names, parameters = zip(*decoder.named_parameters(), strict=True)
    found = torch.autograd.grad(lean, parameters, retain_graph=True, allow_unused=True)
    expected = torch.autograd.grad(full, parameters, allow_unused=True)
    for name, ours, theirs in zip(names, found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_answers_are_ranked_as_one_question_at_a_time():
    decoder, questions, states, mask = decoder_and_questions()
    answers, answer_mask = answers_with_mask([3, 3, 4, 3, 5, 7, 3, 4, 6, 3, 3, 5])
    found = rank_answers(decoder.eval(), questions, answers, 5)
    numbers, probability = plain.rank_answers(decoder, states, mask, answers.ids, answer_mask, 5)
    assert torch.equal(found.answer, numbers)
    torch.testing.assert_close(found.probability, probability, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_row_does_not_see_what_follows():
    decoder, questions, *_ = decoder_and_questions()
    answers, _ = answers_with_mask([6, 6, 6])
    keys, question_of_answer = decoder.project(questions), torch.arange(3)
    changed = answers.ids.clone()
    changed[:, 4:] = 9
    first, second = (decoder(ids, [6] * 3, keys, question_of_answer) for ids in (answers.ids, changed))
    states = [TextState(rows.tokens, rows.packing).padded() for rows in (first, second)]
    torch.testing.assert_close(states[0][:, :4], states[1][:, :4])
    assert not torch.allclose(states[0][:, 4:], states[1][:, 4:])


@torch.no_grad()
def test_answers_that_begin_alike_are_equally_probable_candidates():
    decoder, questions, *_ = decoder_and_questions()
    first = torch.randint(4, 9, (301,), generator=torch.Generator().manual_seed(0))
    row = decoder.begin(torch.tensor(0), decoder.project(questions)).tokens
    found = first_word_log_probability(decoder, row, first)
    for word in first.unique():
        assert (found[:, first == word] == found[:, first == word][:, :1]).all()


@torch.no_grad()
def test_a_list_shorter_than_the_candidates_is_ranked_whole():
    decoder, questions, *_ = decoder_and_questions()
    answers, _ = answers_with_mask([3, 4])
    found = rank_answers(decoder, questions, answers, 128)
    assert found.answer.sort(dim=1).values.tolist() == [[0, 1]] * 3
    torch.testing.assert_close(found.probability.sum(dim=1), torch.ones(3))
