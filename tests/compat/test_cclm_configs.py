"""Files written in the keys of CCLM and CCRK, shortened but with the originals' values."""

from pathlib import Path

import pytest

import run
from compat.cclm import is_original
from compat.cclm_sizes import model_section
from compat.command import settle
from compat.processes import Processes
from configs.schema import Config
from tasks import DEFAULT_CONFIG
from tests.compat.cclm_files import ACCELERATOR, FILES, IMAGE_SECTION, RATES, SPACE, TOWERS, WORDS, finetuning
from utils.config import ConfigError, build, to_tree
from utils.config_tree import read_file

SPLITS = ("train", "val", "test", "translated_test")
# CCRK's: every caption of a picture, and half of the batch on each process.
PRETRAINING = (
    f"""train_file: ["shards/a", "shards/b"]
train_dataset_size: 3309520
{IMAGE_SECTION.replace("'binary'", "'image'").replace("batch_size: 128", "batch_size: 64")}train_file_regions: []
regions: {{image_key: "binary", batch_size: 64, max_images: 48}}
train_file_text: []
calc_image_bbox_loss: False
temp: 0.07
sample_n_captions: True
ckpt_frequent_step: 10000
ckpt_frequent: 1
"""
    + TOWERS.format(size=224)
    + WORDS
    + RATES.format(lr="1e-4", epochs=30).replace("0.1}", "2500}")
    + ACCELERATOR.replace("STEPS: 1", "STEPS: 2")
)
RETRIEVAL = (
    """
train_file: ['data/{train}']
val_file: {val}
test_file: {test}
{root}
batch_size_train: 20
batch_size_test: 12
batch_size_test_text: 64
max_tokens: 40
k_test: 256
start_eval: 7
eval_interval: 1
"""
    + SPACE
    + finetuning()
)


def retrieval(train="en.train.json", val="{'en': 'v.json'}", test="{'en': 't.json'}", root="image_root: 'images/'"):
    text = RETRIEVAL
    for name, value in (("train", train), ("val", val), ("test", test), ("root", root)):
        text = text.replace("{" + name + "}", value)
    return text


def configuration(folder, text, *words, world=1, task="pretrain"):
    path = folder / "theirs.yaml"
    path.write_text(text)
    arguments = run.parse(["--task", task, "--config", str(path), *words])
    return build(Config, settle(arguments, Processes(nproc=world), DEFAULT_CONFIG, folder).tree)


def test_original_files_are_told_from_ours(tmp_path):
    (tmp_path / "theirs.yaml").write_text(PRETRAINING)
    (tmp_path / "ours.yaml").write_text("train: {epochs: 1}\ndata: {batch_size: 2}\n")
    assert is_original(read_file(tmp_path / "theirs.yaml")) and not is_original(read_file(tmp_path / "ours.yaml"))


def test_a_pretraining_file_comes_to_the_same_settings_as_ours(tmp_path):
    theirs = configuration(tmp_path, PRETRAINING, world=2)
    words = ["--task", "pretrain", "--config", "configs/ccrk/pretrain_3m.yaml"]
    ours = build(Config, settle(run.parse(words), Processes(), DEFAULT_CONFIG, run.ROOT).tree)
    assert theirs.model == ours.model and theirs.optim == ours.optim and theirs.objectives == ours.objectives
    assert theirs.data.batch_size == ours.data.batch_size == 128 and theirs.data.mask == ours.data.mask
    assert theirs.data.train.files == ["shards/a", "shards/b"] and theirs.data.train.image_key == "image"
    assert theirs.schedule.warmup == 2500 and theirs.train.epochs == 30 and theirs.train.save_every_steps == 10000
    assert (theirs.train.precision, theirs.train.clip_norm, theirs.train.accumulate) == ("fp16", 1.0, 2)
    assert theirs.init.text == theirs.data.tokenizer == "data/xlm-roberta-large"


def test_without_all_captions_a_pretraining_is_cclms(tmp_path):
    config = configuration(tmp_path, PRETRAINING.replace("sample_n_captions: True", ""))
    assert set(config.objectives) == {"itc", "itm", "mlm"} and config.data.train.caption_num == 1


def test_a_retrieval_file(tmp_path):
    config = configuration(tmp_path, retrieval(), "--bs", "64", world=4, task="itr_coco")
    assert config.data.train.files == {"en": "data/en.train.json"} and config.data.train.image_root == "images/"
    assert config.data.batch_size == 64 and config.data.max_words == 30 and not config.data.truncate
    assert config.model.image_encoder.window_size == 12 and not config.model.temperature.is_clamped
    assert config.evaluation.num_candidates == 256 and config.evaluation.batch_size_text == 64
    assert set(config.objectives) == {"itc", "itm"} and config.train.first_evaluation_epoch == 7
    assert configuration(tmp_path, retrieval(), world=4, task="itr_coco").data.batch_size == 80


