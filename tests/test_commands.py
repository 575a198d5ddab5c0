"""CCRK's commands on a small world: pictures, Multi30K and xFlickr&CO files, shards, a model of a few neurons."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run
from dataset.text import train_bpe
from tests import toy_cclm
from tests.toy_cclm import caption, write_lines
from utils.config import read_yaml

NUM_PICTURES = 12
SIZES = [*toy_cclm.SIZES, "evaluation.report_queries=1"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for place in ("images", "images/flickr30k-images", "data/finetune/multi30k"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(NUM_PICTURES):
        picture = Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8))
        for place in ("images", "images/flickr30k-images"):
            picture.save(folder / place / f"{number}.png")
    numbers = range(NUM_PICTURES)
    shard = [{"image": f"images/{i}.png", "caption": {x: caption(i, x) for x in ("de", "en", "zh")}} for i in numbers]
    write_lines(folder / "shards/part_0.data", shard)
    for language in ("en", "de", "fr", "cs"):
        pairs = [{"image": f"{i}.png", "image_id": i, "caption": caption(i, language)} for i in numbers]
        for split in ("train", "val", "test_2016_flickr"):
            (folder / f"data/finetune/multi30k/{split}.{language}.json").write_text(json.dumps(pairs))
    annotations = folder / "iglue/datasets/xFlickrCO/annotations"
    for language in ("de", "en", "es", "id", "ja", "ru", "tr", "zh"):
        lines = [{"sentences": [caption(i, language)], "id": str(i), "img_path": f"{i}.png"} for i in numbers]
        for name in ("test", "train_100"):
            write_lines(annotations / language / f"{name}.jsonl", lines)
        write_lines(annotations.with_name("annotations_machine-translate") / language / "test_gmt.jsonl", lines)
    for name in ("train_ann", "valid_ann"):
        write_lines(folder / f"iglue/datasets/flickr30k/annotations/{name}.jsonl", lines)
    texts = [caption(i, x) for i in numbers for x in ("en", "de", "fr", "cs", "zh")]
    train_bpe(texts, vocab_size=120).save(folder / "tokenizer")
    return folder


@pytest.fixture
def command(world, monkeypatch):
    """Runs a command of the README in the small world; its exit status."""
    monkeypatch.chdir(world)
    return lambda *words: run.main([*SIZES, *words])


def metrics_of(output_dir):
    return json.loads((Path(output_dir) / "metrics.json").read_text())


@pytest.fixture(scope="module")
def english(world):
    """The folder of a model that was fine-tuned on English."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        words = "--task itr_multi30k --config configs/cclm-base-ft/Retrieval_multi30k_en_ft.yaml --output_dir out/en"
        assert run.main([*words.split(), "--bs", "6", "--epoch", "2", "--seed", "42", *SIZES]) == 0
    return world / "out/en"


def test_pretraining_with_chosen_languages(command, world):
    flags = "--language_chosen zh,en --caption_num 1 --train_file shards --neg_sample_type 2 --need_divm 2 --imgbsz 4"
    flags += " --vicreg 1 --sample_lan_file drawn.txt"
    words = ["--task", "pretrain", "--config", "configs/Pretrain_2m.yaml", "--output_dir", "out/pre", "--epoch", "1"]
    assert command(*words, "--pret_para", flags) == 0
    tree = read_yaml(world / "out/pre/config.yaml")
    assert tree["data"]["train"]["languages"] == ["zh", "en"] and tree["data"]["batch_size"] == 4
    steps = [json.loads(line) for line in (world / "out/pre/metrics.jsonl").read_text().splitlines()]
    assert len(steps) == NUM_PICTURES // 4 and {"train/one_to_k", "train/itm", "train/mlm"} <= steps[0].keys()
    assert steps[0]["train/vicreg/variance"] > 0 and "train/vicreg" not in steps[0]
    assert steps[0]["loss"] == pytest.approx(sum(steps[0][f"train/{name}"] for name in ("one_to_k", "itm", "mlm")))
    drawn = [line.split() for line in (world / "drawn.txt").read_text().splitlines()]
    assert [len(line) for line in drawn] == [4] * 3 and {number for line in drawn for number in line} <= {"0", "1"}


def test_the_freshly_initialised_model_is_written_and_nothing_trained(command, world):
    words = ["--task", "pretrain", "--output_dir", "out/fresh", "--pret_para", "--train_file shards --save0 --imgbsz 4"]
    assert command(*words) == 0
    assert (world / "out/fresh/init_model.safetensors").is_file() and not (world / "out/fresh/metrics.jsonl").exists()


