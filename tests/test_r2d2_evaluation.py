"""R2D2 on the sets that its users compare on, each in the layout in which it is shared; what wrong inputs are told."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import run
from tasks.build_lmdb import build_split
from tests import toy_cclm, toy_pairs, toy_r2d2
from tests.toy_r2d2 import CAPTIONS, NAMES, ROOT, SIZES, STACKS, pairs, write_lines

MODEL = [*SIZES, *STACKS, "--checkpoint", "r2d2.pth"]
IMAGES, TEXTS = "visual_encoder.embeddings.position_embedding", "text_encoder.embeddings.position_embeddings"
COCO = [f"COCO_{split}_{number:012d}" for number, split in enumerate(["val2014", "train2014", "val2014"])]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    toy_r2d2.write_world(folder)
    toy_r2d2.write_checkpoint(folder / "r2d2.pth")
    write_pairs(folder)
    write_numbered(folder)
    return folder


def write_pairs(folder: Path) -> None:
    """MUGE, Flickr30k-CN and COCO-CN in Chinese-CLIP's layout."""
    texts = [{**text, "text": CAPTIONS[number]} for number, text in enumerate(toy_pairs.TEXTS)]
    for name, split in (("MUGE", "valid"), ("Flickr30k-CN", "test"), ("COCO-CN", "test")):
        place = folder / "datasets" / name
        toy_pairs.write_split(place, split, texts=texts)
        build_split(place, split, place / "lmdb" / split)


def write_numbered(folder: Path) -> None:
    """Flickr30k-CN and COCO-CN as their makers share them."""
    (folder / "data/flickr30k_cn/flickr30k-images").mkdir(parents=True)
    (folder / "data/coco_cn").mkdir(parents=True)
    for number, name in enumerate(["11", "12", *COCO]):
        place = "flickr30k_cn/flickr30k-images" if number < 2 else f"coco_cn/{name.split('_')[1]}"
        (folder / "data" / place).mkdir(exist_ok=True)
        Image.new("RGB", (20, 16), (40 * number, 90, 200)).save(folder / "data" / place / f"{name}.jpg")
    lines = [f"{name}#zhb#{k} {CAPTIONS[k]}" for k, name in enumerate(["11", "12"])]
    (folder / "data/flickr30k_cn/flickr30k_cn_test.txt").write_text("\n".join(lines), encoding="utf-8")
    lines = [f"{name}#{k}\t{CAPTIONS[k]}" for k, name in enumerate(COCO)]
    (folder / "data/coco_cn/imageid.human-written-caption.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "data/coco_cn/coco-cn_test.txt").write_text("\n".join(COCO[:2]), encoding="utf-8")


def run_config(name: str, *words: str) -> int:
    return run.main(["--task", "r2d2_retrieval", "--config", str(ROOT / f"configs/r2d2/{name}.yaml"), *MODEL, *words])


@pytest.mark.parametrize(
    ("name", "words", "num_images"),
    [
        ("muge", [], 3),
        ("muge", ["data.test.files.zh=datasets/MUGE/valid_texts.jsonl"], 3),
        ("flickr30k_cn_pairs", [], 3),
        ("coco_cn_pairs", [], 3),
        ("flickr30k_cn", [], 2),
        ("coco_cn", [], 2),
    ],
)
def test_a_set_is_evaluated_in_its_layout(world, monkeypatch, tmp_path, name, words, num_images):
    monkeypatch.chdir(world)
    assert run_config(name, "--evaluate", "--output_dir", str(tmp_path), *words) == 0
    found = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert found["chance"]["img_r1"] == pytest.approx(100 / num_images)
    assert {"img_r1", "txt_r1", "r_mean"} <= set(found["test"]["zh"])


def told(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("table", "rows", "words"),
    [
        (IMAGES, 4, "a position table of 4 rows is no square grid of patches; needed: 1 and a square number, as 5"),
        (TEXTS, 60, "text_encoder.position.weight: found [60, 16], needed [70, 16]"),
    ],
)
def test_a_position_table_that_fits_nothing_is_named(world, monkeypatch, tmp_path, capsys, table, rows, words):
    monkeypatch.chdir(world)
    file = str(tmp_path / "odd.pth")
    content = torch.load("r2d2.pth", weights_only=True)
    content["model"][f"{table}.weight"] = torch.zeros(rows, 16)
    torch.save(content, file)
    assert run_config("muge", "--evaluate", "--checkpoint", file, "--output_dir", str(tmp_path)) == 2
    found = told(capsys)
    assert file in found and words in found


def test_a_checkpoint_of_another_system_is_named(world, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(world)
    toy_cclm.write_checkpoint(world / "cclm_4m.th")
    assert run_config("muge", "--evaluate", "--checkpoint", "cclm_4m.th", "--output_dir", str(tmp_path)) == 2
    assert "cclm_4m.th (cclm) does not fit this model" in told(capsys)


def test_an_evaluation_without_its_pictures_fails_and_names_their_lines(world, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(world)
    records = [{"text": CAPTIONS[0], "image_path": f"{name}.jpg"} for name in (*NAMES, "absent", "gone")]
    write_lines(tmp_path / "test.json", records)
    words = ["--evaluate", "--output_dir", str(tmp_path / "out"), f"data.test.files={{zh: {tmp_path}/test.json}}"]
    assert run_config("iqr_base", *words) == 1
    error = capsys.readouterr().err
    assert "2 of 14 records could not be used (image file not found: 2); allowed: a share of 0.01" in error
    assert "test.json:13: image file not found; data/zero/IQR_IQM_ICR_ICM_images/absent.jpg" in error


def test_a_matching_evaluation_without_its_pictures_fails(world, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(world)
    records = [{"text": CAPTIONS[0], "image_path": f"no{k}.jpg", "label": k % 2} for k in range(4)]
    write_lines(tmp_path / "test.json", records)
    words = ["--evaluate", "--output_dir", str(tmp_path / "out"), f"data.test.files={{zh: {tmp_path}/test.json}}"]
    config = str(ROOT / "configs/r2d2/iqm_base.yaml")
    assert run.main(["--task", "r2d2_matching", "--config", config, *MODEL, *words]) == 1
    assert "4 of 4 records could not be used" in capsys.readouterr().err


def test_a_text_with_an_id_that_no_picture_has_is_named(world, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(world)
    texts = toy_pairs.write_split(tmp_path, texts=[{"text_id": 1, "text": CAPTIONS[0], "image_ids": [99]}])
    words = ["--evaluate", "--output_dir", str(tmp_path / "out"), f"data.test.files.zh={texts}"]
    assert run_config("muge", *words) == 1
    assert "valid_texts.jsonl:1" in (found := told(capsys)) and "99" in found


def test_a_batch_of_one_picture_has_no_negative_and_trains_on_its_pairs(world, monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(world)
    write_lines(tmp_path / "train.json", [record | {"image_path": "0000.jpg"} for record in pairs()])
    words = ["data.batch_size=6", "train.max_steps=1", f"data.train.files={{zh: {tmp_path}/train.json}}"]
    assert run_config("iqr_base", *words, "--output_dir", str(tmp_path / "out")) == 0
    assert "6 of 6 pictures have no negative in the batch" in caplog.text
    (step,) = (json.loads(line) for line in (tmp_path / "out/metrics.jsonl").open() if '"train"' in line)
    assert 0 < step["train/itm"] < 10


def test_no_candidates_are_refused(world, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(world)
    assert run_config("muge", "evaluation.num_candidates=0", "--output_dir", str(tmp_path)) == 2
    assert "num_candidates must be at least 1, found 0" in told(capsys)
