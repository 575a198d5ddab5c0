"""CCLM's commands for XVNLI, NLVR2 and MaRVL on a small world in IGLUE's layout.

The evaluated model always says class 1, so an accuracy tells the share of that class, and with it the file it is of.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import run
from dataset.text import train_bpe
from tests.ranks import run_commands
from tests.test_commands import SIZES as RETRIEVAL_SIZES
from tests.test_commands import write_lines

SIZES = [word for word in RETRIEVAL_SIZES if not word.startswith("evaluation.")]
XVNLI, MARVL = Path("iglue/datasets/XVNLI"), Path("iglue/datasets/marvl")
XVNLI_CLASSES = ("contradiction", "entailment", "neutral")
# How many of 8 texts have class 1.
ONES = {"en": 1, "ar": 2, "es": 3, "fr": 4, "ru": 5, "id": 2, "sw": 3, "ta": 4, "tr": 5, "zh": 6}
ONES_TRANSLATED = 7
NUM_TEXTS = 8


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 255, (36, 36, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def xvnli_lines(ones, num_texts=NUM_TEXTS):
    labels = ["entailment"] * ones + ["neutral", "contradiction"] * num_texts
    lines = [
        {"gold_label": label, "sentence1": "unused", "sentence2": f"statement {i}", "Flikr30kID": str(i % 3)}
        for i, label in enumerate(labels[:num_texts])
    ]
    return [{**lines[0], "gold_label": "-"}, *lines]  # the annotators disagreed


def nlvr_records(ones, num_texts=NUM_TEXTS):
    labels = ["True"] * ones + ["False"] * (num_texts - ones)
    images = [f"{i % 3}.png" for i in range(num_texts)]
    return [
        {"sentence": f"Statement {i}", "label": label, "images": [images[i], images[i - 1]]}
        for i, label in enumerate(labels)
    ]


def marvl_lines(language, ones, *, is_fewshot=False, num_texts=NUM_TEXTS):
    lines = []
    for i in range(num_texts):
        sides = [f"82-Thing/{i % 2}.jpg", "82-Thing/0.jpg"] if is_fewshot else [f"82-{i % 2}.jpg", "82-0.jpg"]
        line = {"concept": "82-Thing", "language": language, "caption": f"kalimat {i}", "label": i < ones}
        lines.append(line | {"left_img": sides[0], "right_img": sides[1], "chapter": "x", "id": str(i)})
    return lines


def write_xvnli(root):
    for language in ("en", "ar", "es", "fr", "ru"):
        write_lines(root / XVNLI / f"annotations/{language}/test.jsonl", xvnli_lines(ONES[language]))
        translated = root / XVNLI / f"annotations_machine-translate/{language}/test.jsonl"
        write_lines(translated, xvnli_lines(ONES_TRANSLATED))
        write_lines(root / XVNLI / f"annotations/{language}/train_48.jsonl", xvnli_lines(6))
    write_lines(root / XVNLI / "annotations/en/train.jsonl", xvnli_lines(3))
    write_lines(root / XVNLI / "annotations/en/dev.jsonl", xvnli_lines(4))
    for i in range(3):
        picture(root / f"images/flickr30k-images/{i}.jpg")


def write_nlvr(root):
    folder = root / "data/finetune/nlvr_en"
    folder.mkdir(parents=True)
    for split, ones in (("train", 4), ("dev", 4), ("test", ONES["en"])):
        (folder / f"nlvr_{split}.json").write_text(json.dumps(nlvr_records(ones)))
    for i in range(3):
        picture(root / f"images/nlvr2/{i}.png")
    for language in ("id", "sw", "ta", "tr", "zh"):
        zero_shot = root / MARVL / "zero_shot"
        write_lines(zero_shot / f"annotations/marvl-{language}.jsonl", marvl_lines(language, ONES[language]))
        translated = zero_shot / f"annotations_machine-translate/marvl-{language}_gmt.jsonl"
        write_lines(translated, marvl_lines(language, ONES_TRANSLATED))
        few = root / MARVL / f"few_shot/annotations/marvl-{language}_train10x2.jsonl"
        write_lines(few, marvl_lines(language, 4, is_fewshot=True))
        for i in range(2):
            picture(root / f"images/marvl-images/{language}/images/82-Thing/82-{i}.jpg")
            picture(root / f"images/marvl_fewshot/{language}/all/{i}.jpg")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("iglue")
    write_xvnli(root)
    write_nlvr(root)
    train_bpe([f"statement kalimat {i}" for i in range(20)], vocab_size=60).save(root / "tokenizer")
    return root


@pytest.fixture(scope="module")
def trained(world):
    """Folders of models fine-tuned on English, and what the first training printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        for task in ("xvnli", "nlvr"):
            words = f"--task {task} --output_dir out/{task} --bs 4 --epoch 1 --seed 42 train.first_evaluation_epoch=0"
            assert run.main([*SIZES, *words.split()]) == 0
            say_class_one(world / f"out/{task}", world / f"always_one/{task}")
    return world / "out"


