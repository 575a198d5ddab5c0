"""`--task score`: pairs from the command line or a file, one line each, whatever the number of processes."""

import json
import re

import pytest
import torch

import rosetta
import run
from bench import plain
from tests import toy_r2d2
from tests.toy_r2d2 import CAPTIONS


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    toy_r2d2.write_world(folder)
    toy_r2d2.write_checkpoint(folder / "r2d2.pth")
    toy_r2d2.write_config(folder / "model.yaml", "flickr_cna_base")
    toy_r2d2.write_checkpoint(folder / "prd2.pth", "prd2_large", "prd2")
    toy_r2d2.write_config(folder / "prd2.yaml", "prd2_large")
    return folder


def score(world, monkeypatch, *words, model="model.yaml", checkpoint="r2d2.pth"):
    monkeypatch.chdir(world)
    command = ["--task", "score", "--checkpoint", checkpoint, f"model_config={model}", "--output_dir", "out", *words]
    return run.main(command)


def lines():
    with open("out/scores.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


PICTURES = [f"data/zero/IQR_IQM_ICR_ICM_images/{name}.jpg" for name in toy_r2d2.NAMES[:3]]


def test_every_image_meets_every_text_of_the_command_line(world, monkeypatch):
    words = [word for path in PICTURES for word in ("--image", path)]
    words += [word for text in CAPTIONS[:2] for word in ("--text", text)]
    assert score(world, monkeypatch, *words, "--bs", "2") == 0
    found = lines()
    assert [(record["image"], record["text"]) for record in found] == [(p, t) for p in PICTURES for t in CAPTIONS[:2]]
    for record in found:
        assert record["match"] == pytest.approx((record["match_text"] + record["match_image"]) / 2)
    assert sum(record["probability"] for record in found[:2]) == pytest.approx(1)


def test_pairs_of_a_file_keep_their_order_and_equal_the_plain_scores(world, monkeypatch):
    chosen = [(2, 0), (0, 1), (2, 3), (0, 0)]
    records = [{"image": PICTURES[image], "text": CAPTIONS[text]} for image, text in chosen]
    toy_r2d2.write_lines(world / "pairs.jsonl", records)
    assert score(world, monkeypatch, "pairs=pairs.jsonl") == 0
    loaded = rosetta.load("r2d2.pth", "model.yaml")
    with torch.no_grad():
        for (image, text), record in zip(chosen, lines(), strict=True):
            pixels, batch = loaded._inputs.images([PICTURES[image]]), loaded._inputs.texts([CAPTIONS[text]])
            mask = torch.ones_like(batch.ids)
            hidden = plain.encode_text(loaded.model.text_encoder, batch.ids, mask)
            images = loaded.model.encode_image(pixels)
            match = plain.match_probability(loaded.model, hidden, mask, images.tokens)
            assert record["match"] == pytest.approx(match.item(), abs=1e-5)
            cosine = images.embed @ plain.embed_text(loaded.model, hidden, mask).T
            assert record["similarity"] == pytest.approx(cosine.item(), abs=1e-5)


def test_a_dual_encoder_has_no_match(world, monkeypatch):
    words = ["--image", PICTURES[0], "--text", CAPTIONS[0]]
    assert score(world, monkeypatch, *words, model="prd2.yaml", checkpoint="prd2.pth") == 0
    (record,) = lines()
    assert record.keys() == {"image", "text", "similarity", "probability"} and record["probability"] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"image": "x.jpg"}, "bad.jsonl:1: .*'text' is missing; found: image"),
        ({"image": "absent.jpg", "text": "t"}, "absent.jpg"),
    ],
)
def test_a_line_that_cannot_be_scored_is_told(world, monkeypatch, capsys, line, message):
    toy_r2d2.write_lines(world / "bad.jsonl", [line])
    assert score(world, monkeypatch, "pairs=bad.jsonl") != 0
    told = capsys.readouterr().err
    assert re.search(message, told), told


@pytest.mark.parametrize("words", [[], ["--image", "a.jpg"], ["--image", "a.jpg", "--text", "t", "pairs=p.jsonl"]])
def test_half_a_question_is_refused(world, monkeypatch, words):
    assert score(world, monkeypatch, *words) == 2
