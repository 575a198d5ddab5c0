"""The evaluation agrees with the plain one, on any number of ranks, and with a gallery smaller than the candidates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import plain
from configs.schema import Config
from tasks.image_text import ImageText
from tasks.rerank import choose_candidates, rerank
from tests.ranks import run_on_ranks
from tests.tiny import build_model, make_texts
from tests.toy_ccrk import toy_settings, write_toy_data
from utils.config import build
from utils.metrics import Reranked, recall_metrics, retrieval_ranks

LENGTHS = [5, 9, 2, 5, 3, 7, 4]


@pytest.mark.parametrize("k", [2, 5, 100])
@torch.no_grad()
def test_scores_equal_one_query_at_a_time(k):
    model = build_model().eval()
    ids, mask = make_texts(LENGTHS)
    images = model.encode_image(torch.randint(0, 256, (5, 3, 32, 32)).to(torch.uint8))
    texts = model.encode_text(ids, LENGTHS)
    candidates = choose_candidates(images.embed @ texts.embed.T, k)
    scores = rerank(model, lambda own: images.tokens[own], texts, candidates)
    of_images, of_texts = plain.rerank(model, images.tokens, images.embed, ids, mask, k)
    torch.testing.assert_close(scores.where(candidates.of_images, -100), of_images, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.where(candidates.of_texts, -100).T, of_texts, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text_rows", [8192, 8])
@pytest.mark.parametrize("k", [2, 100])
@torch.no_grad()
def test_scores_of_both_stacks_equal_repeated_pairs(monkeypatch, k, text_rows):
    monkeypatch.setattr("tasks.rerank.TEXT_ROWS", text_rows)  # texts in one part, and in several
    model = build_model(image_fusion={"num_layers": 2}, match_head="linear", has_masked_language_head=False).eval()
    ids, mask = make_texts(LENGTHS)
    images = model.encode_image(torch.randint(0, 256, (5, 3, 32, 32)).to(torch.uint8))
    texts = model.encode_text(ids, LENGTHS)
    candidates = choose_candidates(images.embed @ texts.embed.T, k)
    scores = rerank(model, lambda own: images.tokens[own], texts, candidates, is_probability=True)
    hidden = plain.encode_text(model.text_encoder, ids, mask)
    wanted = candidates.of_images | candidates.of_texts
    image, text = wanted.nonzero().T
    expected = plain.match_probability(model, hidden[text], mask[text], images.tokens[image])
    torch.testing.assert_close(scores[image, text], expected, atol=1e-5, rtol=1e-5)
    assert scores[~wanted].eq(-torch.inf).all()


@torch.no_grad()
def test_pair_that_both_directions_want_is_scored_once():
    model = build_model().eval()
    ids, _ = make_texts(LENGTHS)
    images = model.encode_image(torch.randint(0, 256, (5, 3, 32, 32)).to(torch.uint8))
    texts = model.encode_text(ids, LENGTHS)
    candidates = choose_candidates(images.embed @ texts.embed.T, 3)
    scored = []
    rerank(model, lambda own: images.tokens[own], texts, candidates, on_progress=scored.append)
    assert sum(scored) == int((candidates.of_images | candidates.of_texts).sum()) < 3 * (5 + 7)


def make_task(folder: Path, **settings: object) -> ImageText:
    torch.manual_seed(0)
    settings = toy_settings(folder) | {"output_dir": str(folder / "out")} | settings
    return ImageText.from_config(build(Config, settings)).eval()


def test_metrics_of_a_set_follow_from_its_plain_scores(tmp_path):
    write_toy_data(tmp_path)
    task = make_task(tmp_path)
    metrics = task.evaluate("test")
    assert {"en", "de", "mean", "mrv", "median_rank", "chance", "dual_encoder"} <= set(metrics)
    gallery = task.data.galleries("test")["en"][0]
    mask = torch.arange(gallery.texts.ids.shape[1])[None, :] < torch.tensor(gallery.texts.lengths)[:, None]
    with torch.no_grad():
        images = task.model.encode_image(gallery.read_images(range(8)))
        texts = task.model.encode_text(gallery.texts.ids, gallery.texts.lengths)
        i2t, t2i = plain.rerank(task.model, images.tokens, images.embed, gallery.texts.ids, mask, 4)
    similarity = images.embed @ texts.embed.T
    order = lambda scores, sims: scores * 1e3 + sims  # noqa: E731  (re-ranked first, then by similarity)
    ranks = retrieval_ranks(order(i2t, similarity), order(t2i, similarity.T), gallery.image_of_text)
    expected = recall_metrics(*ranks)
    assert {name: metrics["en"][name] for name in expected} == pytest.approx(expected)
    assert metrics["chance"]["img_r1"] == pytest.approx(100 / 8)


def test_bf16_does_not_round_what_orders_the_candidates(tmp_path, monkeypatch):
    write_toy_data(tmp_path)
    scores = []

    def rank(similarity, *sides, **rest):
        scores.extend([similarity, *(side.score for side in sides if isinstance(side, Reranked))])
        return retrieval_ranks(similarity, *sides, **rest)

    monkeypatch.setattr("tasks.retrieval.retrieval_ranks", rank)
    make_task(tmp_path, evaluation={"num_candidates": 4, "precision": "bf16"}).evaluate("test")
    assert len(scores) == 2 * (1 + 3)  # of two languages the dual encoder's, and the fused ones with both directions'
    for of_candidates in scores:
        real = of_candidates[of_candidates.isfinite()]
        assert (real.bfloat16().float() != real).float().mean() > 0.9


def _same_on_ranks(rank: int, folder: Path, expected: dict) -> None:
    assert make_task(folder).evaluate("test") == expected


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_the_work_and_agree_with_one(tmp_path, num_ranks):
    write_toy_data(tmp_path)
    run_on_ranks(_same_on_ranks, num_ranks, tmp_path, make_task(tmp_path).evaluate("test"))


def test_dual_encoder_alone_never_asks_the_fusion_stack(tmp_path):
    write_toy_data(tmp_path)
    task = make_task(tmp_path)
    task.evaluation.config.score = "dual"
    task.model.text_fusion = None
    metrics = task.evaluate("val")
    assert "dual_encoder" not in metrics and set(metrics) >= {"en", "de", "mean"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 100}, "vocab_size 100 is too small"),
        ({"max_positions": 10}, "max_tokens 20 is more than the encoder's 10 positions"),
        ({"pad_id": 0}, "pad_id is 0"),
    ],
)
def test_text_encoder_that_does_not_fit_the_tokenizer_is_refused(tmp_path, change, message):
    write_toy_data(tmp_path)
    settings = toy_settings(tmp_path)
    settings["model"]["text_encoder"] |= change
    with pytest.raises(ValueError, match=message):
        ImageText.from_config(build(Config, settings))