def say_class_one(source, target):
    """A copy of a run's model whose head always answers class 1."""
    target.mkdir(parents=True)
    (target / "config.yaml").write_text((source / "config.yaml").read_text())
    state = load_file(source / "checkpoints/last/model.safetensors")
    head = [name for name in state if "classifier.3." in name]
    assert len(head) == 2
    for name in head:
        state[name] = state[name] * 0
        if name.endswith("bias"):
            state[name][1] = 50.0
    save_file(state, target / "model.safetensors")


@pytest.fixture
def command(world, trained, monkeypatch):
    monkeypatch.chdir(world)
    return lambda words, *more: run.main([*SIZES, *words.split(), *more])


def accuracies(output_dir):
    metrics = json.loads((Path(output_dir) / "metrics.json").read_text())
    return {name: row["accuracy"] for name, row in metrics["test"].items()}, metrics


def test_fine_tuning_leaves_all_its_results(trained):
    found, metrics = accuracies(trained / "xvnli")
    assert list(found) == ["en", "ar", "es", "fr", "ru", "mean"]
    assert found["mean"] == pytest.approx(np.mean([found[x] for x in ("en", "ar", "es", "fr", "ru")]))
    assert metrics["mean_without_en"]["accuracy"] == pytest.approx(
        np.mean([found[x] for x in ("ar", "es", "fr", "ru")])
    )
    assert metrics["chance"]["accuracy"] == pytest.approx(100 / 3) and "train_seconds" in metrics
    steps = [json.loads(line) for line in (trained / "xvnli/metrics.jsonl").read_text().splitlines()]
    assert "train/classify" in steps[0]
    assert (trained / "xvnli/report.html").is_file()
    assert [step["split"] for step in steps if step["kind"] == "eval"] == ["val", "test"]
    assert [step["metrics"].keys() - {"mean", "chance"} for step in steps if step.get("split") == "val"] == [{"en"}]


@pytest.mark.parametrize("task, languages", [("xvnli", "en ar es fr ru"), ("nlvr", "en id sw ta tr zh")])
def test_zero_shot_numbers_come_from_each_language_s_own_test_file(command, task, languages):
    assert command(f"--task {task} --checkpoint always_one/{task} --evaluate --output_dir out/zero/{task}") == 0
    expected = {x: ONES[x] * 12.5 for x in languages.split()}
    assert accuracies(f"out/zero/{task}")[0] == pytest.approx(expected | {"mean": np.mean(list(expected.values()))})


@pytest.mark.parametrize("task", ["xvnli", "nlvr"])
def test_translate_test_reads_the_translated_files(command, task):
    assert command(f"--task {task} --checkpoint always_one/{task} --evaluate --gmt --output_dir out/gmt/{task}") == 0
    found, _ = accuracies(f"out/gmt/{task}")
    assert "en" not in found and set(found.values()) == {ONES_TRANSLATED * 12.5}


