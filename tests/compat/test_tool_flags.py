"""Flags of the original programs become settings of the tool, whatever stands around them."""

from __future__ import annotations

import pytest

from compat.tool_flags import translate_words

TASK = ["--task", "export_onnx"]


def test_flags_become_settings_at_the_end():
    words = [*TASK, "--pytorch-ckpt-path", "a b.pt", "--convert-vision", "--convert-text", "--output_dir", "out"]
    assert translate_words([*words, "--context-length=52"]) == [
        *TASK,
        "--output_dir",
        "out",
        'checkpoint="a b.pt"',
        "context_length=52",
        "parts=[image, text]",
    ]


def test_what_a_flag_no_longer_decides_is_accepted_with_its_word():
    assert translate_words([*TASK, "--model-arch", "ViT-B-16", "opset=20"]) == [*TASK, "opset=20"]


def test_the_port_of_a_server_is_its_own():
    assert translate_words(["--task", "serve", "--port", "8001"]) == ["--task", "serve", "port=8001"]


def test_another_task_keeps_its_words():
    words = ["--task=pretrain", "--n", "3"]
    assert translate_words(words) == words


def test_a_flag_without_its_word_is_told():
    with pytest.raises(ValueError, match="--save-onnx-path needs a value"):
        translate_words([*TASK, "--save-onnx-path", "--convert-text"])


def test_splits_become_a_list():
    words = translate_words(["--task", "build_lmdb", "--data_dir", "MUGE", "--splits", "train,valid"])
    assert words[2:] == ['data_dir="MUGE"', 'splits=["train", "valid"]']


def test_the_search_for_texts_of_images_is_our_search():
    words = translate_words(["--task=search_tr", "--output", "p.jsonl", "--top-k=5"])
    assert words == ["--task=search", 'output_tr="p.jsonl"', "top_k=5"]


@pytest.mark.parametrize("task", ["evaluate_predictions", "evaluate_predictions_tr"])
def test_files_without_a_flag_are_named_by_their_place(task):
    words = translate_words(["--task", task, "ref.jsonl", "pred.jsonl", "--output_dir", "x", "out.json"])
    files = ['reference="ref.jsonl"', 'predictions="pred.jsonl"', "--output_dir", "x", 'output="out.json"']
    direction = ["direction=image_to_text"] if task.endswith("_tr") else []
    assert words == ["--task", "evaluate_predictions", *files, *direction]
