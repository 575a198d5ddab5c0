"""CCLM's commands, as its README gives them, on its data in the documented layout: a few records of every file."""

import json
import shutil
from pathlib import Path

import fsspec
import pytest

import run
from tests import toy_cclm
from tests.compat.cclm_files import FILES
from tests.ranks import run_commands
from tests.toy_cclm import FLICKR_CO, SIZES, WIT
from utils.config import read_yaml

COMMON = "--dist 1 --seed 42 --checkpoint pretrained.th --output_dir output/it"
FEW = "evaluation.report_queries=1 evaluation.num_candidates=4 data.batch_size=4".split()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cclm")
    for write in (toy_cclm.write_multi30k, toy_cclm.write_coco, toy_cclm.write_flickr_co, toy_cclm.write_wit):
        write(folder)
    toy_cclm.write_pretraining(folder)
    toy_cclm.write_tokenizer(folder)
    toy_cclm.write_checkpoint(folder / "pretrained.th")
    return folder


@pytest.fixture
def command(world, monkeypatch):
    """Runs the words after `python3 run.py` in the small world; the folder of its results."""
    monkeypatch.chdir(world)

    def start(words, *more):
        assert run.main(small(words, *more)) == 0
        return Path(next(word for word in words.split() if word.startswith("output/")))

    return start


def small(words, *more):
    """The words of a command on a model of a few neurons."""
    sizes = [word for word in (*SIZES, *FEW) if not ("data.batch_size" in word and "--bs" in words)]
    return [*words.split(), *more, *sizes, "--restart"]


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def languages_of(folder):
    return [name for name in metrics_of(folder)["test"] if name not in ("mean", "mrv", "median_rank")]


def shown_texts(folder):
    """The first query of every language: captions say in which language, and whether they are translated."""
    return {query["language"]: query["text"] for query in json.loads((folder / "gallery.json").read_text())["queries"]}


PRETRAINING = "train.epochs=1 streams.parallel.batch_size=4 streams.parallel.num_workers=0"
BOXES = "streams.regions.batch_size=4 streams.regions.train.max_images=2 streams.regions.num_workers=0"
IMAGE_LOSSES = ("itc", "itm", "mlm")
PARALLEL_LOSSES = ("parallel/ttc", "parallel/ttm", "parallel/mlm")
REGION_LOSSES = ("regions/itc", "regions/itm", "regions/mlm", "regions/bbox")


