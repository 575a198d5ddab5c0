"""Chinese-CLIP's weights in every layout, and the released sizes."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import rosetta
from compat.chinese_clip_sizes import CONFIGS, model_section, named_config
from compat.chinese_clip_weights import image_weights
from compat.weights import recognise, released_config, released_sizes, to_original, translate
from configs.schema import load_settings
from models.model import Model
from optim import make_groups
from tests.parity.conftest import OWN_FIXTURES
from tests.parity.runners.chinese_clip_model import build_model, raw_image
from tests.tiny import build_model as tiny_model
from utils.config import build, to_tree

FIXTURES = OWN_FIXTURES / "chinese_clip"
MANIFEST = json.loads((FIXTURES / "manifest.json").read_text(encoding="utf-8"))
TINY = json.loads((FIXTURES / "vit_tiny/config.json").read_text(encoding="utf-8"))


def meta_model(path):
    settings = load_settings(rosetta.ROOT / path)
    with torch.device("meta"):
        return Model(settings.model), settings


def tiny_state(name="vit_tiny"):
    return load_file(FIXTURES / name / "state_dict.safetensors")


def wide_state(**changes):
    """A random file whose heads are as wide as in the released ones."""
    sizes = {"vision_width": 64, "vision_head_width": 64, "text_hidden_size": 64, "text_num_attention_heads": 1}
    torch.manual_seed(0)
    model = Model(build(Model.Config, model_section(TINY | sizes | changes)))
    return to_original(model.state_dict(), to_tree(model.config), "chinese_clip")


RESNET = {"image_resolution": 64, "vision_layers": [1, 1, 1, 1], "vision_width": 4}


@pytest.mark.parametrize("vision, text, path", CONFIGS, ids=[row[0] for row in CONFIGS])
def test_released_sizes_have_the_original_s_keys_shapes_and_decays(vision, text, path):
    expected = MANIFEST[vision]
    assert expected["text_model"] == text
    model, settings = meta_model(path)
    tree = to_tree(model.config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == expected["params_total"]
    original = to_original(model.state_dict(), tree, "chinese_clip")
    shapes = {name: value[0] for name, value in expected["state_dict"].items()}
    assert {name: list(value.shape) for name, value in original.items()} == shapes
    if "hf_state_dict" in expected:
        theirs = to_original(model.state_dict(), tree, "chinese_clip_hf")
        assert {name: list(value.shape) for name, value in theirs.items()} == {
            name: value[0] for name, value in expected["hf_state_dict"].items()
        }
        assert released_config(theirs) == path
    assert recognise(original) == "chinese_clip" and released_config(original) == path
    # The original's rule, on its own names.
    [free, decayed] = sorted(make_groups(model, settings.optim), key=lambda group: group["weight_decay"])
    assert free["weight_decay"] == 0 and decayed["weight_decay"] == 0.2
    for group, is_free in ((free, True), (decayed, False)):
        chosen = {name: parameter.detach() for name, parameter in group["params"]}
        found = to_original(chosen, tree, "chinese_clip")
        assert all(any(word in name for word in ("bn", "ln", "bias", "logit_scale")) == is_free for name in found)
        assert len(found) == expected["no_weight_decay" if is_free else "with_weight_decay"]


@pytest.mark.parametrize("vision, text, path", CONFIGS, ids=[row[0] for row in CONFIGS])
def test_our_files_say_what_the_original_s_say(vision, text, path):
    config = build(Model.Config, model_section(named_config(vision, text)))
    assert to_tree(config) == to_tree(meta_model(path)[0].config)


@pytest.mark.parametrize("changes", [{}, RESNET], ids=["vit", "resnet"])
def test_a_file_of_any_size_is_loaded_by_its_own_shapes(changes, tmp_path):
    state = wide_state(**changes)
    assert released_sizes(state)["image_encoder"]["image_size"] == (64 if changes else 32)
    pooled = {"bert.pooler.dense.weight": torch.zeros(64, 64), "bert.pooler.dense.bias": torch.zeros(64)}
    wrapped = {f"module.{name}": value for name, value in (state | pooled).items()}
    torch.save({"epoch": 15, "step": 0, "name": "released", "state_dict": wrapped}, tmp_path / "clip_cn_tiny.pt")
    model = rosetta.load(tmp_path / "clip_cn_tiny.pt").model
    found = to_original(model.state_dict(), to_tree(model.config), "chinese_clip")
    assert all(torch.equal(found[name], value) for name, value in state.items()) and len(found) == len(state)


@pytest.mark.parametrize("layout", ["chinese_clip", "chinese_clip_hf"])
def test_an_exported_file_is_read_back_equal(layout, tmp_path):
    save_file(wide_state(), tmp_path / "bare.safetensors")
    path = rosetta.export_weights(tmp_path / "bare.safetensors", layout, tmp_path)
    content = torch.load(path, weights_only=True)
    if layout == "chinese_clip":  # what the original's loaders ask for
        assert {"epoch", "step", "state_dict"} <= set(content) and "module.logit_scale" in content["state_dict"]
    else:
        assert "visual_projection.weight" in content
    again = rosetta.load(path).model.state_dict()
    first = rosetta.load(tmp_path / "bare.safetensors").model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_a_width_that_tells_no_number_of_heads_asks_for_a_config(tmp_path):
    save_file(tiny_state(), tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match="does not tell its number of heads; name a config"):
        rosetta.load(tmp_path / "tiny.safetensors")


def test_transformers_has_no_resnet():
    model = build_model(json.loads((FIXTURES / "resnet_tiny/config.json").read_text()), tiny_state("resnet_tiny"))
    with pytest.raises(ValueError, match="has no ResNet; export it as chinese_clip"):
        to_original(model.state_dict(), to_tree(model.config), "chinese_clip_hf")


def test_another_model_is_not_written_as_chinese_clip():
    model, settings = meta_model("configs/zerovl/zerovl.yaml")
    with pytest.raises(ValueError, match="this model is another"):
        to_original(model.state_dict(), to_tree(model.config), "chinese_clip")


def test_a_missing_third_of_a_projection_is_told_by_the_name_of_the_whole():
    state = {n: v for n, v in load_file(FIXTURES / "hf_transformers/state_dict.safetensors").items()}
    del state["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    translation = translate(state, model_section(TINY))
    assert translation.missing == ["visual.transformer.resblocks.1.attn.in_proj_weight"]


def test_clip_s_image_side_fills_tower_projection_and_temperature():
    state = {n: v for n, v in tiny_state().items() if re.match("visual|logit_scale", n)}
    found = image_weights(state | {"token_embedding.weight": torch.zeros(2, 2)}, model_section(TINY))
    assert list(found.left_out) == ["token_embedding.weight"]
    assert {"image_projection.weight", "temperature.log_scale"} <= set(found.state)


def test_positions_of_another_grid_are_interpolated():
    config = TINY | {"image_resolution": 48}
    model = build_model(config, {n: v for n, v in tiny_state().items()})
    assert raw_image(model, torch.zeros(1, 3, 48, 48)).shape == (1, 16)


def test_weights_of_chinese_clip_for_another_model_are_named(tmp_path):
    save_file(tiny_state(), tmp_path / "clip_cn.safetensors")
    with pytest.raises(ValueError, match=r"clip_cn.safetensors \(chinese_clip\) does not fit this model"):
        rosetta.load_weights(tiny_model(), tmp_path / "clip_cn.safetensors")


def deep_bert(num_layers):
    """A public BERT file of the tiny text tower's width."""
    with torch.device("cpu"):
        config = TINY | {"text_num_hidden_layers": num_layers}
        torch.manual_seed(1)
        model = Model(build(Model.Config, model_section(config)))
    state = {n: v for n, v in to_original(model.state_dict(), to_tree(model.config), "chinese_clip").items()
             if n.startswith("bert.")}  # fmt: skip
    extra = {"bert.pooler.dense.weight": torch.zeros(32, 32), "cls.predictions.bias": torch.zeros(211)}
    return state | extra | {"bert.encoder.nowhere": torch.zeros(1)}


