"""ZeroVL's commands: its files, its published names, its overrides beside ours."""

import re
from pathlib import Path

import pytest

from compat.command import place_output, settle, settle_tool
from compat.command_line import parse
from compat.processes import Processes
from compat.zerovl_defaults import PUBLISHED
from compat.zerovl_rules import our_match
from compat.zerovl_weights import entries
from configs.schema import Config
from tasks import DEFAULT_CONFIG
from tasks.linear_probe import LinearProbe
from utils.config import ConfigError, build

ROOT = Path(__file__).resolve().parents[2]
CLIP_FILES = [name for name in PUBLISHED if name != "imagenet.yaml"]
YAML = """\
runner: {name: clip_bsgs}
epoch: 3
data:
  batch_size: 64
  batch_size_train: 16
  train_type: debias
  train_name: [toy]
  valid_name: [toy]
  data_path: %s
optim:
  param:
    betas: !!python/tuple [0.9, 0.98]
    eps: 1.0e-6
    weight_decay: 0.001
  param_group_rules: {norms: {regex: 'LayerNorm\\.weight', param: {weight_decay: 0.0}}}
loss: {name: MixUpNCE}
ckpt: {external_resume: old.pth, only_load_image_encoder: true}
"""


def config_of(*words: str, notices: list | None = None) -> Config:
    plan = settle(parse(["--task", "clip", *words]), Processes(), DEFAULT_CONFIG, ROOT)
    return build(Config, plan.tree)


@pytest.mark.parametrize("name", CLIP_FILES)
def test_published_file_that_is_absent_says_what_ours_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = config_of("--cfg", f"./configs/clip/{name}", "--output_dir", "x")
    assert theirs == config_of("--config", str(ROOT / "configs/zerovl" / name), "--output_dir", "x")


