"""R2D2's and PRD2's model: scores of pairs, the checkpoint's fate, fine-tuning on 1 or more processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from compat import r2d2_weights
from compat.weights import tensors_of
from dataset.batch import ImageTextBatch, LabelledBatch, TextBatch
from models.model import Model
from objectives.contrastive import Contrastive
from objectives.labels import PairMatching
from objectives.matching import global_match_logits, match_loss, negative_weights_of_all
from objectives.step import Step
from tasks.rerank import choose_candidates, rerank
from tests.parity.runners.common import (
    GRADIENT_TOLERANCE,
    OUTPUT_TOLERANCE,
    Case,
    assert_close,
    assert_loss,
    bert_tree,
    mean_gradients,
    read_case,
)
from tests.ranks import run_on_ranks
from utils.checkpoint import read_weights
from utils.config import build
from utils.label_metrics import area_under_roc
from utils.metrics import Reranked, recall_metrics, retrieval_ranks

CLASS_WEIGHTS = (1.0, 2.0)


def model_tree(config: dict[str, Any]) -> dict[str, Any]:
    """The `model` section of our config for a fixture's config.json."""
    image, text = config["vision"], config["text"]
    joint = config["joint"]
    assert all(joint[k] == text[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads"))
    stack = None if config["class"] == "PRD2" else {"num_layers": joint["num_hidden_layers"]}
    return {
        "image_encoder": {
            "name": "vit",
            "image_size": config["image_size"],
            "patch_size": image["patch_size"],
            "width": image["hidden_size"],
            "num_layers": image["num_hidden_layers"],
            "num_heads": image["num_attention_heads"],
            "mlp_ratio": image["intermediate_size"] / image["hidden_size"],
            "is_clip": True,
            "layer_norm_eps": 1e-5,
            "final_norm": False,
            "is_frozen": True,
        },
        "text_encoder": bert_tree(text)
        | {"num_token_types": text["type_vocab_size"], "layer_norm_eps": 1e-12, "pad_id": 0},
        "text_fusion": stack,
        "image_fusion": stack,
        "match_head": "linear",
        "embed_dim": config["embed_dim"],
    }


def build_model(config: dict[str, Any], state: dict[str, Tensor]) -> Model:
    """Model with the weights of an original state dict, no dropout; everything that is read is written back equal."""
    tree = model_tree(config)
    model = Model(build(Model.Config, tree))
    translation = r2d2_weights.from_checkpoint(state, tree)
    assert not translation.missing and not translation.unexpected, translation
    model.load_state_dict(translation.state)
    written = r2d2_weights.to_checkpoint(model.state_dict(), tree, r2d2_weights.recognise(state))
    assert {n: v.shape for n, v in written.items()} | {n: v.shape for n, v in state.items()} == {
        n: v.shape for n, v in written.items()
    }
    for name in state.keys() - translation.left_out.keys():
        assert torch.equal(written[name], state[name]), name
    model.eval()
    model.temperature.train()
    return model


def encode(model: Model, inputs: dict[str, Tensor]):
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    return model.encode_image(inputs["pixel_values"]), model.encode_text(inputs["input_ids"], lengths)


def check_tokens(found: Tensor, expected: Tensor, mask: Tensor, what: str) -> None:
    assert_close(found * mask[..., None], expected * mask[..., None], what)


@torch.no_grad()
def prd2(folder: Path) -> None:
    case = read_case(folder)
    inputs, outputs = case.inputs, case.outputs
    model = build_model(case.config, case.state)
    images, texts = encode(model, inputs)
    mask = inputs["attention_mask"]
    assert_close(images.tokens, outputs["vision_last_hidden_state"], "vision_last_hidden_state")
    check_tokens(texts.padded(mask.shape[1]), outputs["text_last_hidden_state"], mask, "text_last_hidden_state")
    assert_close(images.embed, outputs["image_embed"], "image_embed")
    assert_close(texts.embed, outputs["text_embed"], "text_embed")
    logits = images.embed @ texts.embed.T / model.temperature.value
    assert_close(logits, outputs["logits_per_image"], "logits_per_image")
    assert_close(logits.T, outputs["logits_per_text"], "logits_per_text")
    assert_close(logits.softmax(dim=1), outputs["probs"], "probs")


@torch.no_grad()
def score(folder: Path) -> None:
    case = read_case(folder)
    inputs, outputs = case.inputs, case.outputs
    model = build_model(case.config, case.state)
    images, texts = encode(model, inputs)
    mask = inputs["attention_mask"]
    num_texts = len(mask)
    assert_close(images.tokens, outputs["image_feats"], "image_feats")
    check_tokens(texts.padded(mask.shape[1]), outputs["text_feats"], mask, "text_feats")
    assert_close(images.embed, outputs["image_embeds"], "image_embeds")
    assert_close(texts.embed, outputs["text_embeds"], "text_embeds")
    similarity = images.embed @ texts.embed.T / model.temperature.value
    assert_close(similarity[0], outputs["sims_over_temp"], "sims_over_temp")
    image, text = torch.zeros(num_texts, dtype=torch.long), torch.arange(num_texts)
    for is_reused in (False, True):
        image_side = model.image_side(images.tokens, is_reused=is_reused)
        text_side = model.text_side(texts, is_reused=is_reused)
        logits = model.pair_logits(image_side, text_side, image, text)
        assert_close(logits[:, 0], outputs["itm_logits_t"], "itm_logits_t")
        assert_close(logits[:, 1], outputs["itm_logits_i"], "itm_logits_i")
        assert_close(logits.softmax(dim=2)[..., 1].mean(dim=1), outputs["score"], "score")
    image_side, text_side = model.image_side(images.tokens), model.text_side(texts)
    fused = texts.select(text)
    fused.tokens = model.text_fusion(fused, image_side.keys, image)
    expected = outputs["text_joint_last_hidden_state"]
    check_tokens(fused.padded(mask.shape[1]), expected, mask, "text_joint_last_hidden_state")
    rows = model.image_fusion(image_side.queries.select(image), text_side.keys, text)
    assert_close(rows, outputs["img_joint_last_hidden_state"], "img_joint_last_hidden_state")


def checkpoint(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state = tensors_of(read_weights(folder / "checkpoint_best.pth"))
    tree = model_tree(config["model"])
    translation = r2d2_weights.from_checkpoint(state, tree)
    position_table = "visual_encoder.embeddings.position_embedding.weight"
    counters = {name for name in config["missing_keys"] if name.endswith("position_ids")}
    # The original drops a position table of another size; ours is interpolated, and counters are no weights.
    assert set(translation.missing) == set(config["missing_keys"]) - {position_table} - counters
    assert not translation.unexpected
    assert set(config["unexpected_keys"]) <= translation.left_out.keys()
    model = Model(build(Model.Config, tree))
    found = model.load_state_dict(translation.state, strict=False)
    assert not found.unexpected_keys
    written = r2d2_weights.to_checkpoint(model.state_dict(), tree, "r2d2")
    for name in set(config["loaded"]) - translation.left_out.keys():
        assert torch.equal(written[name], state[name]), name
    assert translation.left_out.keys() - config["loaded"] <= set(config["unexpected_keys"]) | counters
    assert (
        len(written[position_table]) == (config["model"]["image_size"] // tree["image_encoder"]["patch_size"]) ** 2 + 1
    )
    assert torch.equal(written[position_table][0], state[position_table][0])


@torch.no_grad()
def retrieval_eval(folder: Path) -> None:
    run_on_ranks(_evaluation_rank, read_case(folder).config["world_size"], folder)


@torch.no_grad()
def _evaluation_rank(_rank: int, folder: Path) -> None:
    case = read_case(folder)
    config, outputs = case.config, case.outputs
    model = build_model(config, case.state)
    images, texts = encode(model, case.inputs)
    similarity = images.embed @ texts.embed.T
    assert_close(similarity, outputs["sims"], "sims")
    candidates = choose_candidates(similarity, config["top_k"])
    scores = rerank(model, lambda own: images.tokens[own], texts, candidates, is_probability=True) + similarity
    # Every rank of the original starts from -100 and all are added up: what was scored lies 100 (W - 1) too low, and
    # each addition rounds to fp32.
    ranks = config["world_size"]
    offset = 100 * (ranks - 1)
    tolerance = OUTPUT_TOLERANCE + (ranks - 1) * (offset + 100) * torch.finfo(torch.float32).eps / 2
    sides = (candidates.of_images, scores, "scores_i2t"), (candidates.of_texts.T, scores.T, "scores_t2i")
    for wanted, found, name in sides:
        expected = outputs[name] + offset
        assert torch.equal(expected > -50, wanted), name
        assert_close(found[wanted], expected[wanted], name, tolerance)
    check_recalls(case, similarity, sides)


def check_recalls(case: Case, similarity: Tensor, sides: tuple[tuple[Tensor, Tensor, str], ...]) -> None:
    """Recalls as recorded. Behind top_k the original's order is that of an unstable sort of equal numbers, ours the
    similarity's: only what lies before is compared, and a mean where all its parts are.
    """
    reranked = [
        Reranked(torch.arange(found.shape[1]).expand(found.shape), found.masked_fill(~wanted, -torch.inf))
        for wanted, found, _ in sides
    ]
    image_of_text = torch.tensor(case.config["txt2img"])
    metrics = recall_metrics(*retrieval_ranks(similarity, similarity.T, image_of_text, *reranked))
    is_ordered = {
        f"{side}_r{k}": min(k, candidates) <= case.config["top_k"]
        for side, candidates in zip(("img", "txt"), similarity.shape, strict=True)
        for k in (1, 5, 10)
    }
    for side in ("img", "txt"):
        is_ordered[f"{side}_r_mean"] = all(is_ordered[f"{side}_r{k}"] for k in (1, 5, 10))
    is_ordered["r_mean"] = is_ordered["img_r_mean"] and is_ordered["txt_r_mean"]
    for name, is_comparable in is_ordered.items():
        expected = float(case.outputs[f"metric/{name}"])
        assert not is_comparable or abs(metrics[name] - expected) < 1e-4, f"{name}: {metrics[name]}, not {expected}"


def retrieval_train(folder: Path) -> None:
    run_on_ranks(_retrieval_rank, read_case(folder).config["world_size"], folder)


def _retrieval_rank(rank: int, folder: Path) -> None:
    case = read_case(folder)
    config, outputs = case.config, case.outputs
    ranks, size = config["world_size"], config["batch"]
    own = {name: value.split(size)[rank] for name, value in case.inputs.items()}
    model = build_model(config, case.state)
    images, texts = encode(model, own)
    lengths = own["attention_mask"].sum(dim=1).tolist()
    rows = torch.arange(size)
    batch = ImageTextBatch(
        own["pixel_values"], own["idx"], TextBatch(own["input_ids"], lengths), rows, torch.zeros_like(rows)
    )
    step = Step(model, batch, images, texts)
    contrastive = Contrastive(Contrastive.Config())(step)
    weights = negative_weights_of_all(step, rows, 0.0)
    assert_close(model.temperature.value, outputs["temp_after_clamp"][rank], "temp_after_clamp")
    assert_close(weights.text, outputs["weights_i2t"].split(size)[rank], "weights_i2t")
    assert_close(weights.image, outputs["weights_t2i"].split(size)[rank], "weights_t2i")
    logits = global_match_logits(step, rows, own["neg_image_idx"], own["neg_text_idx"])
    matching = match_loss(logits, torch.ones(3 * size), CLASS_WEIGHTS)
    assert_loss(matching, outputs["loss_fgr"][rank], "loss_fgr")
    # Ours splits the sums over the batch of all ranks otherwise: only the mean over ranks is the same.
    mean = contrastive.detach().clone()
    dist.all_reduce(mean)
    assert_loss(mean / ranks, outputs["loss_gcpr"].mean(), "loss_gcpr")
    (contrastive + matching).backward()
    check_gradients(case, model)


def matching_train(folder: Path) -> None:
    case = read_case(folder)
    inputs, outputs = case.inputs, case.outputs
    model = build_model(case.config, case.state)
    images, texts = encode(model, inputs)
    batch = LabelledBatch(
        inputs["pixel_values"],
        TextBatch(inputs["input_ids"], inputs["attention_mask"].sum(dim=1).tolist()),
        inputs["label"],
    )
    step = Step(model, batch, images, texts)
    logits = model.label_logits(step.image_side, step.text_side, batch.image_of_text)
    assert_close(logits.exp(), outputs["pred"], "pred")
    assert abs(area_under_roc(logits, batch.labels) / 100 - float(outputs["auc"])) < 1e-6
    loss = PairMatching(PairMatching.Config())(step)
    assert_loss(loss, outputs["loss"], "loss")
    loss.backward()
    check_gradients(case, model)


def check_gradients(case: Case, model: Model) -> None:
    """Gradients, averaged over ranks, against the recorded ones under their original names."""
    tree = model_tree(case.config)
    found = r2d2_weights.to_checkpoint(mean_gradients(model), tree, "r2d2")
    for name in r2d2_weights.from_checkpoint(case.state, tree).left_out:  # tables that nothing reads
        found[name] = torch.zeros_like(found[name])
    # Some gradients are zero but for rounding: a key's bias moves all logits of a softmax alike.
    floor = 1e-6 * max(float(x) for key, x in case.outputs.items() if key.startswith("grad_norm/"))
    for key, expected in case.outputs.items():
        kind, _, name = key.partition("/")
        allowed = GRADIENT_TOLERANCE * float(expected.norm()) + floor
        if kind == "grad_norm":
            assert abs(found[name].norm() - expected) <= allowed, f"gradient norm of {name}"
        elif kind == "grad":
            assert (found[name] - expected).norm() <= allowed, f"gradient of {name}"


KINDS = {
    ("r2d2", "prd2"): prd2,
    ("r2d2", "score"): score,
    ("r2d2", "checkpoint"): checkpoint,
    ("r2d2", "retrieval_train"): retrieval_train,
    ("r2d2", "retrieval_eval"): retrieval_eval,
    ("r2d2", "matching_train"): matching_train,
}
