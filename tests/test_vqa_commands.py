"""CCLM's commands for GQA and xGQA on a small world in IGLUE's layout: train, zero-shot, few-shot, evaluate, export."""

import json

import pytest
import torch

import run
from dataset.text import train_bpe
from tests.ranks import run_commands
from tests.toy_cclm import COLOURS, SIZES, write_json, write_pictures
from utils.config import read_yaml

LANGUAGES = ("bn", "de", "en", "id", "ko", "pt", "ru", "zh")
WORDS = [*SIZES, "model.answer_decoder.num_layers=1", "evaluation.num_candidates=4", "train.first_evaluation_epoch=0"]
FEW_SHOT = "--fewshot bn --lr 1e-6 --bs 6 --epoch 1"
# Right answers of the test questions: a model that says "yes" to everything is right so often.
NUM_QUESTIONS = 8
NUM_YES = {language: number for number, language in enumerate(LANGUAGES)}


def gqa(count):
    return [
        {
            "img_id": f"n{i % 4}",
            "label": {COLOURS[i % 6]: 1.0},
            "question_id": str(i),
            "sent": f"What colour is it {i}?",
        }
        for i in range(count)
    ]


def xgqa(language, count=NUM_QUESTIONS):
    answers = ["yes"] * NUM_YES[language] + ["no"] * count
    return {
        f"20{i}": {"question": f"{language} frage {i}?", "answer": answers[i], "imageId": f"n{i % 4}", "types": {}}
        for i in range(count)
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("gqa")
    annotations = root / "iglue/datasets/gqa/annotations"
    for split, count in (("train", 12), ("valid", 6)):
        write_json(annotations / f"{split}.json", gqa(count))
    answers = [*COLOURS, "yes", "no", "light blue"]
    write_json(annotations / "trainval_ans2label.json", {answer: 9 - k for k, answer in enumerate(answers)})
    for language in LANGUAGES:
        folder = root / f"iglue/datasets/xGQA/annotations/few_shot/{language}"
        write_json(folder / "test.json", xgqa(language))
        write_json(folder / "train_48.json", xgqa(language, 6))
    write_pictures(root / "images/gqa", [f"n{i}.jpg" for i in range(4)])
    texts = [f"what colour is it frage {i} {' '.join(answers)} {' '.join(LANGUAGES)}" for i in range(9)]
    train_bpe(texts, vocab_size=118).save(root / "tokenizer")
    return root


@pytest.fixture(autouse=True)
def in_world(world, monkeypatch):
    monkeypatch.chdir(world)


@pytest.fixture(scope="module")
def trained(world):
    """The folder of a model fine-tuned on English, and nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        words = "--dist 1 --task gqa --output_dir out/en --bs 6 --epoch 1 --seed 42"
        assert run.main([*words.split(), *WORDS]) == 0
    return world / "out/en"


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["test"]


def test_english_training_is_tested_in_eight_languages(trained):
    found = metrics_of(trained)
    assert set(LANGUAGES) <= set(found)
    others = [found[language]["accuracy"] for language in LANGUAGES if language != "en"]
    metrics = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["mean_without_en"]["accuracy"] == pytest.approx(sum(others) / 7)
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert any(record.get("split") == "val" for record in records)
    assert "accuracy" in (trained / "report.html").read_text(encoding="utf-8")


def test_answers_are_written_in_the_order_of_the_questions_and_accuracy_counts_them(trained):
    for language in LANGUAGES:
        rows = json.loads((trained / f"answers_{language}.json").read_text(encoding="utf-8"))
        assert [row["question_id"] for row in rows] == [f"20{i}" for i in range(NUM_QUESTIONS)]
        right = sum(row["answer"] in row["right_answers"] for row in rows)
        assert metrics_of(trained)[language]["accuracy"] == pytest.approx(100 * right / NUM_QUESTIONS)


def say_yes(trained, folder):
    """The trained model with a decoder that expects the pieces of "yes" and the end mark everywhere."""
    from dataset.text import load_tokenizer
    from utils.checkpoint import read_weights, write_weights

    state = read_weights(trained / "checkpoints/last/model.safetensors")
    pieces = load_tokenizer("tokenizer").encode_batch(["yes"], 20)[0][1:]
    state["model.answer_decoder.head.bias"][pieces] += 100.0
    folder.mkdir(parents=True)
    write_weights(state, folder / "model.safetensors")
    (folder / "config.yaml").write_text((trained / "config.yaml").read_text())
    return folder / "model.safetensors"


def test_evaluation_counts_exact_matches_of_every_language_s_own_file(trained, world):
    weights = say_yes(trained, world / "always_yes")
    words = f"--task gqa --evaluate --checkpoint {weights} --output_dir out/yes"
    assert run.main([*words.split(), *WORDS]) == 0
    found = metrics_of(world / "out/yes")
    assert {name: found[name]["accuracy"] for name in LANGUAGES} == {
        name: 100 * number / NUM_QUESTIONS for name, number in NUM_YES.items()
    }


def test_two_processes_learn_and_answer_as_one_does(trained, world):
    no_chance = ("text_encoder.dropout", "text_encoder.attention_dropout", "image_encoder.drop_path")
    words = ["--task", "gqa", "--bs", "6", "--epoch", "1", *WORDS, *(f"model.{name}=0" for name in no_chance)]
    shots = ["--task", "gqa", *FEW_SHOT.split(), "--checkpoint", str(trained), "--output_dir", "out/two_bn", *WORDS]
    run_commands([[*words, "--output_dir", "out/two"], shots], world)
    assert run.main([*words, "--output_dir", "out/one"]) == 0
    losses, answers = [], []
    for folder in (world / "out/one", world / "out/two"):
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([record["train/answers"] for record in records if record["kind"] == "train"])
        rows = [row for name in LANGUAGES for row in json.loads((folder / f"answers_{name}.json").read_text())]
        answers.append([(row["question_id"], row["answer"]) for row in rows])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 2
    assert answers[0] == answers[1]
    assert metrics_of(world / "out/one") == metrics_of(world / "out/two")
    assert set(metrics_of(world / "out/two_bn")) == {"bn", "mean"}


def test_few_shot_training_takes_the_language_s_own_files(trained, world):
    words = f"--dist 1 --task gqa {FEW_SHOT} --output_dir out/bn"
    assert run.main([*words.split(), "--checkpoint", str(trained), *WORDS]) == 0
    assert set(metrics_of(world / "out/bn")) == {"bn", "mean"}
    tree = read_yaml(world / "out/bn/config.yaml")
    assert tree["train"]["keeps_best"] is False
    assert tree["data"]["train"]["files"] == {"bn": "iglue/datasets/xGQA/annotations/few_shot/bn/train_48.json"}


def test_an_exported_model_is_recognised_and_answers_alike(trained, world):
    words = "--task export --to cclm_vqa --output_dir out/export --checkpoint out/en"
    assert run.main(words.split()) == 0
    state = torch.load(world / "out/export/cclm_vqa.th", weights_only=True)["model"]
    assert "text_decoder.bert.encoder.layer.0.crossattention.self.key.weight" in state and "temp" not in state
    words = "--task gqa --evaluate --checkpoint out/export/cclm_vqa.th --output_dir out/again"
    assert run.main([*words.split(), *WORDS]) == 0
    name = "answers_ru.json"
    assert json.loads((world / "out/again" / name).read_text()) == json.loads((trained / name).read_text())


def test_a_missing_list_of_answers_is_told_before_a_model_exists(trained, capsys):
    words = "--task gqa --evaluate --checkpoint out/en --output_dir out/none evaluation.answers=absent.json"
    assert run.main([*words.split(), *WORDS]) == 2
    assert "absent.json" in capsys.readouterr().err
