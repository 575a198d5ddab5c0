"""A Chinese-CLIP user's session as typed, on bundled emoji in MUGE's layout: LMDB, training, extraction, search,
recall, zero-shot classification, export, a served search.
"""

import base64
import json
import os
import shutil
import signal
import socket
import threading
import time
import urllib.request
import zipfile

import pytest

import run
from tests.toy_ccrk import ROOT

EMOJI = ROOT / "assets/emoji/emoji_96px.zip"
NUM_TRAIN, NUM_VALID = 16, 14
MODEL = (
    "model.image_encoder.image_size=32 model.image_encoder.patch_size=8 model.image_encoder.width=24 "
    "model.image_encoder.num_layers=1 model.image_encoder.num_heads=2 model.text_encoder.width=24 "
    "model.text_encoder.num_layers=1 model.text_encoder.mlp_width=32 model.text_encoder.num_heads=2 model.embed_dim=8 "
    "data.cache_dir="
).split()


def write_muge(folder):
    """Every picture with its Chinese caption; every third text of the validation names the next picture, too."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(EMOJI) as archive:
        lines = archive.read("annotations/pretrain/train.jsonl").splitlines()
        records = [json.loads(line) for line in lines[: NUM_TRAIN + NUM_VALID]]
        pictures = [archive.read(record["image"]) for record in records]
    start = 0
    for split, count in (("train", NUM_TRAIN), ("valid", NUM_VALID)):
        images, texts = [], []
        for number in range(start, start + count):
            images.append(f"{1000 + 97 * number}\t{base64.b64encode(pictures[number]).decode()}\n")
            further = split == "valid" and number % 3 == 0 and number + 1 < start + count
            ids = [1000 + 97 * k for k in ((number, number + 1) if further else (number,))]
            texts.append({"text_id": number, "text": records[number]["caption"]["zh"], "image_ids": ids})
        (folder / f"{split}_imgs.tsv").write_text("".join(images))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in texts)
        (folder / f"{split}_texts.jsonl").write_text(text, encoding="utf-8")
        start += count
    return pictures


def do(capsys, *words):
    status = run.main([str(word) for word in words])
    said = capsys.readouterr()
    assert status == 0, said.err
    return said.out


def ask(address, body=None, kind="application/json"):
    request = urllib.request.Request(address, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def search_while_served(capsys, port, picture, *words):
    """Names found by words and by a picture, asked from beside the served command, which a signal then ends."""
    found = {}

    def ask_both():
        address, deadline = f"http://127.0.0.1:{port}/api/", time.monotonic() + 60
        while "about" not in found and time.monotonic() < deadline:
            try:
                found["about"] = ask(f"{address}health")
            except OSError:
                time.sleep(0.05)
        if "about" not in found:
            return  # the command has failed by itself
        try:
            found["words"] = ask(f"{address}search/text", json.dumps({"text": "红色的花", "k": 3}).encode())["results"]
            found["picture"] = ask(f"{address}search/image?k=4", picture, "image/webp")["results"]
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    client = threading.Thread(target=ask_both)
    client.start()
    do(capsys, "--task", "serve", f"port={port}", *words)
    client.join()
    return found


def test_from_lmdb_to_a_served_search(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = ["--output_dir", tmp_path / "out"]
    data = tmp_path / "datasets/MUGE"
    pictures = write_muge(data)
    do(capsys, "--task", "build_lmdb", *out, "--data_dir", data, "--splits", "train,valid")

    words = ["--train-data", data / "lmdb/train", "--val-data", data / "lmdb/valid", "--batch-size", "8", "--wd=0.001"]
    words += ["--max-epochs=1", "--warmup=1", "--lr=1e-3", "--use-augment", "--logs", tmp_path, "--name", "run"]
    do(capsys, "--task", "chinese_clip", *words, "--num-workers=0", "--precision=fp32", *MODEL)
    trained = json.loads((tmp_path / "run/metrics.json").read_text())["test"]["zh"]

    texts = data / "valid_texts.jsonl"
    words = ["--extract-image-feats", "--extract-text-feats", "--image-data", data / "lmdb/valid/imgs"]
    words += ["--text-data", texts, "--context-length=52", "--resume", tmp_path / "run", "--vision-model=ViT-B-16"]
    do(capsys, "--task", "extract_features", *out, *words)

    features = [
        "--image-feats",
        data / "valid_imgs.img_feat.jsonl",
        "--text-feats",
        data / "valid_texts.txt_feat.jsonl",
    ]
    do(capsys, "--task", "search", *out, *features, "--top-k=10", "--output", data / "valid_predictions.jsonl")
    do(capsys, "--task", "search_tr", *out, *features, "--output", data / "valid_tr_predictions.jsonl")
    do(capsys, "--task", "transpose_annotations", *out, "--input", texts)
    output = tmp_path / "output.json"
    for tail, reference, predictions, side in (
        ("", texts, "valid_predictions.jsonl", "img"),
        ("_tr", data / "valid_texts.tr.jsonl", "valid_tr_predictions.jsonl", "txt"),
    ):
        do(capsys, "--task", f"evaluate_predictions{tail}", *out, reference, data / predictions, output)
        found = json.loads(output.read_text())["scoreJson"]
        # What training printed at its end is what the three programs come to.
        assert found["r1"] == pytest.approx(trained[f"{side}_r1"]) and found["r10"] == pytest.approx(
            trained[f"{side}_r10"]
        )

    classes = tmp_path / "datasets/toy"
    for number in range(4):
        (classes / f"test/00{number}").mkdir(parents=True)
        (classes / f"test/00{number}/0.webp").write_bytes(pictures[number])
    names = [json.loads(line)["text"] for line in (data / "train_texts.jsonl").read_text("utf-8").splitlines()[:4]]
    (classes / "label_cn.txt").write_text("\n".join(names), encoding="utf-8")
    words = ["--datapath", classes / "test", "--label-file", classes / "label_cn.txt", "--dataset", "toy"]
    said = do(
        capsys, "--task", "zero_shot", *out, *words, "--save-dir", tmp_path / "save", "--resume", tmp_path / "run"
    )
    assert said.startswith("zeroshot-top1: ")
    [rows] = json.loads((tmp_path / "save/toy.json").read_text())["predictions"]
    assert len(rows) == 4 and all(sum(row) == pytest.approx(1, abs=1e-5) for row in rows)

    words = ["--model-arch=ViT-B-16", "--pytorch-ckpt-path", tmp_path / "run"]
    words += ["--save-onnx-path", tmp_path / "deploy/emoji"]
    words += ["--convert-text", "--convert-vision", "--context-length=52", "precisions=[fp32]"]
    do(capsys, "--task", "export_onnx", *out, *words)  # status 0: onnxruntime says what torch says
    assert {path.name for path in (tmp_path / "deploy").iterdir()} == {"emoji.img.fp32.onnx", "emoji.txt.fp32.onnx"}

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["--checkpoint", tmp_path / "run", f"images={classes}/test", f"index_dir={tmp_path}/index"]
    found = search_while_served(capsys, port, pictures[2], *words)
    assert found["about"]["num_images"] == 4 and len(found["words"]) == 3
    # So short a training leaves all pictures alike; the one that was sent is as similar to itself as can be.
    similarity = {each["name"]: each["similarity"] for each in found["picture"]}
    assert len(similarity) == 4 and similarity["002/0.webp"] == pytest.approx(1, abs=1e-5)

    # Files that do not fit end in status 1 and the documented json.
    shutil.copy(data / "valid_tr_predictions.jsonl", data / "valid_predictions.jsonl")
    words = [str(each) for each in (texts, data / "valid_predictions.jsonl", output)]
    assert run.main(["--task", "evaluate_predictions", *map(str, out), *words]) == 1
    assert json.loads(output.read_text())["success"] is False
