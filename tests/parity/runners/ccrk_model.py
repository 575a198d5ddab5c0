"""CCRK's model and losses: pre-training, fine-tuning, loading, initialisation from public weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compat import bert, cclm_weights, swin
from compat.cclm_sizes import TEXT_SIZES
from compat.layout import to_theirs
from dataset.batch import ImageTextBatch, MaskedText, TextBatch
from models.model import Model
from objectives.contrastive import Contrastive, OneToK, gathered_contrastive_losses
from objectives.masked_lm import masked_language_loss
from objectives.matching import match_logits, match_loss, negative_weights
from objectives.step import Step, positive_text_weights
from objectives.vicreg import VICReg
from tests.parity.runners.common import (
    GRADIENT_TOLERANCE,
    Case,
    assert_close,
    assert_gradient,
    assert_loss,
    bert_tree,
    mean_gradients,
    read_case,
    temperature_gradient_rounding,
    weight_tolerance,
)
from tests.ranks import run_on_ranks
from utils.config import build


def model_tree(config: dict[str, Any], stage: str, vision: str = "vision") -> dict[str, Any]:
    """The `model` section of our config for a fixture's config.json."""
    image, text = config[vision], config["text"]
    num_layers = text.get("kept_layers", text.get("num_hidden_layers"))
    num_text = config.get("fusion_layer", num_layers // 2)
    return {
        "image_encoder": {
            "name": "swin",
            "image_size": image["image_res"],
            "window_size": image["window_size"],
            "width": image["embed_dim"],
            "depths": image["depths"],
            "num_heads": image["num_heads"],
        },
        "text_encoder": {
            **bert_tree(text),
            "num_layers": num_text,
            "pad_id": config.get("text_special_ids", {}).get("pad", 1),
            **{TEXT_SIZES[name]: text[name] for name in ("type_vocab_size", "layer_norm_eps") if name in text},
        },
        "text_fusion": {"num_layers": num_layers - num_text},
        "embed_dim": config["embed_dim"],
        "shared_projection": config.get("use_one_cl_proj_only", False),
        # The weights bring the value; a case may start outside the range to which it is clamped.
        "temperature": {"is_clamped": stage == "pretrain"},
        "has_masked_language_head": stage == "pretrain",
    }


def build_model(tree: dict[str, Any], state: dict[str, Tensor]) -> Model:
    """Model with the weights of an original state dict, no dropout, in the mode in which losses are computed."""
    model = Model(build(Model.Config, tree))
    translation = cclm_weights.from_checkpoint(state, tree)
    assert not translation.missing and not translation.unexpected, translation
    model.load_state_dict(translation.state)
    written = cclm_weights.to_checkpoint(model.state_dict(), tree, cclm_weights.recognise(state))
    for name, value in written.items():
        if name in state and not name.endswith(("relative_position_bias_table", *swin.BUFFERS)):
            assert torch.equal(value, state[name]), name
    return without_dropout(model)


def without_dropout(model: Model) -> Model:
    """The temperature in training mode (it is clamped there), everything else in evaluation mode."""
    model.eval()
    if model.temperature is not None:
        model.temperature.train()
    return model


def text_batch(ids: Tensor, attention_mask: Tensor) -> TextBatch:
    return TextBatch(ids, attention_mask.sum(dim=1).tolist())


def make_step(
    model: Model, images: Tensor, ids: Tensor, mask: Tensor, captions: int, image_id: Tensor | None = None
) -> Step:
    num_images = len(images)
    batch = ImageTextBatch(
        images=images,
        image_id=torch.arange(num_images) if image_id is None else image_id,
        texts=text_batch(ids, mask),
        image_of_text=torch.arange(num_images).repeat_interleave(captions),
        language_of_text=torch.arange(captions).repeat(num_images),
    )
    return Step(model, batch, model.encode_image(images), model.encode_text(ids, batch.texts.lengths))


def gradient_norms(model: Model, tree: dict[str, Any], loss: Tensor, stage: str) -> dict[str, Tensor]:
    """Norm of the gradient of every parameter under its original name; a tied tensor counts once."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    state = {
        name: torch.zeros_like(p) if g is None else g for name, p, g in zip(names, parameters, gradients, strict=True)
    }
    return {
        name: value.norm()
        for name, value in cclm_weights.to_checkpoint(state, tree, stage).items()
        if value.is_floating_point()
    }


def check_gradients(case: Case, model: Model, tree: dict[str, Any], loss: Tensor, stage: str, prefix: str) -> None:
    expected = {name.removeprefix(prefix): value for name, value in case.outputs.items() if name.startswith(prefix)}
    if not expected:
        return
    found = gradient_norms(model, tree, loss, stage)
    # A key's bias moves all logits of a softmax alike: its gradient is zero but for rounding.
    floor = 1e-6 * max(float(value) for value in expected.values())
    rounding = {"temp": temperature_gradient_rounding(model.temperature.value)}
    for name, value in expected.items():
        assert_gradient(found[name], value, f"{prefix}{name}", max(floor, rounding.get(name, 0.0)))


def pretrain(folder: Path) -> None:
    case = read_case(folder)
    config, inputs, outputs = case.config, case.inputs, case.outputs
    tree = model_tree(config, "pretrain")
    model = build_model(tree, case.state)
    captions = config["K"]
    step = make_step(model, inputs["image"], inputs["text_ids"], inputs["text_atts"], captions)
    mask = inputs["text_atts"][..., None]
    found = {
        "image_embeds": step.images.tokens,
        "image_feat": step.images.embed,
        "text_embeds": step.texts.padded(mask.shape[1]) * mask,
        "text_feat": step.texts.embed,
        "logits_i2t": step.similarity,
        "temp_after_clamp": step.temperature,
    }
    for name in found.keys() & outputs.keys():
        assert_close(found[name], outputs[name] * mask if name == "text_embeds" else outputs[name], name)
    choice = inputs.get("positive_choice", torch.zeros(len(inputs["image"]), dtype=torch.long))
    positive = torch.arange(len(choice)) * captions + choice
    check_sampling(case, step, positive, captions)
    losses = {"loss_mitc": contrastive_of(case, step, outputs), **matching_and_words(case, step, positive)}
    total = sum(losses.values())
    for names in (("loss_mitc", "loss_itc"), ("loss_hitm", "loss_itm"), ("loss_hmlm", "loss_mlm")):
        for name in names:
            if name in outputs:
                assert_loss(losses[names[0]], outputs[name], name, step.temperature)
            check_gradients(case, model, tree, losses[names[0]], "pretrain", f"gradnorm_{name}/")
    if "loss_total" in outputs:
        assert_loss(total, outputs["loss_total"], "loss_total", step.temperature)
    check_gradients(case, model, tree, total, "pretrain", "gradnorm_total/")
    check_hidden_states(case, step, positive)
    vicreg = VICReg(VICReg.Config())
    terms = {f"loss_{name}": value for name, value in vicreg.terms(step).items()} | {"vicreg_25_25_1": vicreg(step)}
    for name, value in terms.items():
        if name in outputs:
            assert_loss(value, outputs[name], name)


def contrastive_of(case: Case, step: Step, outputs: dict[str, Tensor]) -> Tensor:
    """The contrastive loss of the case; every recorded variant of the divisor is checked."""
    if case.config.get("cclm_easy"):
        return Contrastive(Contrastive.Config(gather="local_slice"))(step)
    for name, divisor in (("loss_mitc_no_division", -1), ("loss_mitc_div2", 2)):
        if name in outputs:
            found = OneToK(OneToK.Config(divisor=divisor))(step)
            assert_loss(found, outputs[name], name, step.temperature)
    return OneToK(OneToK.Config(divisor=case.config.get("need_divm", 0), gather="local_slice"))(step)


def check_sampling(case: Case, step: Step, positive: Tensor, captions: int) -> None:
    own = step.batch.image_of_text[None, :] == torch.arange(len(positive))[:, None]
    for name, choice in (("positive_type1", "probability"), ("positive_type2", "similarity")):
        expected = case.outputs.get(f"sampling_weights_{name}")
        if expected is not None:
            found = positive_text_weights(step.similarity, own, choice)[own].view(-1, captions)
            assert_close(found, expected, name, weight_tolerance(step.temperature))
    weights = negative_weights(step.similarity, positive, step.batch.image_id, step.text_id)
    for name, found in (("negative_image", weights.image), ("negative_text", weights.text)):
        if f"sampling_weights_{name}" in case.outputs:
            tolerance = weight_tolerance(step.temperature)
            assert_close(found, case.outputs[f"sampling_weights_{name}"], name, tolerance)


def matching_and_words(case: Case, step: Step, positive: Tensor) -> dict[str, Tensor]:
    inputs, outputs = case.inputs, case.outputs
    logits = match_logits(step, positive, inputs["negative_image_index"], inputs["negative_text_index"])
    if "itm_logits" in outputs:
        assert_close(logits, outputs["itm_logits"], "itm_logits")
    masked = MaskedText(inputs["text_ids_masked"], inputs["masked_pos"], inputs["masked_ids"])
    words = masked_language_loss(
        step, masked.ids[positive], masked.positions[positive], masked.targets[positive], positive
    )
    if "mlm_logits" in outputs:
        check_word_logits(step, masked, positive, outputs["mlm_logits"])
    return {"loss_hitm": match_loss(logits, torch.ones(len(logits), dtype=torch.bool)), "loss_hmlm": words}


def check_word_logits(step: Step, masked: MaskedText, positive: Tensor, expected: Tensor) -> None:
    targets = masked.targets[positive]
    texts = step.masked_texts(masked.ids[positive], positive)
    tokens, found_targets = step.model.masked_tokens(texts, masked.positions[positive], targets, step.image_keys)
    logits = tokens @ step.model.text_encoder.word.weight.T + step.model.masked_language_head.bias
    order = torch.tensor(step.texts.packing.lengths)[positive].argsort(stable=True)
    real = targets[order] >= 0
    assert torch.equal(found_targets, targets[order][real])
    assert_close(logits, expected[order][real], "mlm_logits")


def check_hidden_states(case: Case, step: Step, positive: Tensor) -> None:
    model, mask = step.model, case.inputs["text_atts"][positive][..., None]
    images = torch.arange(len(positive))
    for name in ("cross_pos_hidden", "cross_from_ids_hidden"):
        if name in case.outputs:
            texts = step.texts.select(positive)
            texts.tokens = model.text_fusion(texts, step.image_keys, images)
            assert_close(texts.padded(mask.shape[1]) * mask, case.outputs[name] * mask, name)


def finetune(folder: Path) -> None:
    case = read_case(folder)
    tree = model_tree(case.config, "finetune")
    model = build_model(tree, case.state)
    inputs, outputs = case.inputs, case.outputs
    for suffix, image_id in (("", inputs.get("idx")), ("_no_idx", None)):
        if f"loss_itc{suffix}" not in outputs:
            continue
        step = make_step(model, inputs["image"], inputs["text_ids"], inputs["text_atts"], 1, image_id)
        assert_close(step.images.embed, outputs["image_feat"], "image_feat")
        assert_close(step.texts.embed, outputs["text_feat"], "text_feat")
        itc = Contrastive(Contrastive.Config(gather="local_slice"))(step)
        positive = torch.arange(len(inputs["image"]))
        logits = match_logits(step, positive, inputs["negative_image_index"], inputs["negative_text_index"])
        itm = match_loss(logits, torch.ones(len(logits), dtype=torch.bool))
        assert_loss(itc, outputs[f"loss_itc{suffix}"], f"loss_itc{suffix}", step.temperature)
        assert_loss(itm, outputs[f"loss_itm{suffix}"], f"loss_itm{suffix}")
        if not suffix:
            check_sampling(case, step, positive, 1)
            assert_close(logits, outputs["itm_logits"], "itm_logits")
            assert_loss(itc + itm, outputs["loss_total"], "loss_total", step.temperature)
            check_gradients(case, model, tree, itc + itm, "finetune", "gradnorm_total/")


def load_pretrain_to_finetune(folder: Path) -> None:
    case = read_case(folder)
    tree = model_tree(case.config, "finetune", vision="vision_finetune")
    model = build_model(tree, case.state)
    written = cclm_weights.to_checkpoint(model.state_dict(), tree, "finetune")
    shapes = {name: list(value.shape) for name, value in written.items()}
    assert shapes == case.config["final_keys"]
    left_out = cclm_weights.from_checkpoint(case.state, tree).left_out
    assert set(case.config["unexpected_keys"]) <= set(left_out)
    for name, expected in case.outputs.items():
        if name in written:
            assert_close(written[name], expected, name, 1e-6)
    mask = case.inputs["text_atts"]
    image = model.encode_image(case.inputs["image"])
    text = model.encode_text(case.inputs["text_ids"], mask.sum(dim=1).tolist())
    assert_close(image.tokens, case.outputs["image_embeds"], "image_embeds")
    assert_close(image.embed, case.outputs["image_feat"], "image_feat")
    real = mask[..., None]
    assert_close(text.padded(mask.shape[1]) * real, case.outputs["text_embeds"] * real, "text_embeds")
    assert_close(text.embed, case.outputs["text_feat"], "text_feat")


def init_from_public_weights(folder: Path) -> None:
    case = read_case(folder)
    tree = model_tree(case.config, "pretrain")
    public = {
        kind: {n.removeprefix(f"{kind}/"): v for n, v in case.inputs.items() if n.startswith(f"{kind}/")}
        for kind in ("swin", "xlmr")
    }
    ours = bert.from_public(public["xlmr"], tree).state
    tower = swin.to_timm(public["swin"], tree["image_encoder"])
    ours |= {f"image_encoder.backbone.{name}": value for name, value in tower.items()}
    fresh = set(Model(build(Model.Config, tree)).state_dict()) - set(ours)
    written = cclm_weights.to_checkpoint(ours, tree, "pretrain")
    for name, expected in case.outputs.items():
        assert name in written, f"{name} was not initialised"
        assert_close(written[name].to(expected.dtype), expected, name, 1e-6)
    dummy = {name: torch.zeros(2, 2) for name in fresh}
    fresh_theirs = set(to_theirs(dummy, cclm_weights.entries(tree, "pretrain")))
    assert fresh_theirs == set(case.config["fresh_keys"]) | {"temp"} or fresh_theirs == set(case.config["fresh_keys"])


def swin_bias_interpolation(folder: Path) -> None:
    case = read_case(folder)
    for name, expected in case.outputs.items():
        source, target = name.removeprefix("table_w").split("_to_w")
        found = swin.interpolate_table(case.inputs[f"table_w{source}_for_w{target}"], int(target))
        assert_close(found, expected, name, 1e-6)


def contrastive_distributed(folder: Path) -> None:
    run_on_ranks(_contrastive_rank, read_case(folder).config["world_size"], folder)


def _contrastive_rank(rank: int, folder: Path) -> None:
    case = read_case(folder)
    size, captions, temp = case.config["B_per_rank"], case.config["K"], case.config["temp"]
    own = slice(rank * size, (rank + 1) * size)
    own_text = slice(rank * size * captions, (rank + 1) * size * captions)
    for variant in ("gather", "local", "finetune_idx"):
        if f"{variant}/loss/rank{rank}" not in case.outputs:
            continue
        image = case.inputs["image_feat"][own].clone().requires_grad_()
        text = case.inputs["text_feat"][own_text].clone().requires_grad_()
        temperature = torch.tensor(temp, requires_grad=True)
        used, image_id = text, torch.arange(rank * size, (rank + 1) * size)
        text_id = image_id.repeat_interleave(captions)
        if variant == "finetune_idx":
            used, image_id = text[::captions], case.inputs["finetune_idx"][own]
            text_id = image_id
        gather = "none" if variant == "local" else "local_slice"
        sides = gathered_contrastive_losses(
            image, used, temperature, image_id, text_id, gather=gather, is_mean=variant == "finetune_idx"
        )
        divisor = case.config.get("need_divm", 0) or captions
        loss = sum(sides) / 2 / (1 if variant == "finetune_idx" or divisor < 0 else divisor)
        loss.backward()
        expected = {
            name: case.outputs[f"{variant}/{name}/rank{rank}"]
            for name in ("loss", "grad_temp", "grad_image_feat", "grad_text_feat")
        }
        assert_loss(loss, expected["loss"], f"{variant}/loss", temperature)
        assert_close(temperature.grad, expected["grad_temp"], f"{variant}/grad_temp")
        assert_close(image.grad, expected["grad_image_feat"], f"{variant}/grad_image_feat")
        found = text.grad[::captions] if len(expected["grad_text_feat"]) == size else text.grad
        assert_close(found, expected["grad_text_feat"], f"{variant}/grad_text_feat")


def pretrain_distributed(folder: Path) -> None:
    run_on_ranks(_pretrain_rank, read_case(folder).config["world_size"], folder)


def _pretrain_rank(rank: int, folder: Path) -> None:

    case = read_case(folder)
    config = case.config
    ranks, size, captions = config["world_size"], config["B_per_rank"], config["K"]
    per_rank = {name: value.chunk(ranks)[rank] for name, value in case.inputs.items()}
    tree = model_tree(config, "pretrain")
    model = build_model(tree, case.state)
    step = make_step(model, per_rank["image"], per_rank["text_ids"], per_rank["text_atts"], captions)
    step.batch.image_id += rank * size
    positive = torch.arange(size) * captions + per_rank["positive_choice"]
    local = Case(config, per_rank, {}, {})
    losses = matching_and_words(local, step, positive)
    losses["loss_mitc"] = OneToK(OneToK.Config(gather="local_slice", divisor=config.get("need_divm", 0)))(step)
    for name, value in losses.items():
        for key in (f"{name}/rank{rank}", f"{name}_rank{rank}"):
            if key in case.outputs:
                assert_loss(value, case.outputs[key], key, step.temperature)
    sum(losses.values()).backward()
    written = cclm_weights.to_checkpoint(mean_gradients(model), tree, "pretrain")
    for key, expected in case.outputs.items():
        if key.startswith("gradnorm_ddp/"):
            assert_gradient(written[key.removeprefix("gradnorm_ddp/")].norm(), expected, key)
        elif key.startswith("grad_ddp/"):
            found = written[key.removeprefix("grad_ddp/")]
            assert (found - expected).norm() <= GRADIENT_TOLERANCE * expected.norm(), key


KINDS = {
    ("ccrk", "pretrain"): pretrain,
    ("ccrk", "finetune_retrieval"): finetune,
    ("ccrk", "load_pretrain_to_finetune"): load_pretrain_to_finetune,
    ("ccrk", "init_from_public_weights"): init_from_public_weights,
    ("ccrk", "swin_bias_interpolation"): swin_bias_interpolation,
    ("ccrk", "contrastive_distributed"): contrastive_distributed,
    ("ccrk", "pretrain_distributed"): pretrain_distributed,
}
