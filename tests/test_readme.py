"""What the README says works: its commands settle, its records train and evaluate, its configuration and code run."""

import base64
import dataclasses
import io
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

import run
from configs.schema import Config, load_settings
from dataset import DATASETS
from dataset.files import join_path
from dataset.text import load_tokenizer
from models.model import Model
from objectives import OBJECTIVES
from objectives.step import Step
from tests.dataset.toy import preprocessing
from tests.tiny import build_model, make_batch
from tests.toy_ccrk import toy_settings, write_toy_data
from utils.checkpoint import write_weights
from utils.config import build, dump_yaml

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = (
    "model.image_encoder.image_size=32 model.image_encoder.width=24 model.image_encoder.num_layers=1 "
    "model.text_encoder.width=24 model.text_encoder.num_layers=1 model.text_encoder.mlp_width=32 model.embed_dim=8 "
    "data.batch_size=2 data.max_bad_share=0 data.cache_dir= train.epochs=1 train.precision=fp32"
).split()


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands():
    return [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


def run_commands():
    return [line for line in commands() if " run.py " in line]


@pytest.mark.parametrize("line", run_commands())
def test_a_command_of_run_settles(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # configs are found wherever the command is given
    (tmp_path / "own.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    words = [word for word in shlex.split(line) if word != "--forecast"]  # which would train, even when dry
    assert run.main([*words[words.index("run.py") + 1 :], "--dry_run"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("make ")])
def test_a_make_target_exists(line):
    done = subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_is_of_a_kind_that_is_tested():
    known = (" run.py ", "make ", "python3 -m venv ", "pip install -r requirements.txt", "-m pytest ")
    known += ("python3 -m dataset.build_tokenizer ", "sh train_r2d2_")
    for line in commands():
        assert any(part in f" {line}" for part in known), line


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:configs|assets|tests|utils|bench)/[\w./-]*\w", TEXT))))
def test_a_path_that_is_named_exists(path):
    assert (ROOT / path).exists() or path.startswith(("configs/cclm-base-ft/", "configs/clip/", "configs/linear_prob/"))


@pytest.mark.parametrize("name", re.findall(r"`(requirements[\w.]*|LICENSE|NOTICE|CITATION\.cff|\w+\.py)`", TEXT))
def test_a_file_that_is_named_exists(name):
    assert (ROOT / name).exists() or any(ROOT.glob(f"*/{name}")), name


# --- data layouts: the records of the README, with pictures, through a tiny run --------------------------------------


def picture(colour):
    stream = io.BytesIO()
    Image.new("RGB", (48, 40), colour).save(stream, "JPEG")
    return stream.getvalue()


def write_pictures(folder, paths):
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(picture((40 * number, 90, 200 - 40 * number)))


@pytest.fixture
def examples(tmp_path):
    """A folder with the README's records as files, and their pictures."""
    pretrain, pairs, gallery, flickr, wit, *_ = blocks("json")
    for number in range(2):
        wit = wit.replace("<base64>", base64.b64encode(picture((9, 99 * number, 9))).decode(), 1)
    for name, block in (("pretrain.jsonl", pretrain), ("train.json", pairs), ("val.json", gallery)):
        (tmp_path / name).write_text(block, encoding="utf-8")
    (tmp_path / "flickr.jsonl").write_text(flickr)
    (tmp_path / "wit.jsonl").write_text(wit)
    records = [json.loads(line) for line in pretrain.splitlines()] + json.loads(pairs)
    write_pictures(tmp_path, [record.get("image_path", record.get("image")) for record in records])
    for line in flickr.splitlines():
        name = json.loads(line)["img_path"]
        write_pictures(tmp_path / ("val2014" if "COCO" in name else "flickr30k-images"), [name])
    return tmp_path


def section(examples, name, file):
    """A data section as key=value can hold it."""
    files = {language: str(examples / file) for language in ("en", "de")}
    roots = {
        "captioned_images": {"files": [str(examples / file)], "image_root": str(examples)},
        "image_text_pairs": {"files": files, "image_root": str(examples)},
        "xflickrco": {
            "files": files,
            "flickr_root": str(examples / "flickr30k-images"),
            "coco_root": str(examples / "val2014"),
        },
        "wit": {"files": files},
    }
    return json.dumps({"name": name} | roots[name])


def own_config(examples):
    """The configuration of the README, as a file."""
    path = examples / "own.yaml"
    path.write_text(blocks("yaml")[0].replace("assets/", f"{ROOT}/assets/"), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "train, evaluated",
    [
        (("captioned_images", "pretrain.jsonl"), ("image_text_pairs", "val.json")),
        (("image_text_pairs", "train.json"), ("image_text_pairs", "val.json")),
        (("xflickrco", "flickr.jsonl"), ("xflickrco", "flickr.jsonl")),
        (("wit", "wit.jsonl"), ("wit", "wit.jsonl")),
    ],
    ids=["pretrain", "multi30k", "xflickrco", "wit"],
)
def test_the_records_train_and_evaluate(examples, train, evaluated, capsys):
    words = ["--config", str(own_config(examples)), "--task", "pretrain", "--output_dir", str(examples / "out"), *TINY]
    words += [f"data.train={section(examples, *train)}"]
    words += [f"data.{split}={section(examples, *evaluated)}" for split in ("val", "test")]
    assert run.main(words) == 0, capsys.readouterr().err
    metrics = json.loads((examples / "out" / "metrics.json").read_text())
    assert set(metrics) >= {"test", "chance", "train_seconds", "total_seconds"}
    assert metrics["test"]["en"]["img_r5"] == 100  # two pictures
    assert metrics["chance"]["img_r1"] == 50
    assert metrics["test"]["mrv"] == {"img": 0, "txt": 0}  # both languages have the same captions
    for name in ("config.yaml", "metrics.jsonl", "environment.json", "report.html"):
        assert (examples / "out" / name).exists(), name
    assert "image -> text" in capsys.readouterr().out


@pytest.mark.parametrize(
    "number, kind, language, images",
    [
        (5, "xvnli", "en", ["images/flickr30k-images/123.jpg"]),
        (6, "nlvr", "en", ["images/nlvr2/dev-0-0-img0.png", "images/nlvr2/dev-0-0-img1.png"]),
        (7, "nlvr", "id", [f"images/marvl-images/id/images/82-Gitar/82-{n}.jpg" for n in (3, 7)]),
        (8, "questions", "en", ["images/gqa/n1.jpg"]),
        (9, "questions", "de", ["images/gqa/n1.jpg"]),
    ],
)
def test_the_records_of_a_labelled_layout_are_read(tmp_path, number, kind, language, images):
    (tmp_path / "records.json").write_text(blocks("json")[number], encoding="utf-8")
    config = DATASETS.load(kind).Config({language: str(tmp_path / "records.json")})
    dataset = DATASETS.load(kind)(config, preprocessing())
    assert dataset.num_records == len(dataset) == 2 and not dataset.skipped
    part = dataset.parts[language]
    assert [join_path(root, value) for value, root in part.read(0).images] == images


def test_the_texts_of_chinese_clip_are_read_with_their_images(tmp_path):
    texts = next(block for block in blocks("json") if block.startswith('{"text_id"'))
    (tmp_path / "toy_texts.jsonl").write_text(texts, encoding="utf-8")
    [lines] = blocks("tsv")
    ids = [line.partition("\t")[0] for line in lines.splitlines()] + ["212"]
    content = [f"{key}\t{base64.b64encode(picture((9, 9, 99))).decode()}\n" for key in ids]
    (tmp_path / "toy_imgs.tsv").write_text("".join(content))
    dataset = DATASETS.load("pairs")(
        DATASETS.load("pairs").Config([str(tmp_path / "toy_texts.jsonl")]), preprocessing()
    )
    assert len(dataset) == 3 and not dataset.skipped
    assert [dataset.describe(k).captions[0][1] for k in range(3)] == [json.loads(texts.splitlines()[0])["text"]] * 2 + [
        json.loads(texts.splitlines()[1])["text"]
    ]


def test_the_streams_of_the_readme_train_on_its_records(examples, capsys):
    names = {"pairs": "parallel", "regions": "regions", "german": "german"}
    for name, block in zip(names, blocks("json")[-3:], strict=True):
        (examples / f"{name}.jsonl").write_text(block, encoding="utf-8")
    own_config(examples)
    streams = next(block for block in blocks("yaml") if block.startswith("# streams.yaml"))
    (examples / "streams.yaml").write_text(streams.replace("data/own", str(examples)), encoding="utf-8")
    words = ["--config", str(examples / "streams.yaml"), "--output_dir", str(examples / "out"), *TINY]
    words += [
        f"data.train={section(examples, 'captioned_images', 'pretrain.jsonl')}",
        "data.val=null",
        "data.test=null",
    ]
    words += [f"streams.regions.train.image_root={examples}", "train.log_every_steps=1", "train.epochs=2"]
    assert run.main(words) == 0, capsys.readouterr().err
    logged = [json.loads(line) for line in (examples / "out/metrics.jsonl").read_text().splitlines()]
    names = {name.split("/")[1] for line in logged for name in line if name.startswith("train/") and "/" in name[6:]}
    assert {"regions", "german"} <= names


def test_batches_of_one_set_in_large_contrastive_batches(examples, capsys):
    """The README's table and the emoji set, with all three of ZeroVL's ideas; draws of both, and each of one alone."""
    (examples / "train_anno.csv").write_text(blocks("csv")[0], encoding="utf-8")
    write_pictures(examples / "train", ["kite_01.jpg", "boat.jpg"])
    own_config(examples)
    text = next(block for block in blocks("yaml") if block.startswith("# two_sets.yaml"))
    text = text.replace("data/own", str(examples)).replace("assets/", f"{ROOT}/assets/")
    (examples / "two_sets.yaml").write_text(text, encoding="utf-8")
    words = ["--config", str(examples / "two_sets.yaml"), "--output_dir", str(examples / "out"), *TINY]
    words += ["data.val=null", "data.test=null", "data.batch_size=1", "train.accumulate=2"]
    assert run.main([*words, "train.max_steps=3", "train.log_every_steps=1"]) == 0, capsys.readouterr().err
    logged = [json.loads(line) for line in (examples / "out/metrics.jsonl").read_text().splitlines()]
    assert sum("train/mixup/image_to_text_accuracy" in line for line in logged) == 3
    mixture = load_settings(examples / "out/config.yaml").data.train
    tokenizer = load_tokenizer(ROOT / "assets/emoji/tokenizer.json")
    dataset = DATASETS.load("mixture")(mixture, dataclasses.replace(preprocessing(), tokenizer=tokenizer))
    draws = dataset.plan(1, 1, 2).order(seed=42, epoch=0).reshape(-1, 2)
    of_own = draws >= dataset.ends[0]
    assert (of_own.all(axis=1) | ~of_own.any(axis=1)).all() and len(dataset) == dataset.ends[0] + 2
    shares = [dataset.plan(1, 1, 2).sets(seed=42, epoch=epoch).mean() for epoch in range(40)]
    assert 0 < sum(shares) / 40 < 5 * 2 / len(dataset)


def test_the_records_pass_the_check(examples, capsys):
    words = ["--task", "check_data", "--config", str(own_config(examples)), "num_workers=0", *TINY]
    words += [
        "--output_dir",
        str(examples / "check"),
        f"data.train={section(examples, 'captioned_images', 'pretrain.jsonl')}",
    ]
    words += [f"data.val={section(examples, 'image_text_pairs', 'val.json')}"]
    words += [f"data.test={section(examples, 'xflickrco', 'flickr.jsonl')}"]
    words += [f"data.translated_test={section(examples, 'wit', 'wit.jsonl')}"]
    assert run.main(words) == 0, capsys.readouterr().err
    splits = json.loads((examples / "check" / "metrics.json").read_text())["splits"]
    assert list(splits) == ["train", "val", "test", "translated_test"] and not any(s["bad"] for s in splits.values())


# --- configuration and code ------------------------------------------------------------------------------------------


def test_the_configuration_builds_a_model(examples):
    settings = load_settings(own_config(examples))
    assert set(settings.objectives) == {"one_to_k", "itm", "mlm"}
    with torch.device("meta"):
        assert Model(settings.model).has_fusion


def test_the_three_lines_of_python_score_pictures(tmp_path, monkeypatch):
    source, _ = blocks("python")
    write_pictures(tmp_path, ["cat.jpg", "dog.jpg"])
    write_toy_data(tmp_path / "data", num_images=8)
    settings, folder = build(Config, toy_settings(tmp_path / "data")), tmp_path / "output/quickstart"
    write_weights(Model(settings.model).state_dict(), make_folder(folder / "checkpoints/last") / "model.safetensors")
    dump_yaml(settings, folder / "config.yaml")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(compile(source, "README.md", "exec", dont_inherit=True), scope)
    assert scope["scores"]["match"].shape == (2, 2)


def make_folder(path):
    path.mkdir(parents=True)
    return path


def test_the_example_objective_is_one_file_and_one_line(monkeypatch):
    _, source = blocks("python")
    scope: dict = {"__name__": "objectives.pull"}
    exec(compile(source, "README.md", "exec", dont_inherit=True), scope)
    assert '"pull": "objectives.pull:Pull"' in source
    assert "pull" not in OBJECTIVES.names()
    pull = scope["Pull"](scope["Pull"].Config(weight=0.1))
    model, batch = build_model(), make_batch([3, 5, 4, 6], num_images=2)
    images, texts = model.encode_image(batch.images), model.encode_text(batch.texts.ids, batch.texts.lengths)
    loss = pull(Step(model, batch, images, texts))
    loss.backward()
    assert loss.item() > 0


def test_exit_statuses_are_those_of_the_program():
    from utils.distributed import STOPPED_STATUS

    table = dict(re.findall(r"^\| (\d+) \| (.*?) \|$", TEXT, flags=re.MULTILINE))
    assert set(table) == {"0", str(run.FAILED), str(run.WRONG_USE), str(STOPPED_STATUS)}
