"""What the task of question answering adds: which parameters are fresh, and what counts as right."""

from types import SimpleNamespace

import pytest

from dataset.labelled import Item, LabelledSet
from dataset.vqa import Answers
from tasks.vqa import Prediction, QuestionAnswering, accuracy
from tests.tiny import build_model, model_tree


@pytest.mark.parametrize("image_width, num_fresh", [(24, 4), (16, 0)])
def test_only_keys_and_values_of_another_width_are_fresh(image_width, num_fresh):
    image = model_tree()["image_encoder"] | {"width": image_width}
    model = build_model(image_encoder=image, answer_decoder={"num_layers": 2})
    task = QuestionAnswering(model, {}, None, SimpleNamespace(headline="accuracy"))
    fresh = task.fresh_parameters()
    assert len(fresh) == num_fresh and fresh <= {name for name, _ in task.named_parameters()}
    assert all(".cross_attention.key_value." in name and "answer_decoder" in name for name in fresh)


def test_an_answer_is_right_if_it_equals_one_of_the_question_s_letter_by_letter():
    right = [("yes",), ("blue", "dark blue"), ("no",), ("no",)]
    items = [Item([0, 2], Answers(texts, str(k)), k, ()) for k, texts in enumerate(right)]
    questions = LabelledSet("en", items, 1, 0, None)
    predictions = [Prediction(text, 1.0) for text in ("yes", "dark blue", "No", "not")]
    assert accuracy(predictions, questions) == 50.0
