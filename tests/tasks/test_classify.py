"""Every text is scored once, with its own pictures, however texts are batched and pictures shared."""

import json
from types import SimpleNamespace

import pytest
import torch

from dataset.bad_records import BadRecords
from dataset.labelled import PicturePairs
from dataset.samples import Preprocessing
from dataset.transforms import Resize
from tasks import classify
from tasks.classify import LabelEvaluation
from tests.dataset.toy import WordTokenizer, picture
from tests.tiny import build_model, model_tree

PAIRS = {"en": [(0, 1), (1, 0), (2, 2), (0, 1)], "id": [(1, 0), (0, 1), (2, 1)]}


@pytest.fixture
def sets(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(picture(k))
    files = {}
    for language, pairs in PAIRS.items():
        records = [
            {"sentence": f"{language} {'word ' * k}", "label": k % 2 == 0, "images": [f"{a}.png", f"{b}.png"]}
            for k, (a, b) in enumerate(pairs)
        ]
        files[language] = str(tmp_path / f"{language}.json")
        (tmp_path / f"{language}.json").write_text(json.dumps(records))
    preprocessing = Preprocessing(WordTokenizer(), Resize(Resize.Config(), 32))
    return PicturePairs(PicturePairs.Config(files=files, image_root=str(tmp_path)), preprocessing)


@pytest.fixture
def model():
    parts = {"projections": "none", "has_match_head": False, "has_masked_language_head": False}
    text = model_tree()["text_encoder"] | {"vocab_size": 100}
    fusion = {"num_layers": 2, "num_images": 2}
    return build_model(text_encoder=text, text_fusion=fusion, classifier={"num_classes": 2}, **parts).eval()


def evaluation(sets, **settings):
    data = SimpleNamespace(labelled_sets=lambda split: sets.labelled_sets(BadRecords(0.0)))
    return LabelEvaluation(LabelEvaluation.Config(**settings), data, "")


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores_are_those_of_each_text_alone(sets, model, batch_size):
    found = evaluation(sets, batch_size=batch_size).score(model, sets.labelled_sets(BadRecords(0.0)))
    alone = []
    for k in range(len(sets)):
        batch = sets.collate([sets.sample(k, None)], [])
        texts = model.encode_text(batch.texts.ids, batch.texts.lengths)
        keys = model.project_images(model.encode_image(batch.images).tokens)
        alone.append(model.class_logits(texts, keys, batch.image_of_text))
    torch.testing.assert_close(torch.cat([found["en"], found["id"]]), torch.cat(alone), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_picture_is_encoded_once_for_all_languages(sets, model, monkeypatch):
    seen, encode = [], model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda images: seen.append(len(images)) or encode(images))
    metrics = evaluation(sets)(model, "test")
    assert seen == [3] and list(metrics) == ["en", "id", "mean", "mean_without_en", "chance"]
    assert metrics["mean_without_en"] == metrics["id"] and metrics["chance"] == {"accuracy": 50}


@torch.no_grad()
def test_the_area_under_the_roc_curve_is_another_metric(sets, model):
    chosen = evaluation(sets, metric="auc")
    assert chosen.headline == "auc" and set(chosen(model, "test")["en"]) == {"auc"}


def test_processes_share_the_texts_and_repeat_none(sets, monkeypatch):
    sets = sets.labelled_sets(BadRecords(0.0))
    monkeypatch.setattr(classify, "world_size", lambda: 3)
    shares = []
    for number in range(3):
        monkeypatch.setattr(classify, "rank", lambda number=number: number)
        shares.append([place for batch in classify.own_places(sets, 2) for place in batch])
    every = [(name, k) for name, labelled in sets.items() for k in range(len(labelled.items))]
    assert all(shares) and sorted(place for share in shares for place in share) == sorted(every)
