"""Answers ranked by the decoder, many questions at once: first words choose candidates, whole answers are ranked.

Letters: S questions, A answers of the list, K candidates of a question, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.batch import TextBatch
from models.answer_decoder import AnswerDecoder
from models.text_encoder import TextState
from objectives.masked_lm import log_normaliser, target_logits

NUM_MARKS = 2  # begin and end


@dataclass
class RankedAnswers:
    """Candidates of every question, best first: their numbers in the list (S, K) and probabilities (S, K)."""

    answer: Tensor
    probability: Tensor


def rank_answers(
    decoder: AnswerDecoder, questions: TextState, answers: TextBatch, num_candidates: int
) -> RankedAnswers:
    """The num_candidates answers with the most probable first word, ranked; fewer answers are all ranked.

    answers.ids (A, L) have begin and end marks. The begin mark is decoded once per question, its answers go on from
    there. As in the original an answer's first word counts twice: log p(first) + sum of log p over all its words.
    """
    keys = decoder.project(questions)
    beginning = decoder.begin(answers.ids[0, 0], keys)
    first = first_word_log_probability(decoder, beginning.tokens, answers.ids[:, 1])  # (S, A)
    num_candidates = min(num_candidates, len(answers))
    # As in the original both choices are by probability, so that equal ones fall out alike.
    candidates = first.exp().topk(num_candidates, dim=1).indices  # (S, K)
    first = first.gather(1, candidates)
    chosen = candidates.flatten().cpu()  # (S * K,)
    words = answers.ids[candidates.flatten(), 1:-1]
    lengths = [answers.lengths[number] - NUM_MARKS for number in chosen.tolist()]
    question_of_answer = torch.arange(len(first)).repeat_interleave(num_candidates)
    rows = decoder(words, lengths, keys, question_of_answer, beginning)
    place = rows.place_in(words.shape[1])  # (R,)
    target = answers.ids[candidates.flatten(), 2:].flatten()[place]
    later = _log_probability(decoder, rows.tokens, target)  # (R,)
    sums = later.new_zeros(len(chosen)).index_add_(0, place // words.shape[1], later).view_as(first)
    probability, order = (2 * first + sums).softmax(dim=1).topk(num_candidates, dim=1)
    return RankedAnswers(candidates.gather(1, order), probability)


def first_word_log_probability(decoder: AnswerDecoder, tokens: Tensor, first: Tensor) -> Tensor:
    """Log probabilities of the words `first` (A,) after the begin marks tokens (S, D), among all words: (S, A)."""
    weight, bias = decoder.word_weight, decoder.head.bias
    # Answers that begin alike get one number, not one that differs in the last bit by its place in a product.
    words, place = first.unique(return_inverse=True)
    logits = F.linear(tokens, weight[words], bias[words]).float()
    return (logits - log_normaliser(tokens, weight, bias)[:, None])[:, place]


def _log_probability(decoder: AnswerDecoder, tokens: Tensor, target: Tensor) -> Tensor:
    weight, bias = decoder.word_weight, decoder.head.bias
    return target_logits(tokens, weight, bias, target) - log_normaliser(tokens, weight, bias)
