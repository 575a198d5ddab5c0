"""CCRK's two-stage retrieval evaluation and its rank spread, through the re-ranking of the retrieval task."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.model import Model
from tasks.rerank import choose_candidates, rerank
from tests.parity.runners.ccrk_model import build_model, model_tree
from tests.parity.runners.common import assert_close, read_case
from utils.metrics import Reranked, mean_rank_spread, recall_metrics, retrieval_ranks

NOT_RERANKED = -100.0


def two_stage_scores(
    model: Model, tokens: Tensor, image_embed: Tensor, ids: Tensor, mask: Tensor, k: int
) -> tuple[Tensor, ...]:
    """similarity (M, T) and both directions' matrices with -100 where the original does not re-rank."""
    texts = model.encode_text(ids, mask.sum(dim=1).tolist())
    similarity = image_embed @ texts.embed.T
    candidates = choose_candidates(similarity, k)
    scores = rerank(model, lambda images: tokens[images], texts, candidates)
    of_images = torch.where(candidates.of_images, scores, NOT_RERANKED)
    of_texts = torch.where(candidates.of_texts, scores, NOT_RERANKED).T
    return similarity, of_images, of_texts


@torch.no_grad()
def evaluate_rerank_mrv(folder: Path) -> None:
    case = read_case(folder)
    config, inputs, outputs = case.config, case.inputs, case.outputs
    model = build_model(model_tree(config, "finetune"), case.state)
    images = model.encode_image(inputs["image"])
    identity = torch.arange(len(inputs["image"]))
    ranks: dict[str, dict[str, tuple[Tensor, Tensor]]] = {"dual_encoder": {}, "rerank_all": {}, "rerank_top_k": {}}
    for language in config["languages"]:
        texts = inputs[f"text_ids/{language}"], inputs[f"text_atts/{language}"]
        for mode, k in (("rerank_all", len(identity)), ("rerank_top_k", config["k_test"])):
            similarity, i2t, t2i = two_stage_scores(model, images.tokens, images.embed, *texts, k)
            check_scores(outputs, f"{mode}/{language}", i2t, t2i)
            ranks[mode][language] = retrieval_ranks(similarity, similarity.T, identity, dense(i2t), dense(t2i))
        check_scores(outputs, f"dual_encoder/{language}", similarity, similarity.T)
        ranks["dual_encoder"][language] = retrieval_ranks(similarity, similarity.T, identity)
    check_ranks(config, outputs, ranks)
    if "multi/text_ids" in inputs:
        check_several_captions(case, model, images)


def dense(scores: Tensor) -> Reranked:
    index = torch.arange(scores.shape[1]).expand(scores.shape)
    return Reranked(index, scores.masked_fill(scores == NOT_RERANKED, -torch.inf))


def check_scores(outputs: dict[str, Tensor], prefix: str, i2t: Tensor, t2i: Tensor, separator: str = "/") -> None:
    for kind, found in (("score_i2t", i2t), ("score_t2i", t2i)):
        name = f"{prefix}{separator}{kind}"
        if name in outputs:
            # Scores of a few units beside entries of -100: the absolute difference counts.
            expected = outputs[name]
            assert ((found == NOT_RERANKED) == (expected == NOT_RERANKED)).all(), f"{name}: other candidates"
            assert_close(found.clamp_min(-50), expected.clamp_min(-50), name)


def check_ranks(config: dict, outputs: dict[str, Tensor], ranks: dict) -> None:
    for mode, per_language in ranks.items():
        for language, (image_to_text, text_to_image) in per_language.items():
            for name, found in (("rank_tr", image_to_text), ("rank_ir", text_to_image)):
                expected = outputs.get(f"{mode}/{language}/{name}")
                assert expected is None or torch.equal(found.double(), expected.double()), f"{mode}/{language}/{name}"
            check_metrics(
                config["expected"].get(f"{mode}/{language}/metrics"), recall_metrics(image_to_text, text_to_image), mode
            )
        for place, name in ((0, "mrv_tr"), (1, "mrv_ir")):
            expected = config["expected"].get(f"{mode}/{name}")
            if expected is not None:
                found = mean_rank_spread(torch.stack([sides[place] for sides in per_language.values()]))
                assert abs(found - expected) < 1e-9, f"{mode}/{name}: {found}, expected {expected}"


def check_metrics(expected: dict | None, found: dict, what: str) -> None:
    for name, value in (expected or {}).items():
        assert abs(found[name] - value) < 1e-9, f"{what} {name}: {found[name]}, expected {value}"


def check_several_captions(case, model: Model, images) -> None:
    inputs, outputs, expected = case.inputs, case.outputs, case.config["expected"]
    texts = inputs["multi/text_ids"], inputs["multi/text_atts"]
    similarity, i2t, t2i = two_stage_scores(model, images.tokens, images.embed, *texts, case.config["k_test"])
    assert_close(similarity, outputs["multi_dual_encoder/sims"], "multi_dual_encoder/sims")
    check_scores(outputs, "multi_rerank_top_k", i2t, t2i)
    image_of_text = inputs["multi/txt2img"]
    check_metrics(
        expected.get("multi_dual_encoder/metrics"),
        recall_metrics(*retrieval_ranks(similarity, similarity.T, image_of_text)),
        "multi",
    )
    reranked = retrieval_ranks(similarity, similarity.T, image_of_text, dense(i2t), dense(t2i))
    found = recall_metrics(*reranked)
    if case.config["k_test"] >= 10:
        check_metrics(expected.get("multi_rerank_top_k/metrics"), found, "multi_rerank_top_k")


KINDS = {("ccrk", "evaluate_rerank_mrv"): evaluate_rerank_mrv}
