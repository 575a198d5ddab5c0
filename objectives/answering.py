"""Writing the answers to a question about an image, word by word (CCLM's VQA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from objectives.masked_lm import vocabulary_loss
from objectives.step import ObjectiveConfig, Step


class AnswerLikelihood:
    """Sum over answers of weight times the cross-entropy of all their words, divided by the number of questions.

    The step's batch has `answers` (with marks), `answer_weight` (A,) and `num_answers` of every question, on the host.
    """

    @dataclass
    class Config(ObjectiveConfig):
        name: str = "answers"

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, step: Step) -> Tensor:
        """The loss ()."""
        batch = step.batch
        questions = step.model.fuse_texts(step.texts, step.image_keys, torch.arange(len(batch.num_answers)))
        return answer_loss(step.model.answer_decoder, questions, batch.answers, batch.num_answers, batch.answer_weight)


def answer_loss(decoder: Any, questions: Any, answers: Any, num_answers: list[int], answer_weight: Tensor) -> Tensor:
    """Loss of answers.ids (A, L), those of one question side by side; the fused questions are packed."""
    counts = torch.tensor(num_answers)
    question_of_answer = torch.arange(len(counts)).repeat_interleave(counts)  # (A,)
    # The end mark is what the last word has to predict; nothing reads a row of its own.
    lengths = [length - 1 for length in answers.lengths]
    rows = decoder(answers.ids[:, :-1], lengths, decoder.project(questions), question_of_answer)
    place = rows.place_in(answers.ids.shape[1])  # (R,)
    target = answers.ids.flatten()[place + 1]
    weight = answer_weight[place // answers.ids.shape[1]] / len(counts)
    return vocabulary_loss(rows.tokens, decoder.word_weight, decoder.head.bias, target, row_weight=weight)