@pytest.mark.parametrize("task, shots, language", [("xvnli", "ar,48", "ar"), ("nlvr", "id", "id")])
def test_few_shots_train_on_their_file_and_report_the_language_s_test(command, task, shots, language):
    words = f"--task {task} --checkpoint always_one/{task} --fewshot {shots} --lr 1e-6 --bs 4 --epoch 2"
    assert command(f"{words} --output_dir out/few/{task} train.first_evaluation_epoch=0 train.eval_every_epochs=1") == 0
    found, _ = accuracies(f"out/few/{task}")
    assert found == pytest.approx({language: ONES[language] * 12.5, "mean": ONES[language] * 12.5})
    told = (Path(f"out/few/{task}") / "config.yaml").read_text()
    assert ("train_48" if task == "xvnli" else "train10x2") in told and "keeps_best: false" in told
    assert command(f"{words} --output_dir out/few/{task}_test --evaluate") == 0
    assert accuracies(f"out/few/{task}_test")[0] == found


@pytest.fixture(scope="module")
def pair(trained, world):
    """The folder with the results of two processes, for each task a folder of training, few shots and both tests."""
    given = []
    for task, shots in (("xvnli", "ar,48"), ("nlvr", "id")):
        words = f"--task {task} --checkpoint always_one/{task} --output_dir out/pair/{task}"
        test = "--evaluate evaluation.batch_size=3"
        given += [f"{words} --bs 4 --epoch 1 --output_hdfs file://{world}/sent/{task}", f"{words}_zero {test}"]
        given += [f"{words}_few --fewshot {shots} --lr 1e-6 --bs 4 --epoch 1", f"{words}_gmt {test} --gmt"]
    run_commands([[*SIZES, *words.split()] for words in given], world)
    return world / "out/pair"


@pytest.mark.parametrize("task, languages", [("xvnli", "en ar es fr ru"), ("nlvr", "en id sw ta tr zh")])
def test_two_processes_count_every_text_once(pair, world, task, languages):
    expected = {x: ONES[x] * 12.5 for x in languages.split()}
    found = accuracies(pair / f"{task}_zero")[0]
    assert found == pytest.approx(expected | {"mean": np.mean(list(expected.values()))})
    assert set(accuracies(pair / f"{task}_gmt")[0].values()) == {ONES_TRANSLATED * 12.5}
    assert list(accuracies(pair / task)[0]) == [*languages.split(), "mean"]
    assert (world / f"sent/{task}/metrics.json").is_file()
    shots = {"xvnli": "ar", "nlvr": "id"}[task]
    assert accuracies(pair / f"{task}_few")[0] == pytest.approx({x: ONES[shots] * 12.5 for x in (shots, "mean")})


def test_converted_marvl_lists_hold_whole_paths(command, world):
    place = "images/marvl-images/id/images/82-Thing"
    record = {"sentence": "kalimat", "label": True, "images": [f"{place}/82-0.jpg", f"{place}/82-1.jpg"]}
    (world / "data/marvl").mkdir(parents=True, exist_ok=True)
    (world / "data/marvl/marvl-id.json").write_text(json.dumps([record, record | {"label": False}]))
    words = "--task nlvr --checkpoint always_one/nlvr --evaluate --output_dir out/lists"
    assert command(words, "data.test={name: nlvr, files: {id: data/marvl/marvl-id.json}}") == 0
    assert accuracies("out/lists")[0]["id"] == 50


def test_an_evaluation_never_runs_with_a_fresh_head(command, world, capsys):
    state = load_file(world / "always_one/xvnli/model.safetensors")
    (world / "headless").mkdir(exist_ok=True)
    save_file({n: v for n, v in state.items() if "classifier" not in n}, world / "headless/model.safetensors")
    words = "--task xvnli --checkpoint headless/model.safetensors --output_dir out/headless"
    assert command(f"{words} --evaluate") == 2
    assert "6 missing: classifier.0.weight" in capsys.readouterr().err
    assert command(f"{words} --bs 8 --epoch 1 train.max_steps=1") == 0


def test_a_model_for_other_data_is_refused(command, capsys):
    assert command("--task xvnli --output_dir out/wrong model.text_fusion.num_images=2") == 2
    assert "data.train (xvnli) needs model.text_fusion.num_images: 1, found 2" in capsys.readouterr().err