def test_a_users_file_is_read_with_its_tuple_tag(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(YAML % tmp_path)
    config = config_of("--cfg", str(path), "data.batch_size=128", "optim.lr.init=1", "train.max_steps=5")
    assert config.data.batch_size == 16 and config.train.accumulate == 8 and config.train.accumulate_decoupled
    assert config.data.batches_per_draw == 8 and config.optim.lr == 1.0 and config.train.max_steps == 5
    assert config.data.train.files == {"toy": [f"{tmp_path}/toy/train_anno.csv"]}
    assert config.optim.rules[0].weight_decay == 0 and config.optim.betas == [0.9, 0.98]
    assert config.init.checkpoint == "old.pth" and config.init.only == ["image_encoder", "image_projection"]
    inner = config.objectives["mixup"].objective
    assert (inner.name, inner.gather) == ("nce", "constant")  # the original's defaults, not those of its files
    assert config.schedule.floor == 0 and config.data.train_transform.steps == ["resize"]


def test_a_file_without_epochs_is_told(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((YAML % tmp_path).replace("epoch: 3\n", ""))
    with pytest.raises(ConfigError, match="'epoch' is not set, and the original has no default"):
        config_of("--cfg", str(path))


def probe_of(*words: str) -> LinearProbe.Config:
    arguments = parse(["--task=linear_prob", *words])
    arguments.remote_output = place_output(arguments)
    return build(LinearProbe.Config, settle_tool(arguments))


def test_the_published_probe_is_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["ckpt.external_resume=z.pth", "data.data_path=imagenet", "epoch=9", "optim.param.momentum=0.8"]
    theirs = probe_of("--cfg=configs/linear_prob/imagenet.yaml", *words, "encode_batch_size=8", "--output_dir", "x")
    ours = probe_of("data=imagenet", "--checkpoint", "z.pth", "--output_dir", "x", "epochs=9", "momentum=0.8",
                    "encode_batch_size=8", "mean=[0.5, 0.5, 0.5]", "std=[0.5, 0.5, 0.5]", "precision=fp16",
                    "num_workers=2", "val_transform={name: steps, crop: 224}")  # fmt: skip
    assert theirs == ours


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.name=SGD", "optim.name must be 'LARS' for --task linear_prob, found 'SGD'"),
        ("ckpt.external_resume=", "'ckpt.external_resume' are needed"),
        ("model.projection.dim=3", "unknown key 'model'"),
    ],
)
def test_a_probe_that_is_not_ours_is_told(word, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        probe_of("--cfg=configs/linear_prob/imagenet.yaml", word)


def test_overrides_in_the_originals_keys_reach_our_file(tmp_path):
    config = config_of("--cfg", "configs/zerovl/zerovl_dga.yaml", "runner.val_interval=3", "loss.smoothing=0.1")
    assert config.train.eval_every_epochs == 3 and config.objectives["mixup"].objective.smoothing == 0.1
    assert config_of("--config", str(ROOT / "configs/zerovl/zerovl.yaml"), "data.batch_size=7").data.batch_size == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optm.lr.init=1e-3"], "unknown key 'optm'"),
        (["loss.name=Triplet"], "loss.name must be one of NCE, MixUpNCE; found Triplet"),
        (["data.batch_size=100", "runner.name=clip_bsgs"], "data.batch_size 100 is not a multiple of"),
        (["loss.extra_losses=[a]"], "loss.extra_losses must be empty"),
        (["optim.grad_clip.max_norm=1"], "unknown key 'optim.grad_clip.max_norm'"),
        (["data.batch_size=None"], "'data.batch_size' must be like 1024, found None"),
    ],
)
def test_wrong_words_are_told(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        config_of("--cfg", "configs/clip/zerovl.yaml", *words)


def test_flags_of_the_launcher_and_the_evaluation_tool_are_ours_too():
    words = ["--task=clip", "--cfg=x.yaml", "--ckpt_path=y.pth", "--nproc_per_node=8", "--master_port=-1"]
    arguments = parse([*words, "--exp_name=run", "--no-local-log"])
    assert (arguments.config, arguments.checkpoint, arguments.nproc, arguments.port) == ("x.yaml", "y.pth", 8, None)


RULE = r"bias|mask_token|cls_token|pos_embed|norm1\.weight|norm\.weight|norm2\.weight|LayerNorm\.weight"
TREE = {"text_encoder": {"num_layers": 2}, "projection_form": {"kind": "simple"}, "temperature": {"is_learned": True}}


@pytest.mark.parametrize(
    "regex",
    [RULE, r"LayerNorm\.weight", "text_encoder", r"^image_encoder\.model\.model\.blocks\.1\.", r"layer\.1\.", "."],
)
def test_a_rule_finds_the_parameters_that_it_found_in_the_original(regex):
    image = [f"blocks.{n}.{end}" for n in range(2) for end in ("norm1.weight", "attn.qkv.bias", "mlp.fc1.weight")]
    pairs = [(f"image_encoder.model.model.{end}", f"image_encoder.backbone.{end}") for end in (*image, "norm.weight")]
    pairs += [(theirs, entry.ours) for entry in entries(TREE) for theirs in entry.theirs]
    match = our_match(regex, TREE, "x.yaml")
    for theirs, ours in pairs:
        assert bool(re.search(match, f"model.{ours}")) == bool(re.search(regex, theirs)), (theirs, ours)


def test_a_list_of_words_with_signs_needs_no_quotes():
    words = ["model.pretrain_prefix_change_list=[old.->, module.a->b]", "optim.grad_clip={max_norm: 2.0}"]
    config = config_of("--cfg", "configs/clip/zerovl.yaml", "ckpt.external_resume=x.pth", *words)
    assert config.init.rename == {"old.": "", "a": "b"} and config.train.clip_norm == 2.0


def test_a_rule_that_parts_one_matrix_is_refused():
    with pytest.raises(ConfigError, match="'query' parts query, key, value, which are one matrix here"):
        our_match("query", TREE, "x.yaml")


def test_erasing_and_batch_norms_of_the_original_are_ours():
    words = [
        "--cfg",
        "configs/clip/zerovl.yaml",
        "model.image_encoder.tag=resnet50",
        "transforms.random_erasing.reprob=0.3",
    ]
    config = config_of(*words, "transforms.random_erasing.recount=2", "data.train_type=debias")
    erasing = config.data.train_transform.erasing
    assert (erasing.probability, erasing.count, erasing.mean) == (0.3, 2, [0.485, 0.456, 0.406])
    assert config.model.image_encoder.batch_norm == "synced"
    assert config_of(*words, "model.freeze_cnn_bn=True").model.image_encoder.batch_norm == "frozen"