def test_fine_tuning_leaves_all_its_results(english):
    metrics = metrics_of(english)
    assert (
        list(metrics["test"])[:4] == ["en", "de", "fr", "cs"]
        and {"mean", "mrv", "median_rank"} <= metrics["test"].keys()
    )
    assert {"img_r1", "img_r5", "img_r10", "txt_r1", "txt_r5", "txt_r10", "r_mean"} <= metrics["test"]["de"].keys()
    assert {"chance", "train_seconds", "total_seconds"} <= metrics.keys()
    for name in (
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "report.html",
        "checkpoints/last/model.safetensors",
    ):
        assert (english / name).is_file(), name
    environment = json.loads((english / "environment.json").read_text())
    assert (
        "itr_multi30k" in environment["command"]
        and environment["packages"]["torch"]
        and environment["data"][0]["bytes"]
    )


def test_the_resolved_settings_are_a_config_and_the_same_command_goes_on(command, english):
    before = (english / "metrics.jsonl").read_text()
    assert command("--config", "out/en/config.yaml") == 0  # finished already: only the final test is run again
    after = (english / "metrics.jsonl").read_text().splitlines()
    trained = [line for line in before.splitlines() if '"train"' in line]
    assert [line for line in after if '"train"' in line] == trained


def test_zero_shot_evaluation_in_eight_languages(command, english):
    assert command("--task", "xflickrco", "--checkpoint", "out/en", "--evaluate", "--output_dir", "out/x") == 0
    metrics = metrics_of("out/x")
    languages = metrics["test"].keys() - {"mean", "mrv", "median_rank"}
    assert len(languages) == 8
    others = [metrics["test"][name]["img_r1"] for name in languages - {"en"}]
    assert metrics["mean_without_en"]["img_r1"] == pytest.approx(sum(others) / 7)


def test_evaluation_by_the_dual_encoder_alone(command, english):
    words = ["--task", "xflickrco", "--checkpoint", "out/en", "--evaluate", "--output_dir", "out/dual"]
    assert command(*words, "--ft_para", "--eval_not_cross") == 0
    assert "dual_encoder" not in metrics_of("out/dual")


def test_translated_test_files(command, english):
    assert (
        command("--task", "xflickrco", "--checkpoint", "out/en", "--evaluate", "--gmt", "--output_dir", "out/gmt") == 0
    )
    assert "en" not in metrics_of("out/gmt")["test"] and "de" in metrics_of("out/gmt")["test"]


def test_few_shots_and_one_checkpoint_per_language(command, english, world):
    words = ["--task", "xflickrco", "--checkpoint", "out/en/checkpoint_best.pth", "--fewshot", "de,100"]
    assert command(*words, "--lr", "1e-6", "--bs", "6", "--epoch", "1", "--output_dir", "out/shots/de") == 0
    assert list(metrics_of("out/shots/de")["test"])[0] == "de"
    for language in ("ja", "zh"):
        (world / "out/shots" / language).mkdir()
        (world / "out/shots" / language / "checkpoints").symlink_to("../de/checkpoints")
    flags = " --model_cap ours --checkpoint_fmt out/shots/format/checkpoint_best.pth"
    assert (
        command(*words, "--dist", "1", "--device", "c4", "--evaluate", "--output_dir", "out/mrv", "--ft_para", flags)
        == 0
    )
    test = metrics_of("out/mrv")["test"]
    assert list(test)[:4] == ["en", "de", "ja", "zh"] and test["mrv"]["img"] >= 0


@pytest.mark.parametrize(
    "words, message",
    [
        ("--checkpoint absent.th --evaluate", "absent.th: no weights"),
        ("data.test.files.en=absent.json", "absent.json: no such data file or folder"),
        ("data.tokenizer=absent", "absent: no such tokenizer"),
        ("data.languages=xx", "test has no xx; found: en, de, fr, cs"),
        ("--bs 1 --nproc 2", "data.batch_size 1 cannot be shared among 2 processes"),
        ("data.batch_size=9999", "records that can be used; needed: at least 9999, the batch size; lower"),
        ("model.embed_dim=0.5", "'model.embed_dim' must be a whole number, found the number 0.5"),
    ],
)
def test_what_cannot_work_is_one_line_and_status_2(command, capsys, words, message):
    assert command("--task", "itr_multi30k", "--output_dir", "out/wrong", "--restart", *words.split()) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run.py: error:")]
    assert len(said) == 1 and message in said[0]


def test_hostile_weights_are_refused(command, world, capsys):
    import pickle

    class Hostile:
        def __reduce__(self):
            return (open, (str(world / "harmed"), "w"))

    (world / "bad.pth").write_bytes(pickle.dumps({"model": Hostile()}))
    assert (
        command("--task", "itr_multi30k", "--output_dir", "out/hostile", "--checkpoint", "bad.pth", "--evaluate") == 2
    )
    assert "bad.pth" in capsys.readouterr().err and not (world / "harmed").exists()
