"""Exported files say what the model says, for any batch and length, and a file that does not fails the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import run
from models.padded import ImageTower, PairScore, TextTower
from tasks.onnx_graphs import Sample, known_values, largest_difference, make_graphs, open_session, write_graph
from tests.tiny import VOCAB, WIDTH, build_model
from tests.toy_served import write_run

pytest.importorskip("onnxscript", reason="pip install -r requirements-serve.txt")
pytest.importorskip("onnxruntime", reason="pip install -r requirements-serve.txt")
SWIN = {"name": "swin", "image_size": 32, "window_size": 4, "width": 8, "depths": [1, 1], "num_heads": [1, 2]}


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_run(tmp_path)


def export(folder: Path, *words: str) -> tuple[int, dict]:
    out = folder.parent / "onnx"
    status = run.main(["--task", "export_onnx", "--checkpoint", str(folder), "--output_dir", str(out), *words])
    metrics = out / "metrics.json"
    return status, json.loads(metrics.read_text()) if metrics.is_file() else {}


MEAN = {
    "name": "bert",
    "pooling": "mean",
    "vocab_size": VOCAB,
    "width": WIDTH,
    "num_layers": 1,
    "num_heads": 2,
    "mlp_width": 32,
}
FORMS = {"projection_form": {"kind": "plain"}, "image_projection_form": {"kind": "simple"}}


@pytest.mark.parametrize(
    "changes", [{}, {"image_fusion": {"num_layers": 2}}, {"image_encoder": SWIN}, {"text_encoder": MEAN}, FORMS]
)
def test_padded_towers_and_score_equal_the_packed_model(changes):
    model = build_model(**changes).eval()
    sample = Sample.draw(model, [9, 2, 6])
    values = known_values(model, sample, is_normalised=False)
    options = {"is_normalised": False, "gives_tokens": True}
    with torch.no_grad():
        image, tokens = ImageTower(model, **options)(sample.image)
        text, words = TextTower(model, **options)(sample.text)
        match, logits = PairScore(model)(tokens, words, sample.text)
    torch.testing.assert_close(image, values["unnorm_image_features"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text, values["unnorm_text_features"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, values["match_logits"], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        (unit,) = ImageTower(model, is_normalised=True, gives_tokens=False)(sample.image)
    torch.testing.assert_close(unit, values["image_features"], atol=1e-5, rtol=1e-5)
    assert match.shape == (3,) and logits.shape[1] == (2 if "image_fusion" in changes else 1)


def test_the_original_command_writes_both_towers_and_checks_them(folder, tmp_path):
    prefix = tmp_path / "deploy" / "vit"
    words = ["--model-arch", "ViT-B-16", "--save-onnx-path", str(prefix), "--convert-text", "--convert-vision"]
    status, metrics = export(folder, *words, "--context-length", "12", "precisions=[fp32]", "split_bytes=0")
    assert status == 0 and metrics["is_equal"]
    assert sorted(path.name for path in prefix.parent.iterdir()) == [
        f"vit.{part}.fp32.onnx{ending}" for part in ("img", "txt") for ending in ("", ".data")
    ]
    session = onnx_session(f"{prefix}.txt.fp32.onnx")
    assert [value.name for value in session.get_outputs()] == ["unnorm_text_features"]
    assert session.get_inputs()[0].shape == ["batch", "length"] and session.get_inputs()[0].type == "tensor(int64)"
    assert session.get_modelmeta().custom_metadata_map["context_length"] == "12"


def onnx_session(path: str):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_a_score_in_half_precision_reads_single_precision_tokens(tmp_path):
    model = build_model().eval()
    values = known_values(model, Sample.draw(model, [5, 3]), is_normalised=True)
    graph = make_graphs(model, ["image", "text", "score"], is_normalised=True)[-1]
    path = tmp_path / "score.onnx"
    write_graph(graph, values, path, precision="fp16", opset=18, max_length=20, is_split=False, notes={})
    others = [known_values(model, Sample.draw(model, lengths, 1), is_normalised=True) for lengths in ([7], [4, 11, 9])]
    difference = largest_difference(graph, open_session(path, "cpu"), others, pad_id=1)
    assert 0 < max(difference.values()) < 2e-2  # half precision, and not by accident single


def test_a_file_that_says_something_else_fails_the_command(folder, capsys):
    status, metrics = export(folder, "parts=[text]", "precisions=[fp32]", "tolerance=0", "benchmark=true", "num_runs=2")
    assert status == 1 and not metrics["is_equal"]
    out = capsys.readouterr().out
    assert "DIFFERS" in out and "text torch fp32" in out and "median" in out


def test_the_original_benchmark_times_torch_and_the_named_file(folder, capsys):
    out = folder.parent / "onnx"
    assert export(folder, "parts=[image]", "precisions=[fp32]")[0] == 0
    words = [
        "--model-arch",
        "ViT-B-16",
        "--pytorch-ckpt",
        str(folder),
        "--onnx-image-model",
        f"{out}/model.img.fp32.onnx",
    ]
    words += ["--pytorch-precision", "fp32", "--batch-size", "2", "--n", "3", "--warmup", "1", "--context-length", "9"]
    assert run.main(["--task", "speed_benchmark", "--output_dir", str(folder.parent / "speed"), *words]) == 0
    times = json.loads((folder.parent / "speed" / "metrics.json").read_text())["milliseconds"]
    assert list(times) == ["image torch fp32", "image model.img.fp32.onnx", "text torch fp32"]
    assert all(0 < row["min"] <= row["median"] <= row["p95"] <= row["p99"] <= row["max"] for row in times.values())
    assert "milliseconds for 2 on cpu, 3 runs" in capsys.readouterr().out


def test_a_file_that_is_not_there_is_told(folder, capsys):
    words = ["--pytorch-ckpt", str(folder), "--onnx-text-model", "nowhere.onnx", "--n", "1", "--warmup", "0"]
    assert run.main(["--task", "speed_benchmark", *words]) == 2
    assert "nowhere.onnx: no such ONNX file" in capsys.readouterr().err


def test_core_ml_packages_are_written_with_the_originals_names(folder):
    coremltools = pytest.importorskip("coremltools", reason="pip install coremltools")
    words = ["parts=[text]", "precisions=[fp32]", "coreml=true", "context_length=12"]
    status, metrics = export(folder, *words)
    assert status == 0 and [Path(path).name for path in metrics["coreml"]] == ["model.text.mlpackage"]
    described = coremltools.utils.load_spec(metrics["coreml"][0]).description
    assert [value.name for value in (*described.input, *described.output)] == ["text", "text_features"]
    assert list(described.input[0].type.multiArrayType.shape) == [1, 12]


@pytest.mark.parametrize(
    "words, told",
    [
        (["parts=[picture]"], "picture"),
        (["context_length=99"], "positions for 2 to 50"),
        (["opset=13"], "opset must be at least 18"),
        (["num_runs=0"], "num_runs must be at least 1"),
        (["checkpoint="], "name the model"),
        (["checkpoint=nowhere"], "no weights"),
        (["--save-onnx-path"], "needs a value"),
    ],
)
def test_what_cannot_be_exported_is_told(folder, words, told, capsys):
    try:
        status, _ = export(folder, *words)
    except SystemExit as stopped:
        status = stopped.code
    assert status in (1, 2) and told in capsys.readouterr().err


def test_a_model_without_fusion_has_no_score(tmp_path, capsys):
    folder = write_run(tmp_path, text_fusion=None, has_masked_language_head=False)
    assert export(folder, "parts=[score]")[0] == 1
    assert "no fused score" in capsys.readouterr().err