@pytest.fixture(scope="module")
def captions(world):
    """Captioned pictures for domain pre-training."""
    lines = [{"binary": f"images/nlvr2/{i % 3}.png", "caption": {"en": f"statement {i}"}} for i in range(8)]
    write_lines(world / "captions/part_0", lines)
    return "data.train.files=[captions] data.batch_size=4"


DOMAIN = "--task nlvr_domain --seed 42 train.max_steps=2 train.first_evaluation_epoch=0"


def test_domain_pre_training_is_followed_by_fine_tuning(command, world, captions, monkeypatch):
    words = f"--config domain.yaml --output_dir out/domain {DOMAIN}"
    base = run.ROOT / "configs/cclm/nlvr_pretrain.yaml"
    data = "{batch_size: 4, train: {files: [captions]}}"
    (world / "domain.yaml").write_text(f"base: {base}\ndata: {data}\n")
    assert command(f"{words} --bs 8") == 0
    logged = [(world / place / "metrics.jsonl").read_text() for place in ("out/domain", "out/domain/nlvr_ft")]
    assert "train/picture_pairs" in logged[0] and "train/classify" in logged[1]
    assert set(accuracies("out/domain/nlvr_ft")[0]) == {"en", "id", "sw", "ta", "tr", "zh", "mean"}
    first = load_file(world / "out/domain/checkpoints/last/model.safetensors")
    second = load_file(world / "out/domain/nlvr_ft/checkpoints/last/model.safetensors")
    name = "model.text_fusion.layers.1.cross_attention.output.weight"
    assert (first[name] - second[name]).abs().max() < 1e-3  # a few small steps away
    (world / "out/domain/nlvr_ft").rename(world / "out/ended_between")
    assert command(f"{words} --bs 8") == 0  # the first run is not trained again, the second comes to the same
    again = [(world / place / "metrics.jsonl").read_text() for place in ("out/domain", "out/domain/nlvr_ft")]
    assert training_lines(again[0]) == training_lines(logged[0])
    third = load_file(world / "out/domain/nlvr_ft/checkpoints/last/model.safetensors")
    assert all((value == third[name]).all() for name, value in second.items())
    assert command(f"{words} --bs 8") == 0  # both are finished
    assert training_lines((world / "out/domain/nlvr_ft/metrics.jsonl").read_text()) == training_lines(again[1])


def training_lines(text):
    return [line for line in text.splitlines() if '"train"' in line]


def test_load_ckpt_from_skips_domain_pre_training(command, world, captions):
    words = f"{DOMAIN} --load_ckpt_from out/domain --output_dir out/skipped --bs 8"
    assert command(words) == 0
    assert (world / "out/skipped/nlvr_ft/metrics.json").is_file() and not (world / "out/skipped/metrics.json").exists()


def test_a_failed_first_stage_ends_the_command(command, world, capsys):
    assert command(f"{DOMAIN} --output_dir out/failed data.train.files=[absent]") == 2
    assert "absent: no such data file" in capsys.readouterr().err and not (world / "out/failed/nlvr_ft").exists()


def test_a_launcher_s_processes_do_both_runs(trained, world, captions):
    words = f"{DOMAIN} --config domain.yaml --output_dir out/domain2 --bs 8"
    run_commands([[*SIZES, *words.split()]], world)
    steps = [json.loads(line) for line in training_lines((world / "out/domain2/metrics.jsonl").read_text())]
    assert len(steps) == 2 and set(accuracies(world / "out/domain2/nlvr_ft")[0]) > {"en", "zh"}


def test_both_runs_are_started_on_two_processes(command, captions, monkeypatch):
    started = []
    monkeypatch.setattr(run, "start_processes", lambda argv, processes: started.append((run.parse(argv), processes)))
    command(f"{DOMAIN} --config domain.yaml --output_dir out/domain3 --bs 8 --nproc 2")
    assert [(words.task, processes.nproc) for words, processes in started] == [("nlvr_pretrain", 2), ("nlvr", 2)]
