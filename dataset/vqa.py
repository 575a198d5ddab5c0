"""Questions about images with their answers: GQA's lists and xGQA's tables, one set per language.

Letters: S questions, A answers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset.batch import Skipped, TextBatch, Transferable, pad_texts
from dataset.directions import DIRECTION_WORDS, Directions
from dataset.files import BadRecord, DataError, Files
from dataset.labelled import Example, LabelledConfig, LabelledTexts
from dataset.readers import KeyedSource, LineIndex, Records, Source, open_source
from dataset.samples import MAX_CHARACTERS, MAX_POSITIONS, Preprocessing, read_image
from dataset.sections import field_of, text_of
from dataset.text import TextTokenizer, clean_question

# A file that begins so is one object of records by question number; a JSON line may begin with a `label` object.
TABLE_START = re.compile(rb'\s*\{\s*"(?!label")[^"]*"\s*:\s*\{')
ANSWER_LANGUAGE = "en"


@dataclass(frozen=True)
class Answers:
    """The right answers of a question, and the number that its file gives it."""

    texts: tuple[str, ...]
    question_number: str


@dataclass
class QuestionSample:
    """One picture (3, S, S) with one question and its answers as token ids."""

    image: np.ndarray
    question: list[int]
    answers: list[list[int]]


@dataclass
class QuestionBatch(Transferable):
    """images (S, 3, H, W) uint8, one per question; answers (A), those of one question side by side, with begin and end
    marks; answer_weight (A,) adds up to 1 for each question; num_answers of every question, on the host.
    """

    images: Tensor
    texts: TextBatch
    answers: TextBatch
    answer_weight: Tensor
    num_answers: list[int]
    skipped: list[Skipped] = field(default_factory=list)
    stream: str = "image"

    @property
    def num_tokens(self) -> int:
        return self.texts.num_tokens + self.answers.num_tokens

    @property
    def num_padded_tokens(self) -> int:
        return self.texts.num_padded_tokens + self.answers.num_padded_tokens


class Questions(LabelledTexts):
    """Questions from records {sent, img_id, label: {answer: score}} (GQA) or {question, imageId, answer} (xGQA)."""

    @dataclass
    class Config(LabelledConfig):
        name: str = "questions"
        image_root: str = "images/gqa"
        image_suffix: str = ".jpg"
        max_words: int = 0  # 0: data.max_words
        # JSON file {language: [word, ...]}; where a question or answer has one of them, its picture is not mirrored in
        # training. Empty: the list that comes along.
        direction_words: str = ""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.max_words < 0:
                raise ValueError(f"max_words must be at least 0, found {self.max_words}")

        def open(self, files: list[str], preprocessing: Preprocessing) -> Records:
            return Records(files, preprocessing.files, preprocessing.cache_dir, open_file=open_questions)

        def read(self, record: dict[str, Any], language: str) -> Example:
            image = str(field_of(record, "img_id", "imageId"))
            image += "" if image.endswith(self.image_suffix) else self.image_suffix
            answers = field_of(record, "answer", "label")
            answers = tuple(answers) if isinstance(answers, dict) else (answers,)
            if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
                raise BadRecord("missing answer", f"'label' or 'answer' must name at least one, found {answers}")
            number = str(record.get("question_id", ""))
            return Example(((image, self.image_root),), field_of(record, "sent", "question"), Answers(answers, number))

        def clean(self, text: Any, max_words: int) -> str:
            return clean_question(text_of(text, "question")[:MAX_CHARACTERS], self.max_words or max_words)

    def __init__(self, config: Config, preprocessing: Preprocessing) -> None:
        super().__init__(config, preprocessing)
        self.directions = Directions(config.direction_words or DIRECTION_WORDS)
        self.unflipped = preprocessing.transform.without_flip()

    def sample(self, index: int, generator: np.random.Generator) -> QuestionSample:
        """One question with its picture and all of its answers."""
        _, part, k = self.part_of(index)
        example, preprocessing = part.read(int(part.record_of_text[k])), self.preprocessing
        ((image, root),), answers = example.images, example.label.texts
        is_directed = self.directions.are_in(example.text, part.language) or any(
            self.directions.are_in(answer, ANSWER_LANGUAGE) for answer in answers
        )
        transform = self.unflipped if is_directed else preprocessing.transform
        return QuestionSample(
            image=transform(read_image(image, root, preprocessing.files), generator),
            question=preprocessing.encode([self.config.clean(example.text, preprocessing.max_words)])[0],
            answers=preprocessing.tokenizer.encode_batch(answers, MAX_POSITIONS),
        )

    def collate(self, samples: list[QuestionSample], skipped: list[Skipped]) -> QuestionBatch:
        """Samples as one batch."""
        pad_id = self.preprocessing.tokenizer.pad_id
        num_answers = [len(sample.answers) for sample in samples]
        return QuestionBatch(
            images=torch.from_numpy(np.stack([sample.image for sample in samples])),  # (S, 3, H, W)
            texts=pad_texts([sample.question for sample in samples], pad_id),
            answers=pad_texts([answer for sample in samples for answer in sample.answers], pad_id),
            # Whatever their scores, the answers of a question count alike.
            answer_weight=torch.tensor([1 / count for count in num_answers for _ in range(count)]),
            num_answers=num_answers,
            skipped=skipped,
        )


def open_questions(path: str, files: Files, index: LineIndex) -> Source:
    """A list, lines, or a table of questions by their number."""
    try:
        head = files.read_part(path, 0, 4096) if files.is_seekable(path) else files.read(path)[:4096]
    except OSError:
        head = b""  # open_source tells what is wrong
    if TABLE_START.match(head.removeprefix(b"\xef\xbb\xbf")):
        return KeyedSource(path, files.read(path), "question_id")
    return open_source(path, files, index)


@dataclass
class AnswerList:
    """All answers that a question may have, in the order of their file: as they stand there, and as token ids."""

    texts: list[str]
    tokens: TextBatch


def read_answers(path: str, tokenizer: TextTokenizer) -> AnswerList:
    """The keys of a JSON object {answer: number} in their order, or a JSON list of answers."""
    try:
        content = json.loads(Files().read(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such list of answers (evaluation.answers)") from error
    except ValueError as error:
        raise DataError(f"{path}: broken JSON; {str(error)[:200]}; allowed: {{answer: number}} or a list") from error
    texts = list(content) if isinstance(content, dict | list) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{path}: not a list of answers; allowed: {{answer: number}} or a list of strings")
    ids = tokenizer.encode_batch(texts, MAX_POSITIONS)
    if empty := [text for text, own in zip(texts, ids, strict=True) if len(own) < 3]:
        raise DataError(f"{path}: the answer {empty[0]!r} has no words")
    return AnswerList(texts, pad_texts(ids, tokenizer.pad_id))
