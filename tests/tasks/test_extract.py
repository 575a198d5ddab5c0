"""Extraction: the model's own vectors in the data's order, over ranks, and continued after being killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import rosetta
from dataset.files import DataError
from dataset.vectors import read_vectors
from tasks.build_lmdb import BuildLmdb
from tasks.extract import ExtractFeatures, PartStore
from tests.toy_pairs import COLOURS, TEXTS, image_lines, png, write_run, write_split

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("extract"))


def extract(run_folder, **settings):
    config = ExtractFeatures.Config(checkpoint=str(run_folder), **settings)
    return ExtractFeatures(config, rosetta.load).run()


@pytest.mark.parametrize("kind", ["tsv", "lmdb", "folder"])
def test_images_get_the_model_s_vectors_in_the_order_of_the_data(run_folder, tmp_path, kind):
    write_split(tmp_path)
    data, ids = str(tmp_path / "valid_imgs.tsv"), list(COLOURS)
    if kind == "lmdb":
        BuildLmdb(BuildLmdb.Config(data_dir=str(tmp_path), splits=["valid"]), None).run()
        data, ids = str(tmp_path / "lmdb/valid/imgs"), sorted(COLOURS, key=str)
    elif kind == "folder":
        data, ids = str(tmp_path / "pictures"), [f"{key}.png" for key in sorted(COLOURS, key=lambda k: f"{k}.png")]
        Path(data).mkdir()
        for key, colour in COLOURS.items():
            (Path(data) / f"{key}.png").write_bytes(png(colour))
    extract(run_folder, image_data=data, image_output=str(tmp_path / "x.jsonl"), image_batch_size=3, num_workers=1)
    found = read_vectors(tmp_path / "x.jsonl", "image")
    expected = rosetta.load(run_folder).encode_image([png(COLOURS[int(str(key).split(".")[0])]) for key in ids])
    assert found.ids == ids
    torch.testing.assert_close(torch.from_numpy(found.values), expected, atol=1e-6, rtol=1e-5)


def test_texts_get_the_model_s_vectors_beside_their_file(run_folder, tmp_path):
    texts = [*TEXTS, {"text_id": 4, "text": "", "image_ids": []}]
    path = write_split(tmp_path, texts=texts)
    extract(run_folder, text_data=path, text_batch_size=2)
    found = read_vectors(tmp_path / "valid_texts.txt_feat.jsonl", "text")
    expected = rosetta.load(run_folder).encode_text(['"red" colour', "green or blue", "blue"])
    assert found.ids == [1, 2, 3, 4]
    torch.testing.assert_close(torch.from_numpy(found.values[:3]), expected, atol=1e-6, rtol=1e-5)
    assert np.linalg.norm(found.values, axis=1) == pytest.approx(1, abs=1e-5)  # of the empty text, too


def test_part_size_changes_nothing(run_folder, tmp_path):
    path = write_split(tmp_path)
    for size in (1, 2, 100):
        extract(run_folder, text_data=path, text_output=str(tmp_path / f"{size}.npy"), part_size=size)
    first, *others = (np.load(tmp_path / f"{size}.npy") for size in (1, 2, 100))
    assert all(np.allclose(first, other, atol=1e-6) for other in others)


def test_a_stopped_extraction_keeps_its_parts_and_no_foreign_ones(run_folder, tmp_path, monkeypatch):
    path, calls = write_split(tmp_path), []
    output = tmp_path / "x.npy"
    settings = {"text_data": path, "text_output": str(output), "part_size": 1}
    write = PartStore.write

    def stop_at_third(self, number, vectors):
        calls.append(number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(self, number, vectors)

    monkeypatch.setattr(PartStore, "write", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        extract(run_folder, **settings)
    extract(run_folder, **settings)
    assert calls == [0, 1, 2, 2] and not output.with_name(".x.npy.parts").exists()
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        extract(run_folder, **settings)
    extract(run_folder, **settings, context_length=4)  # the parts were of other settings
    assert calls == [0, 1, 2, 0, 1, 2]


def command(run_folder, path, output, *words):
    arguments = [f"text_data={path}", f"text_output={output}", "part_size=1", f"--output_dir={output.parent}/out"]
    return [sys.executable, "run.py", "--task", "extract_features", "--checkpoint", str(run_folder), *arguments, *words]


def test_a_killed_command_goes_on_and_two_processes_write_the_same(run_folder, tmp_path):
    texts = [{"text_id": k, "text": f"red {k}", "image_ids": []} for k in range(4000)]
    path, output = write_split(tmp_path, texts=texts), tmp_path / "x.npy"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(run_folder, path, output), cwd=ROOT, env=environment)
    parts = output.with_name(".x.npy.parts")
    deadline = time.monotonic() + 60
    while len(list(parts.glob("*.npy"))) < 5 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.npy")}
    assert len(kept) >= 5 and not output.exists()
    write_split(tmp_path / "small", texts=texts[:6])
    subprocess.run(command(run_folder, path, output), cwd=ROOT, env=environment, check=True)
    assert len(read_vectors(output, "text").ids) == 4000
    other = tmp_path / "two.npy"
    small = tmp_path / "small/valid_texts.jsonl"
    subprocess.run(command(run_folder, small, other, "--nproc", "2"), cwd=ROOT, env=environment, check=True)
    assert np.allclose(np.load(output)[:6], np.load(other), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "image_data or text_data must be given"),
        ({"parts": ["image"], "text_data": "x.jsonl"}, "image_data must be given"),
        ({"text_data": "x.jsonl", "text_output": "x.csv"}, "end in .jsonl, .npy, .parquet"),
        ({"image_data": "x.tsv"}, "image_output must be given"),
        ({"text_data": "x.jsonl", "context_length": 2}, "context_length must be at least 3"),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(ValueError, match=message):
        ExtractFeatures.Config(checkpoint="x", **settings)


def test_a_picture_that_cannot_be_read_stops_with_its_place(run_folder, tmp_path):
    write_split(tmp_path, images=[*image_lines(), "9\tbm90IGEgcGljdHVyZQ=="])
    data = str(tmp_path / "valid_imgs.tsv")
    with pytest.raises(DataError, match=r"valid_imgs.tsv:5: unreadable image"):
        extract(run_folder, image_data=data, image_output=str(tmp_path / "x.npy"))


def test_a_text_without_an_id_stops_with_its_place(run_folder, tmp_path):
    path = write_split(tmp_path, texts=[TEXTS[0], {"text": "red"}])
    with pytest.raises(DataError, match=r"valid_texts.jsonl:2: missing text_id"):
        extract(run_folder, text_data=path)


def test_original_flags_mean_the_same():
    from compat.command_line import parse

    words = (
        "--extract-image-feats --image-data lmdb/valid/imgs --text-data v_texts.jsonl --resume=cn.pt --precision amp"
    )
    settings = parse(["--task", "extract_features", *words.split(), "--img-batch-size", "32", "--vision-model=RN50"])
    assert sorted(settings.settings) == sorted(
        json.loads(
            '["parts=[image]", "image_data=\\"lmdb/valid/imgs\\"", "text_data=\\"v_texts.jsonl\\"", '
            '"checkpoint=\\"cn.pt\\"", "precision=\\"amp\\"", "image_batch_size=32"]'
        )
    )