def test_the_five_folds_of_two_coco_files(tmp_path):
    test = "{'en': 'data/finetune/mscoco/en.test.json', 'zh': 'data/finetune/mscoco/zh.test.json'}"
    assert configuration(tmp_path, retrieval(test=test), task="itr_coco").data.test.folds == {"en": 5}


def test_few_shot_files(tmp_path):
    root = "image_root: {'flickr30k': 'f', 'coco': 'c'}"
    text = retrieval(train="{}/train_{}.jsonl", val="'{}/test.jsonl'", test="{}", root=root)
    (tmp_path / "theirs_fewshot.yaml").write_text(text)
    config = configuration(tmp_path, "seed: 1", "--fewshot", "de,100", task="xflickrco")
    assert config.data.train.name == "xflickrco" and config.data.train.files == {"de": "data/de/train_100.jsonl"}
    assert config.data.test.files == config.data.val.files == {"de": "de/test.jsonl"}
    assert (config.data.test.flickr_root, config.data.test.coco_root) == ("f", "c") and config.data.max_words == 80


def test_sizes_may_stand_in_the_file(tmp_path):
    inline = "vision_config: {embed_dim: 16, depths: [1, 1], num_heads: [1, 2], window_size: 7}"
    text = PRETRAINING.replace("vision_config: 'configs/config_swinB_224.json'", inline)
    assert configuration(tmp_path, text).model.image_encoder.depths == [1, 1]


def test_sizes_may_stand_in_a_json_file_beside_the_folder(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/small.json").write_text('{"embed_dim": 16, "depths": [1], "num_heads": [1], "window_size": 7}')
    config = configuration(tmp_path, PRETRAINING.replace("config_swinB_224", "small"))
    assert config.model.image_encoder.width == 16


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("max_words: 40", "max_word: 40", r"theirs.yaml:21: unknown key 'max_word'; did you mean 'max_words'\?"),
        ("lr_mult: 2}", "lr_mul: 2}", r"unknown key 'optimizer.lr_mul'; did you mean 'lr_mult'\?"),
        ("opt: adamW", "opt: sgd", "'optimizer.opt' must be adamW, found the string 'sgd'"),
        ("use_tlm: False", "use_tlm: True", r"'use_tlm' is CCLM's; with 'sample_n_captions' \(CCRK\) leave it out"),
        ("train_file_text: []", "train_file_text: [a]", "'train_file_text' is CCLM's; with 'sample_n"),
        (
            "config_swinB_224",
            "config_swinX",
            "configs/config_swinX.json does not exist; known without the file: config_swinB",
        ),
        (
            "FP16_OPT_LEVEL: O1",
            "FP16_OPT_LEVEL: O9",
            "'accelerator.FP16_OPT_LEVEL' cannot be the string 'O9'; allowed: O0, O1",
        ),
        ("max_tokens: 40", "max_tokens: many", "theirs.yaml:22: 'data.max_tokens' must be a whole number"),
        (
            "image_res: 224",
            "image_res: big",
            "'model.image_encoder.image_size' must be a whole number, found the string 'big'",
        ),
    ],
)
def test_a_mistake_in_an_original_file_is_told(tmp_path, old, new, message):
    with pytest.raises(ConfigError, match=message):
        configuration(tmp_path, PRETRAINING.replace(old, new))


TASKS_BY_WORD = {
    "multi30k": "itr_multi30k",
    "coco": "itr_coco",
    "xFlickrCO": "xflickrco",
    "WIT": "wit",
    "XVNLI": "xvnli",
    "NLVR_multi": "nlvr_pretrain",
    "NLVR": "nlvr",
    "GQA": "gqa",
    "Pretrain_3m": "pretrain_cclm_3m",
    "Pretrain_4m": "pretrain_cclm_4m",
}


def comparable(plan):
    """The settings as a tree, without what a file of the original leaves to its owner."""
    tree = to_tree(build(Config, plan.tree))
    for section in [tree["data"].get(split) or {} for split in SPLITS] + [s["train"] for s in tree["streams"].values()]:
        section["image_root"] = section.get("image_root", "").rstrip("/")
        if section.get("name") in ("captioned_images", "regions", "parallel_text"):
            section["files"] = [Path(path).name for path in section["files"]]
    if tree["task"] == "gqa":
        del tree["evaluation"]["batch_size"]  # no number depends on it
    if tree["task"] == "nlvr":
        del tree["data"]["translated_test"]  # CCLM has no such test
    return tree


def pretraining(folder, *changes):
    text = FILES["Pretrain_4m.yaml"]
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return configuration(folder, text, world=2, task="pretrain")


