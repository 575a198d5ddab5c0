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


def test_another_task_keeps_its_words():
    words = ["--task=pretrain", "--n", "3"]
    assert translate_words(words) == words


def test_a_flag_without_its_word_is_told():
    with pytest.raises(ValueError, match="--save-onnx-path needs a value"):
        translate_words([*TASK, "--save-onnx-path", "--convert-text"])
