"""CCLM's question answering: loss and gradients, question states, ranked answers; loading pre-trained weights."""

from __future__ import annotations

from pathlib import Path

import torch

from dataset.batch import TextBatch
from objectives.answering import answer_loss
from tasks.answer_ranking import rank_answers
from tests.parity.runners.ccrk_model import build_model, gradient_norms
from tests.parity.runners.common import (
    assert_close,
    assert_gradient_norms,
    assert_loss,
    cclm_model_tree,
    read_case,
)


def vqa(folder: Path) -> None:
    case = read_case(folder)
    config, inputs, outputs = case.config, case.inputs, case.outputs
    tree = cclm_model_tree(config)
    model = build_model(tree, case.state)
    mask = inputs["question_atts"]
    keys = model.project_images(model.encode_image(inputs["image"]).tokens)
    texts = model.encode_text(inputs["question_ids"], mask.sum(dim=1).tolist())
    questions = model.fuse_texts(texts, keys, torch.arange(len(mask)))
    real = mask[..., None]
    assert_close(questions.padded(mask.shape[1]) * real, outputs["question_states"] * real, "question_states")
    answers = TextBatch(inputs["answer_ids"], inputs["answer_atts"].sum(dim=1).tolist())
    loss = answer_loss(model.answer_decoder, questions, answers, inputs["n_answers"].tolist(), inputs["weights"])
    assert_loss(loss, outputs["train_loss"], "train_loss")
    norms = folder / "grad_norms.train_loss.json"
    if norms.exists():
        assert_gradient_norms(gradient_norms(model, tree, loss, "finetune"), norms)
    check_ranking(model.answer_decoder, questions, case)


@torch.no_grad()
def check_ranking(decoder, questions, case) -> None:
    inputs, outputs = case.inputs, case.outputs
    answers = TextBatch(inputs["answer_list_ids"], inputs["answer_list_atts"].sum(dim=1).tolist())
    begun = decoder.begin(answers.ids[0, 0], decoder.project(questions))
    logits = begun.tokens @ decoder.word_weight.T + decoder.head.bias
    assert_close(logits, outputs["first_token_logits"], "first_token_logits")
    ranked = rank_answers(decoder, questions, answers, case.config["k_test"])
    assert torch.equal(ranked.answer, outputs["topk_ids"]), "other candidates, or in another order"
    assert_close(ranked.probability, outputs["topk_probs"], "topk_probs")


KINDS = {("cclm", "vqa"): vqa}
