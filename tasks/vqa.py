"""Visual question answering (GQA, xGQA): trained to write answers, evaluated by ranking those of a list.

Letters: S questions, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dataset.gallery import end_reading
from dataset.labelled import LabelledSet
from dataset.vqa import AnswerList, read_answers
from models.model import Model
from tasks.answer_ranking import rank_answers
from tasks.classify import Place, encode_places, groups_with_one_model, own_places, with_means
from tasks.image_text import ImageText
from utils.distributed import gather_objects, is_main
from utils.logger import progress_bar
from utils.precision import DTYPES, Precision
from utils.results import write_json


class QuestionAnswering(ImageText):
    """Images and questions as in every task; what is fresh is only what pre-training does not give the decoder."""

    def fresh_parameters(self) -> set[str]:
        """The decoder's keys and values where fusion layers, which read images, have those of another width."""
        if self.model.image_encoder.width == self.model.text_encoder.width:
            return set()
        beginning, part = "model.answer_decoder.", ".cross_attention.key_value."
        return {name for name, _ in self.named_parameters() if name.startswith(beginning) and part in name}


@dataclass(frozen=True)
class Prediction:
    """The best answer and its probability among the candidates."""

    answer: str
    probability: float


class AnswerEvaluation:
    """Asks every question of a split once and compares the best answer of the list with the right ones, letter by
    letter; the answers to the test split are written to output_dir/answers_<language>.json.
    """

    headline = "accuracy"

    @dataclass
    class Config:
        name: str = "answers"
        answers: str = "iglue/datasets/gqa/annotations/trainval_ans2label.json"  # {answer: number}, or a list
        num_candidates: int = 128  # answers of each question that are ranked whole (the original's k_test)
        batch_size: int = 32  # questions at once on each process
        precision: Precision = "fp32"

        def __post_init__(self) -> None:
            for name in ("num_candidates", "batch_size"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")

    def __init__(self, config: Config, data: Any, output_dir: str) -> None:
        self.config, self.data, self.output_dir = config, data, Path(output_dir)
        self.answers = read_answers(config.answers, data.tokenizer)
        # Called with the name of a set before it is scored, where every set has weights of its own (few-shot models).
        self.before_set: Callable[[str], None] | None = None

    def __call__(self, model: Model, split: str) -> dict[str, Any]:
        """Accuracy of every set of a split, their means with and without English, and what guessing reaches; {}
        without data.
        """
        sets = self.data.labelled_sets(split)
        if not sets:
            return {}
        predictions: dict[Place, Prediction] = {}
        for group in groups_with_one_model(sets, self.before_set):
            predictions |= self.predict(model, group)
        metrics = {}
        for name, questions in sets.items():
            own = [predictions[name, k] for k in range(len(questions.items))]
            metrics[name] = {"accuracy": accuracy(own, questions)}
            if split == "test" and is_main():
                self.write(name, own, questions)
        return with_means(metrics) | {"chance": {"accuracy": 100 / len(self.answers.texts)}}

    def predict(self, model: Model, sets: dict[str, LabelledSet]) -> dict[Place, Prediction]:
        """The prediction for every question of the sets, the same on all processes."""
        device, precision = next(model.parameters()).device, self.config.precision
        answers = AnswerList(self.answers.texts, self.answers.tokens.to(device))
        batches, own = list(own_places(sets, self.config.batch_size)), {}
        with progress_bar(sum(map(len, batches)), 0, is_shown=is_main()) as bar:
            bar.set_description("answer")
            for batch in batches:
                with torch.autocast(device.type, DTYPES.get(precision), enabled=precision != "fp32"):
                    texts, tokens, image_of_text = encode_places(model, sets, batch, device)
                    questions = model.fuse_texts(texts, model.project_images(tokens), image_of_text)
                    ranked = rank_answers(model.answer_decoder, questions, answers.tokens, self.config.num_candidates)
                best, probability = ranked.answer[:, 0].tolist(), ranked.probability[:, 0].tolist()
                own |= {
                    place: Prediction(answers.texts[number], value)
                    for place, number, value in zip(batch, best, probability, strict=True)
                }
                bar.update(len(batch))
        found = {place: prediction for part in gather_objects(own) for place, prediction in part.items()}
        end_reading(sets.values())
        return found

    def write(self, language: str, predictions: list[Prediction], questions: LabelledSet) -> None:
        """Every question's number, answer and right answers, in the order of the file."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "question_id": item.label.question_number,
                "answer": found.answer,
                "probability": round(found.probability, 4),
                "right_answers": list(item.label.texts),
            }
            for found, item in zip(predictions, questions.items, strict=True)
        ]
        write_json(self.output_dir / f"answers_{language}.json", rows)


def accuracy(predictions: list[Prediction], questions: LabelledSet) -> float:
    """Percentage of questions whose prediction is one of the right answers, letter by letter."""
    right = [found.answer in item.label.texts for found, item in zip(predictions, questions.items, strict=True)]
    return 100 * sum(right) / len(right)