def test_a_deeper_bert_gives_its_first_layers_and_every_other_name_is_explained(tmp_path):
    state = deep_bert(12)
    torch.save(state, tmp_path / "pytorch_model.bin")
    model = Model(build(Model.Config, model_section(TINY | {"text_num_hidden_layers": 3})))
    notes = "\n".join(rosetta.load_public_weights(model, text=str(tmp_path / "pytorch_model.bin")))
    found = to_original(model.state_dict(), to_tree(model.config), "chinese_clip")
    taken = [name for name in found if name.startswith("bert.")]
    assert all(torch.equal(found[name], state[name]) for name in taken) and len(taken) == 53
    assert "encoder.layer.11.* left out: the layers 0, 1, 2 are kept" in notes
    assert "pooler.* left out" in notes and "head that this model does not have" in notes
    assert "encoder.nowhere left out: no part of the text encoder" in notes


def test_a_bert_of_too_few_layers_is_told(tmp_path):
    torch.save(deep_bert(2), tmp_path / "pytorch_model.bin")
    model = Model(build(Model.Config, model_section(TINY | {"text_num_hidden_layers": 3})))
    with pytest.raises(ValueError, match="text weights have 2 layers, the model has 3"):
        rosetta.load_public_weights(model, text=str(tmp_path / "pytorch_model.bin"))


class Scripted(torch.nn.Module):
    """A module tree with given names, as OpenAI's archives are."""

    def __init__(self, state):
        super().__init__()
        for name, value in state.items():
            part = self
            *path, last = name.split(".")
            for step in path:
                if step not in dict(part.named_children()):
                    part.add_module(step, torch.nn.Module())
                part = part.get_submodule(step)
            part.register_parameter(last, torch.nn.Parameter(value, requires_grad=False))

    def forward(self, x):
        return x


def test_openai_s_scripted_archive_starts_the_image_side(tmp_path):
    torch.manual_seed(2)
    state = {n: torch.randn_like(v).half() for n, v in tiny_state().items() if re.match("visual|logit_scale", n)}
    torch.jit.trace(Scripted(state), torch.zeros(1)).save(tmp_path / "ViT-B-16.pt")
    model = Model(build(Model.Config, model_section(TINY)))
    rosetta.load_public_weights(model, image=str(tmp_path / "ViT-B-16.pt"))
    found = to_original(model.state_dict(), to_tree(model.config), "chinese_clip")
    assert all(torch.equal(found[name], value.float()) for name, value in state.items())
