"""Public weights give the numbers of their own libraries: Hugging Face text models, timm towers, window and grid
changes.
"""

import pytest
import timm
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaForMaskedLM, XLMRobertaConfig, XLMRobertaModel

from compat import bert, swin, vit
from compat.layout import to_theirs
from models.image_encoder import Swin, ViT
from models.text_encoder import TextEncoder
from utils.config import build

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (BertModel, BertConfig(**SIZES, pad_token_id=0)),
        (RobertaForMaskedLM, RobertaConfig(**SIZES, pad_token_id=1)),
        (XLMRobertaModel, XLMRobertaConfig(**SIZES, pad_token_id=1)),
    ],
    ids=["bert", "roberta", "xlm-roberta"],
)
def test_hugging_face_directory_gives_its_library_s_hidden_states(model_class, config, tmp_path):
    torch.manual_seed(0)
    theirs = model_class(config).eval()
    theirs.save_pretrained(tmp_path)
    tree = bert.text_tree(tmp_path)
    ours = TextEncoder(build(TextEncoder.Config, tree)).eval()
    state = bert.from_public(theirs.state_dict(), {"text_encoder": tree}).state
    ours.load_state_dict({name.removeprefix("text_encoder."): value for name, value in state.items()})
    ids = torch.randint(4, 50, (2, 6))
    ids[1, 4:] = tree["pad_id"]
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    base = getattr(theirs, "roberta", theirs)
    expected = base(input_ids=ids, attention_mask=mask).last_hidden_state
    found = ours(ids, [6, 4]).padded()
    torch.testing.assert_close(found, expected * mask[..., None], atol=1e-5, rtol=1e-5)


def test_every_second_layer_of_a_deep_public_model_is_kept():
    assert bert.source_layers(24, 12) == list(range(1, 24, 2))
    assert bert.source_layers(12, 12) == list(range(12))
    with pytest.raises(ValueError, match="cannot be thinned evenly"):
        bert.source_layers(12, 8)


def test_text_directory_without_config_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="Hugging Face directory"):
        bert.text_tree(tmp_path)


SWIN = {"image_size": 64, "window_size": 4, "width": 8, "depths": [1, 2], "num_heads": [1, 2]}


def test_swin_survives_the_way_to_the_original_layout_and_back():
    torch.manual_seed(0)
    tower = Swin(build(Swin.Config, SWIN)).eval()
    original = swin.to_original(tower.backbone.state_dict(), {"name": "swin", **SWIN})
    assert "layers.0.downsample.reduction.weight" in original and "layers.1.blocks.1.attn_mask" in original
    back = swin.to_timm(original, SWIN)
    assert all(torch.equal(value, back[name]) for name, value in tower.backbone.state_dict().items())


def test_shifted_window_mask_equals_the_one_that_timm_computes():
    tower = Swin(build(Swin.Config, SWIN))
    torch.testing.assert_close(swin.shifted_window_mask(8, 4), tower.backbone.layers[1].blocks[1].attn_mask)
    torch.testing.assert_close(
        swin.relative_position_index(4), tower.backbone.layers[0].blocks[0].attn.relative_position_index
    )


def test_timm_swin_file_loads_into_another_window():
    file = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, num_classes=10).state_dict()
    image = {"image_size": 384, "window_size": 12, "width": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
    ours = swin.to_timm(file, image)
    with torch.device("meta"):
        wanted = Swin(build(Swin.Config, image)).backbone.state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in wanted.items()}


def test_clip_layout_gives_the_numbers_of_hugging_face():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    theirs = CLIPVisionModel(config).eval()
    image = {
        "name": "vit",
        "image_size": 32,
        "patch_size": 16,
        "width": 24,
        "num_layers": 2,
        "num_heads": 2,
        "mlp_ratio": 2.0,
    }
    image |= {"is_clip": True, "layer_norm_eps": 1e-5, "final_norm": False}
    ours = ViT(build(ViT.Config, image)).eval()
    state = {n: v for n, v in vit.to_timm(theirs.state_dict(), image).items() if not n.startswith("norm.")}
    ours.backbone.load_state_dict(state)
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(pixels), theirs(pixel_values=pixels).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_positions_keep_the_class_token_and_reach_the_new_grid():
    table = torch.randn(1, 1 + 4, 6)
    found = vit.interpolate_positions(table, 4, 1)
    assert found.shape == (1, 17, 6)
    assert torch.equal(found[:, 0], table[:, 0])
    assert torch.equal(vit.interpolate_positions(table, 2, 1), table)


def test_clip_tower_is_written_back_key_by_key():
    image = {
        "name": "vit",
        "image_size": 32,
        "patch_size": 16,
        "width": 24,
        "num_layers": 1,
        "num_heads": 2,
        "is_clip": True,
    }
    tower = ViT(build(ViT.Config, image)).backbone.state_dict()
    written = vit.to_clip(tower, image)
    back = vit.to_timm(written, image)
    assert all(torch.equal(value, back[name]) for name, value in tower.items())
    assert set(to_theirs(tower, vit.clip_entries(1))) < set(written)