def test_two_captions_of_an_image_are_drawn_and_compared(tmp_path):
    config = pretraining(tmp_path, ("sample_2_captions: False", "sample_2_captions: True"))
    assert (config.data.train.caption_num, config.data.train.caption_order) == (2, "drawn")
    assert set(config.objectives) == {"itc", "itm", "mlm", "ttc"} and config.objectives["itm"].positive_text == "first"


def test_parallel_texts_are_read_as_one_with_tlm(tmp_path):
    config = pretraining(tmp_path, ("use_tlm: False", "use_tlm: True"))
    assert config.streams["parallel"].train.is_translation_modelling
    assert set(config.streams["parallel"].objectives) == {"ttc", "mlm"}


def test_images_in_one_language_are_a_stream_of_their_own(tmp_path):
    texts = ("train_file_text: ['hdfs://path/to/wikimatrix']", "train_file_text: []")
    config = pretraining(tmp_path, ("train_file_mono: []", "train_file_mono: ['a']"), texts)
    assert set(config.streams) == {"mono", "regions"}
    stream = config.streams["mono"]
    assert stream.train.caption_key == "desc" and set(stream.objectives) == {"itc", "itm", "mlm"}
    assert stream.batch_size == 256 and not stream.replaces_image


def test_regions_take_half_of_the_iterations(tmp_path):
    stream = pretraining(tmp_path, ("calc_image_bbox_loss: False", "calc_image_bbox_loss: True")).streams["regions"]
    assert (stream.probability, stream.replaces_image, stream.train.max_images, stream.batch_size) == (
        0.5,
        True,
        96,
        256,
    )
    assert stream.train.code_switch and stream.train.careful_flip and stream.objectives["bbox"].counts_images


def test_a_probability_of_parallel_texts_and_languages_are_kept(tmp_path):
    section = "tokenized: False, batch_size: 128, num_workers: 4, iter_perc: 1.0}"
    changed = "tokenized: False, batch_size: 128, language_chosen: [en, de]}"
    config = pretraining(tmp_path, ("iter_perc: 1.0, max_words", "iter_perc: 0.25, max_words"), (section, changed))
    assert config.streams["parallel"].probability == 0.25
    assert (config.data.train.languages, config.data.train.missing_language) == (["en", "de"], "skip")


def test_a_temperature_outside_of_the_range_is_clamped_in_pretraining_only(tmp_path):
    assert pretraining(tmp_path, ("temp: 0.07", "temp: 0.9")).model.temperature.initial == 0.5
    text = retrieval().replace("temp: 0.07", "temp: 0.9")
    assert configuration(tmp_path, text, task="itr_coco").model.temperature.initial == 0.9


def test_a_clip_tower_and_a_shared_projection(tmp_path):
    clip = ("use_clip_vit: False", "use_clip_vit: True"), ("use_swin: True", "use_swin: False")
    shared = ("use_one_cl_proj_only: False", "use_one_cl_proj_only: True")
    config = pretraining(
        tmp_path, *clip, shared, ("config_swinB_224", "config_clipvitB"), ("patch_size: 32", "patch_size: 16")
    )
    assert config.model.image_encoder.is_clip and config.model.image_encoder.num_layers == 12
    assert config.model.shared_projection


def test_the_activation_of_a_clip_tower_is_the_one_its_sizes_name():
    keys, sizes = {"use_clip_vit": True}, {"num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    sections = [model_section(keys, sizes | {"hidden_act": name}, {}, is_pretraining=True) for name in ("gelu", None)]
    assert sections[0]["image_encoder"]["activation"] == "gelu" and "activation" not in sections[1]["image_encoder"]
    with pytest.raises(ConfigError, match="hidden_act must be gelu, found 'relu'"):
        model_section(keys, sizes, {"hidden_act": "relu"}, is_pretraining=True)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_cclm_comes_to_the_same_settings_as_ours(tmp_path, monkeypatch, name):
    task = next(task for word, task in TASKS_BY_WORD.items() if word in name)
    shots = ["--fewshot", "de" if "NLVR" in name or "GQA" in name else "de,100"] if "fewshot" in name else []
    (tmp_path / name).write_text(FILES[name])
    eight = Processes(nproc=8)  # the published batch sizes count one of eight GPUs
    words = ["--task", task, *shots, "data.tokenizer=t"]
    theirs = settle(run.parse([*words, "--config", str(tmp_path / name)]), eight, DEFAULT_CONFIG, run.ROOT)
    monkeypatch.chdir(tmp_path)
    named = "configs/" if name.startswith("Pretrain") else "configs/cclm-base-ft/"
    ours = settle(run.parse([*words, "--config", f"{named}{name}"]), eight, DEFAULT_CONFIG, run.ROOT)
    assert f"{name} is not here; using configs/cclm/" in ours.notices[0]
    assert comparable(theirs) == comparable(ours)
