"""The Python face: three lines from a checkpoint to scores, for our own runs and for released files."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import rosetta
from bench import plain
from compat.weights import to_original
from configs.schema import Config, load_settings
from models.model import Model
from tests.toy_ccrk import toy_settings, write_toy_data
from utils.config import build, dump_yaml, to_tree

SWIN = {"name": "swin", "image_size": 32, "window_size": 4, "width": 8, "depths": [2, 2], "num_heads": [1, 2]}


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """An output folder with fresh weights."""
    write_toy_data(tmp_path / "data", num_images=8)
    settings = build(Config, toy_settings(tmp_path / "data"))
    torch.manual_seed(0)
    model = Model(settings.model)
    folder = tmp_path / "out"
    (folder / "checkpoints/last").mkdir(parents=True)
    save_file({f"model.{n}": v for n, v in model.state_dict().items()}, folder / "checkpoints/last/model.safetensors")
    dump_yaml(settings, folder / "config.yaml")
    return folder


def test_three_lines_score_images_against_texts(run_folder):
    model = rosetta.load(run_folder)
    paths = [run_folder.parent / "data/images/0.png", run_folder.parent / "data/images/5.png"]
    scores = model.score(paths, ["red colour left side", "gruen", "a"])
    assert scores["similarity"].shape == scores["match"].shape == (2, 3)
    batch = model._inputs.texts(["red colour left side", "gruen", "a"])
    mask = torch.arange(batch.ids.shape[1])[None, :] < torch.tensor(batch.lengths)[:, None]
    tokens = model.model.encode_image(model._inputs.images(paths)).tokens
    hidden = plain.encode_text(model.model.text_encoder, batch.ids, mask)
    for image in range(2):
        expected = plain.match_logits(model.model, hidden, mask, tokens[image].expand(3, -1, -1)).softmax(dim=1)[:, 1]
        torch.testing.assert_close(scores["match"][image], expected, atol=1e-5, rtol=1e-5)


def test_images_may_be_paths_bytes_arrays_or_pictures(run_folder):
    model = rosetta.load(run_folder)
    path = run_folder.parent / "data/images/3.png"
    picture = Image.open(path)
    forms = [path, str(path), path.read_bytes(), picture, np.asarray(picture)]
    embed = model.encode_image(forms)
    torch.testing.assert_close(embed, embed[:1].expand(5, -1))
    assert embed.norm(dim=1).allclose(torch.ones(5))


def test_released_file_loads_with_the_config_that_describes_it(run_folder, tmp_path):
    tree = toy_settings(run_folder.parent / "data")
    tree["model"]["image_encoder"] = SWIN
    settings = build(Config, tree)
    model = Model(settings.model).eval()
    released = tmp_path / "ccrk_epoch_29.th"
    state = to_original(model.state_dict(), to_tree(settings.model), "ccrk_pretrain")
    torch.save({"model": state, "epoch": 29, "np_random_state": np.random.get_state()}, released)
    dump_yaml(settings, tmp_path / "ccrk.yaml")
    loaded = rosetta.load(released, tmp_path / "ccrk.yaml")
    assert all(torch.equal(value, loaded.model.state_dict()[name]) for name, value in model.state_dict().items())


class Hostile:
    def __reduce__(self):
        return os.system, ("touch /tmp/rosetta_was_here",)


def test_hostile_pickle_is_refused_and_runs_nothing(tmp_path, run_folder):
    path = tmp_path / "bad.th"
    path.write_bytes(pickle.dumps({"model": Hostile()}))
    with pytest.raises(ValueError):
        rosetta.load(path, run_folder / "config.yaml")
    torch.save({"model": Hostile()}, path)
    with pytest.raises(ValueError):
        rosetta.load(path, run_folder / "config.yaml")
    assert not Path("/tmp/rosetta_was_here").exists()


def test_missing_weights_and_other_shapes_are_named(tmp_path, run_folder):
    with pytest.raises(FileNotFoundError, match="no weights"):
        rosetta.load(tmp_path / "nowhere")
    settings = build(Config, toy_settings(run_folder.parent / "data") | {"seed": 1})
    settings.model.embed_dim = 12
    model = Model(settings.model)
    with pytest.raises(ValueError, match=r"of another shape: .*_projection.*found \[8, 16\], needed \[12, 16\]"):
        rosetta.load_weights(model, run_folder / "checkpoints/last/model.safetensors")
    with pytest.raises(ValueError, match="picture.jpg"):
        rosetta.load(run_folder).encode_image([broken(tmp_path / "picture.jpg")])


def broken(path: Path) -> Path:
    path.write_bytes(b"\xff\xd8\xff no picture")
    return path


def test_public_towers_fill_their_part_and_the_rest_stays_fresh(run_folder, tmp_path):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    counts = {"vocab_size": 4000, "max_position_embeddings": 50, "type_vocab_size": 1, "pad_token_id": 1}
    config = BertConfig(**sizes, **counts)
    theirs = BertModel(config)
    theirs.save_pretrained(tmp_path / "bert")
    settings = build(Config, toy_settings(run_folder.parent / "data"))
    model = Model(settings.model)
    before = model.text_fusion.layers[0].cross_attention.query.weight.clone()
    rosetta.load_public_weights(model, text=str(tmp_path / "bert"))
    assert torch.equal(model.text_encoder.word.weight, theirs.embeddings.word_embeddings.weight)
    fused = model.text_fusion.layers[0].feed_forward.up.weight
    assert torch.equal(fused, theirs.encoder.layer[1].intermediate.dense.weight)
    assert torch.equal(model.text_fusion.layers[0].cross_attention.query.weight, before)


def test_exported_checkpoint_is_the_original_layout_and_loads_again(run_folder, tmp_path):
    tree = toy_settings(run_folder.parent / "data")
    tree["model"]["image_encoder"] = SWIN
    settings = build(Config, tree)
    folder = tmp_path / "swin"
    (folder / "checkpoints/last").mkdir(parents=True)
    model = Model(settings.model)
    save_file({f"model.{n}": v for n, v in model.state_dict().items()}, folder / "checkpoints/last/model.safetensors")
    dump_yaml(settings, folder / "config.yaml")
    path = rosetta.export_weights(folder, "ccrk_pretrain", tmp_path / "exported")
    state = torch.load(path, weights_only=True)["model"]
    assert "text_encoder.bert.encoder.layer.1.crossattention.self.query.weight" in state
    again = rosetta.load(path, folder / "config.yaml").model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="unknown layout 'blip'"):
        rosetta.export_weights(folder, "blip", tmp_path)


RELEASED = [
    ("configs/cclm/pretrain_4m.yaml", "cclm_pretrain"),
    ("configs/ccrk/retrieval_multi30k_en.yaml", "ccrk_finetune"),
    ("configs/r2d2/flickr_cna_base.yaml", "r2d2"),
    ("configs/r2d2/flickr_cna_large.yaml", "r2d2"),
    ("configs/r2d2/prd2_large.yaml", "prd2"),
    ("configs/zerovl/zerovl.yaml", "zerovl"),
    ("configs/chinese_clip/vit_b_16.yaml", "chinese_clip"),
    ("configs/chinese_clip/vit_l_14_336.yaml", "chinese_clip"),
]


@pytest.mark.parametrize(("config", "layout"), RELEASED, ids=[f"{Path(row[0]).stem}-{row[1]}" for row in RELEASED])
def test_a_released_file_of_every_system_says_which_model_it_holds(config, layout, tmp_path):
    described = load_settings(rosetta.ROOT / config).model
    with torch.device("meta"):
        model = Model(described)
    state = to_original(model.state_dict(), to_tree(described), layout)
    # Of full shape, but one number on disk.
    torch.save({"model": {name: torch.zeros(()).expand(value.shape) for name, value in state.items()}}, tmp_path / "x")
    found = to_tree(rosetta.settings_of(tmp_path / "x").model)
    assert found | {"temperature": None} == to_tree(described) | {"temperature": None}
