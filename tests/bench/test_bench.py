"""The benchmark programs work at tiny sizes, and refuse to print a ratio of two ways that disagree."""

import pytest
import torch

from bench import (
    answers,
    contrastive,
    decoupled_curve,
    dual_encoder,
    extraction,
    masked_words,
    reranking,
    search,
    training_step,
    two_images,
    two_stacks,
)
from bench.__main__ import PROGRAMS, main, table
from bench.common import Disagreement, Options, agree, caption_lengths, extra_memory, histogram, interleaved, ratio

SMALL = Options(is_small=True, repeats=1)


@pytest.mark.parametrize(
    "program, row",
    [
        (reranking, "A1"),
        (reranking, "A2"),
        (reranking, "A3"),
        (reranking, "A4"),
        (training_step, "A5"),
        (training_step, "A6"),
        (training_step, "A7"),
        (masked_words, "A8"),
        (dual_encoder, "A9"),
        (dual_encoder, "decoupled"),
        (decoupled_curve, "curve"),
        (search, "A10"),
        (contrastive, "A12"),
        (two_stacks, "A14"),
        (answers, "A15"),
        (two_images, "A16"),
        (extraction, "extraction"),
    ],
)
def test_both_ways_agree_at_tiny_size(program, row):
    results = program.ROWS[row](SMALL)
    assert {result.row for result in results} == {row}
    assert table(results).count("\n") == 1 + len(results)


def test_disagreement_is_no_result():
    with pytest.raises(Disagreement, match="largest difference 1.00e"):
        agree(torch.ones(2), torch.zeros(2), 1e-4, "scores")
    with pytest.raises(Disagreement):
        agree(torch.tensor([torch.nan]), torch.zeros(1), 1e-4, "scores")


def test_ways_take_turns_and_the_first_turn_is_not_timed():
    order = []
    seconds = interleaved({"plain": lambda: order.append("p"), "ours": lambda: order.append("o")}, repeats=2)
    assert order == list("popopo")
    assert len(seconds["plain"]) == len(seconds["ours"]) == 2


def test_ratio_compares_medians():
    assert ratio([4.0, 6.0, 100.0], [2.0, 3.0, 1.0]) == 3.0


def test_extra_memory_sees_a_large_tensor():
    found = extra_memory(lambda: torch.ones(64 << 18).sum().item())  # 64 MiB
    assert 50 << 20 < found < 110 << 20


def test_caption_lengths_have_the_mean_they_claim():
    lengths = caption_lengths(20_000, mean=18, longest=40)
    assert sum(lengths) / len(lengths) == pytest.approx(18, abs=0.4)
    assert min(lengths) >= 5
    assert max(lengths) <= 40
    assert "mean 18" in histogram(lengths) or "mean 17" in histogram(lengths)


def test_an_unknown_row_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["A99"])
    assert "unknown row A99" in capsys.readouterr().err
    assert "A12" in PROGRAMS