def losses_of(folder):
    """Which losses the log of a run names, and the number of its steps."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [step for step in steps if step.get("kind") == "train"]
    return {name.removeprefix("train/") for step in steps for name in step if "/" in name}, len(steps)


def test_pretraining_3m(command):
    folder = command(f"--task pretrain_cclm_3m --dist 1 --output_dir output/pre3m/ {PRETRAINING}")
    losses, num_steps = losses_of(folder)
    assert num_steps == toy_cclm.NUM_PICTURES // 4
    assert losses == {*IMAGE_LOSSES, *PARALLEL_LOSSES}
    assert "data/pretrain/cc-3m-uc2" in toy_cclm.read_files(folder)


def test_pretraining_4m(command):
    folder = command(f"--task pretrain_cclm_4m --dist 1 --output_dir output/pre4m {PRETRAINING} {BOXES}")
    losses, num_steps = losses_of(folder)
    assert num_steps == 4 * toy_cclm.NUM_PICTURES // 4
    assert losses == {*IMAGE_LOSSES, *PARALLEL_LOSSES, *REGION_LOSSES}


def test_pretraining_by_the_users_own_copy_of_the_originals_file(command, world):
    text = (
        FILES["Pretrain_4m.yaml"]
        .replace("num_workers: 4", "num_workers: 0")
        .replace("batch_size: 128", "batch_size: 4")
    )
    text = text.replace("hdfs://path/to/", "data/pretrain/")
    (world / "configs").mkdir()
    (world / "configs/Pretrain_4m.yaml").write_text(text)
    try:
        words = "--task pretrain_cclm_4m --dist 1 --output_dir output/own train.epochs=1 streams.regions.num_workers=0"
        losses, _ = losses_of(command(words))
    finally:
        (world / "configs/Pretrain_4m.yaml").unlink()
    assert {"itc", "parallel/ttm", "regions/bbox"} <= losses


SETS = {
    "en": ("en", "de", "fr", "cs"),
    "all": ("en", "de", "fr", "cs"),
    **{name: (name,) for name in ("de", "fr", "cs")},
}


@pytest.mark.parametrize("part", SETS)
def test_multi30k(command, part):
    config = f"configs/cclm-base-ft/Retrieval_multi30k_{part}_ft.yaml"
    folder = command(f"--task itr_multi30k --config {config} {COMMON} --bs 4 --epoch 1")
    assert languages_of(folder) == list(SETS[part])
    assert {name: text.split()[0] for name, text in shown_texts(folder).items()} == {x: x for x in SETS[part]}
    trained = SETS["all"] if part == "all" else (part,)
    expected = {f"data/finetune/multi30k/train.{x}.json" for x in trained}
    expected |= {f"data/finetune/multi30k/{s}.{x}.json" for x in SETS[part] for s in ("val", "test_2016_flickr")}
    assert toy_cclm.read_files(folder) == expected
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines if line["kind"] == "eval"] == ["val", "test"]  # tested once, at the end


@pytest.mark.parametrize("part, tested", [("en", "en zh ja"), ("ja", "ja"), ("zh", "zh"), ("all", "en zh ja")])
def test_coco(command, part, tested):
    config = f"configs/cclm-base-ft/Retrieval_coco_{part}_ft.yaml"
    folder = command(f"--task itr_coco --config {config} {COMMON} --bs 4 --epoch 1")
    assert languages_of(folder) == tested.split()
    assert {"en.1k_test.json", "en.valid.json"} <= {Path(x).name for x in toy_cclm.read_files(folder)} or part in "jazh"


def test_xflickrco_in_eight_languages(command):
    folder = command(f"--task xflickrco {COMMON} --bs 4 --epoch 1", "train.first_evaluation_epoch=0")
    assert languages_of(folder) == list(FLICKR_CO)
    metrics = metrics_of(folder)
    others = [metrics["test"][name]["txt_r1"] for name in FLICKR_CO if name != "en"]
    assert metrics["mean_without_en"]["txt_r1"] == pytest.approx(sum(others) / len(others))
    assert "without en" in (folder / "report.html").read_text()


def test_xflickrco_on_translated_tests(command):
    folder = command(f"--task xflickrco {COMMON} --evaluate --gmt")
    assert {name: text.split()[:2] for name, text in shown_texts(folder).items()} == {
        name: ["translated", name] for name in FLICKR_CO if name != "en"
    }


def test_xflickrco_with_a_hundred_shots(command):
    folder = command(f"--task xflickrco {COMMON} --bs 4 --fewshot de,100 --lr 1e-6 --epoch 1")
    assert languages_of(folder) == ["de"] and shown_texts(folder)["de"].startswith("de ")
    annotations = "iglue/datasets/xFlickrCO/annotations/de"
    assert toy_cclm.read_files(folder) == {f"{annotations}/train_100.jsonl", f"{annotations}/test.jsonl"}
    assert not read_yaml(folder / "config.yaml")["train"]["keeps_best"]  # the test set is all that is watched
    assert (folder / "checkpoints/last").exists() and not (folder / "checkpoints/best").exists()


def test_any_language_that_has_a_file(command, world):
    toy_cclm.write_lines(world / "own/sw.jsonl", [{"sentences": [f"sw {i}"], "img_path": f"{i}.jpg"} for i in range(4)])
    words = f"--task xflickrco {COMMON} --evaluate data.test.files.sw=own/sw.jsonl"
    assert shown_texts(command(words, "data.languages=[sw]")) == {"sw": "sw 0"}


def test_wit_is_joined_and_tested_in_eleven_languages(command, world, capsys):
    shutil.rmtree(world / "data/wit", ignore_errors=True)
    folder = command(f"--task wit {COMMON} --bs 4 --epoch 1", "train.first_evaluation_epoch=0")
    assert languages_of(folder) == list(WIT)
    said = capsys.readouterr().err
    assert "joining 2 files of WIT" in said and "joining 11 files of WIT" in said
    assert "test_ar.jsonl: 1 lines have no picture in images/wit_test and are left out" in said
    assert len((world / "data/wit/annotations-bs64/test_ar.jsonl").read_text().splitlines()) == toy_cclm.NUM_PICTURES


def test_wit_on_translated_tests(command, capsys):
    folder = command(f"--task wit {COMMON} --evaluate --gmt")
    assert languages_of(folder) == [name for name in WIT if name != "en"]
    assert set(shown_texts(folder).values()) == {"."}  # the one caption that is a full stop stays as it is
    assert "data/wit/annotations_machine-translate-bs64/test_ja_gmt.jsonl" in toy_cclm.read_files(folder)


CONFIG = "--config configs/cclm-base-ft/Retrieval"
# The commands that train, by the folder of their results, with the languages that they are tested in.
TRAINED = {
    "multi30k_en": (f"--task itr_multi30k {CONFIG}_multi30k_en_ft.yaml", "en de fr cs"),
    "multi30k_cs": (f"--task itr_multi30k {CONFIG}_multi30k_cs_ft.yaml", "cs"),
    "multi30k_all": (f"--task itr_multi30k {CONFIG}_multi30k_all_ft.yaml", "en de fr cs"),
    "coco_en": (f"--task itr_coco {CONFIG}_coco_en_ft.yaml", "en zh ja"),
    "coco_ja": (f"--task itr_coco {CONFIG}_coco_ja_ft.yaml", "ja"),
    "coco_all": (f"--task itr_coco {CONFIG}_coco_all_ft.yaml", "en zh ja"),
    "xflickrco": ("--task xflickrco", " ".join(FLICKR_CO)),
    "shots": ("--task xflickrco --fewshot de,100 --lr 1e-6", "de"),
    "wit": ("--task wit", " ".join(WIT)),
}
EVALUATED = {
    "flickr_test": "itr_multi30k", "coco_test": "itr_coco", "xflickrco_test": "xflickrco", "wit_test": "wit",
    "xflickrco_gmt": "xflickrco --gmt", "wit_gmt": "wit --gmt",
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(world):
    """The folder with the results of two processes, a folder a command."""
    pretraining = "--dist 1 --output_dir output/pair/{} --task pretrain_cclm_{} " + PRETRAINING
    given = [pretraining.format("3m", "3m"), pretraining.format("4m", "4m") + " " + BOXES]
    common = COMMON.replace("output/it", "output/pair/{}")
    hdfs = f"--output_hdfs file://{world}/sent/{{}}"
    given += [f"{words} {common} {hdfs} --bs 4 --epoch 1".format(name, name) for name, (words, _) in TRAINED.items()]
    given += [f"--task {task} {common} --evaluate".format(name) for name, task in EVALUATED.items()]
    run_commands([small(words) for words in given], world)
    return world / "output/pair"


def test_pretraining_on_two_processes(pair):
    assert losses_of(pair / "3m") == ({*IMAGE_LOSSES, *PARALLEL_LOSSES}, toy_cclm.NUM_PICTURES // 4)
    assert losses_of(pair / "4m") == ({*IMAGE_LOSSES, *PARALLEL_LOSSES, *REGION_LOSSES}, toy_cclm.NUM_PICTURES)


@pytest.mark.parametrize("name", TRAINED)
def test_training_on_two_processes(pair, name):
    folder, tested = pair / name, TRAINED[name][1].split()
    assert languages_of(folder) == tested
    assert losses_of(folder) == ({"itc", "itm"}, {"multi30k_all": 8, "coco_all": 6}.get(name, 2))
    texts = shown_texts(folder)
    assert {language: text.split()[0] for language, text in texts.items()} == {
        language: language for language in tested
    }
    assert (pair.parent.parent / "sent" / name / "metrics.json").read_bytes() == (folder / "metrics.json").read_bytes()


@pytest.mark.parametrize("name", EVALUATED)
def test_two_processes_give_the_numbers_of_one(command, pair, name):
    one = command(f"--task {EVALUATED[name]} {COMMON} --evaluate")
    assert metrics_of(pair / name)["test"] == metrics_of(one)["test"]


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def test_pretraining_by_remote_config_and_data(command, world, memory, monkeypatch):
    monkeypatch.setattr("utils.remote.CACHE", str(world / "cache"))
    text = FILES["Pretrain_3m.yaml"].replace("hdfs://path/to/", "memory://bucket/")
    memory.pipe_file("/bucket/own.yaml", text.replace("num_workers: 4", "num_workers: 0").encode())
    for name in ("cc-3m-uc2", "wikimatrix"):
        memory.pipe_file(f"/bucket/{name}/part_0", (world / f"data/pretrain/{name}/part_0.json").read_bytes())
    words = "--task pretrain_cclm_3m --dist 1 --config memory://bucket/own.yaml --output_dir output/remote"
    folder = command(f"{words} {PRETRAINING}")
    assert losses_of(folder) == losses_of(command(f"--task pretrain_cclm_3m --output_dir output/here {PRETRAINING}"))
    assert toy_cclm.read_files(folder) == {"memory://bucket/cc-3m-uc2", "memory://bucket/wikimatrix"}


def test_remote_checkpoint_data_and_results(command, world, memory, monkeypatch):
    monkeypatch.setattr("utils.remote.CACHE", str(world / "cache"))
    for name in ("pretrained.th", "data/finetune/multi30k/test_2016_flickr.de.json"):
        memory.pipe_file(f"/bucket/{Path(name).name}", (world / name).read_bytes())
    words = f"--task itr_multi30k {COMMON} --evaluate --output_hdfs memory://results data.languages=[de]"
    words = words.replace("pretrained.th", "memory://bucket/pretrained.th")
    folder = command(words + " data.test.files.de=memory://bucket/test_2016_flickr.de.json")
    sent = json.loads(memory.cat_file("/results/metrics.json"))
    assert sent == metrics_of(folder) and list(sent["test"])[0] == "de"


def test_a_remote_output_folder_is_filled_and_gone_on_from(command, world, memory, monkeypatch):
    words = f"--task itr_multi30k {COMMON} --bs 4 --epoch 1 data.languages=[de]".replace(
        "output/it", "memory://out/far"
    )
    monkeypatch.chdir(world)
    every = [*words.split(), *SIZES, *FEW[:2]]
    assert run.main(every) == 0
    assert memory.exists("/out/far/checkpoints/LAST") and memory.exists("/out/far/report.html")
    (world / "output/memory/out/far").rename(world / "output/gone")
    assert run.main(every) == 0  # another machine: nothing is left to train
    lines = (world / "output/memory/out/far/metrics.jsonl").read_text().splitlines()
    before = (world / "output/gone/metrics.jsonl").read_text().splitlines()
    assert [line for line in lines if '"train"' in line] == [line for line in before if '"train"' in line]


@pytest.mark.parametrize(
    "words, message",
    [
        ("--task xflickrco data.test.coco_root=absent", "absent: no such folder; pictures of iglue/datasets/xFlickrCO"),
        ("--task itr_multi30k data.test.files.de=absent.json", "absent.json: no such data file or folder"),
        ("--task wit data.test.test_pixels=absent data.test.files.ar=x-bs64/test_ar.jsonl", "x-bs64/test_ar.jsonl: no"),
        ("--task xflickrco --fewshot de", "has a place to fill; give --fewshot LANGUAGE,SHOTS"),
        ("--task itr_multi30k --checkpoint nosuch://a.th", "nosuch://a.th: cannot be reached"),
    ],
)
def test_what_is_missing_is_told_before_the_start(world, monkeypatch, capsys, words, message):
    monkeypatch.chdir(world)
    assert run.main([*f"{COMMON} --evaluate {words}".replace("output/it", "output/no").split(), *SIZES, *FEW]) == 2
    assert message in capsys.readouterr().err and not (world / "output/no").exists()


def test_the_task_list_shows_them(capsys):
    assert run.main(["--task", "list"]) == 0
    rows = dict(line.split()[::2] for line in capsys.readouterr().out.splitlines()[1:])
    for task in ("itr_multi30k", "itr_coco", "xflickrco", "wit"):
        assert rows[task].startswith("configs/cclm/")
