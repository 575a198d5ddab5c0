"""A15: ranking the answers of a list for every question (xGQA), one question at a time and our way.

Both ways get the same fused questions; only the decoder and its vocabulary are timed.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench import plain
from bench.common import Options, Result, agree, caption_lengths, histogram, interleaved, rates
from dataset.batch import TextBatch
from models.answer_decoder import AnswerDecoder
from models.packing import pack
from models.text_encoder import TextEncoder, TextState
from tasks.answer_ranking import rank_answers

# Pieces of GQA's answers with both marks: most are one word of one or two pieces.
ANSWER_MEAN, ANSWER_LONGEST = 5.5, 10
QUESTION_MEAN, QUESTION_LONGEST = 12, 30
TOLERANCE = 1e-4


def run(options: Options) -> list[Result]:
    """Row A15."""
    width, num_layers, vocabulary = (32, 2, 300) if options.is_small else (1024, 6, 250_002)
    num_questions, num_answers, num_candidates = (3, 20, 6) if options.is_small else (4, 1842, 128)
    torch.manual_seed(0)
    sizes = {"vocab_size": vocabulary, "width": width, "num_heads": 4 if options.is_small else 16}
    text = TextEncoder.Config(**sizes, mlp_width=4 * width, num_layers=1)
    decoder = AnswerDecoder(AnswerDecoder.Config(num_layers), text).eval().requires_grad_(False)
    lengths = caption_lengths(num_questions, QUESTION_MEAN, QUESTION_LONGEST)
    packing = pack(lengths)
    questions = TextState(torch.randn(packing.num_rows, width), packing)
    mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    # Answers of at least one piece between the marks.
    sizes = [max(3, length - 2) for length in caption_lengths(num_answers, ANSWER_MEAN + 2, ANSWER_LONGEST + 2, seed=1)]
    answers = make_answers(sizes, vocabulary)
    answer_mask = torch.arange(max(sizes))[None, :] < torch.tensor(sizes)[:, None]

    @torch.inference_mode()
    def one_question_at_a_time() -> tuple[Tensor, Tensor]:
        return plain.rank_answers(
            decoder, questions.padded(), mask.float(), answers.ids, answer_mask.float(), num_candidates
        )

    ours = torch.inference_mode()(partial(rank_answers, decoder, questions, answers, num_candidates))
    numbers, probability = one_question_at_a_time()
    found = ours()
    by_number = lambda n, p: torch.zeros(len(n), num_answers).scatter(1, n, p)  # noqa: E731
    words = agree(by_number(found.answer, found.probability), by_number(numbers, probability), TOLERANCE, "probability")
    seconds = interleaved({"plain": one_question_at_a_time, "ours": ours}, options.repeats)
    what = f"{num_candidates} of {num_answers} answers ranked for each of {num_questions} questions, fp32"
    notes = [f"A15: answers, {histogram(sizes, 1)}"]
    return [rates("A15", what, words, (num_questions, "questions"), (seconds["plain"], seconds["ours"]), notes=notes)]


def make_answers(lengths: list[int], vocabulary: int) -> TextBatch:
    """Answers (A, L) of random pieces between the marks 0 and 2, padded with 1; all begin with different pieces."""
    ids = torch.full((len(lengths), max(lengths)), 1)
    first = 4 + torch.randperm(vocabulary - 4)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(4, vocabulary, (length,))
        ids[row, 0], ids[row, 1], ids[row, length - 1] = 0, first[row], 2
    return TextBatch(ids, lengths)


ROWS = {"A15": run}
