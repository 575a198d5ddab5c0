import torch

from objectives.matching import HardNegativeMatching, draw, match_loss, negative_weights
from objectives.step import Step, positive_text_weights
from tests.tiny import build_model, make_batch


def make_step(num_images: int, lengths: list[int]) -> Step:
    model, batch = build_model(), make_batch(lengths, num_images)
    return Step(model, batch, model.encode_image(batch.images), model.encode_text(batch.texts.ids, batch.texts.lengths))


def test_negatives_never_show_the_same_picture():
    step = make_step(4, [3, 4, 5, 2, 3, 4, 5, 2])
    step.batch.image_id[2] = step.batch.image_id[0]
    for _ in range(20):
        weights = negative_weights(step.similarity, step.positive_text, step.batch.image_id, step.text_id)
        image, has_image = draw(weights.image)
        text, has_text = draw(weights.text)
        assert has_image.all() and has_text.all()
        assert (step.batch.image_id[image] != step.batch.image_id).all()
        assert (step.text_id[text] != step.batch.image_id).all()


def test_batch_of_one_picture_counts_its_positive_pair_alone():
    torch.manual_seed(0)
    step = make_step(1, [3, 4])
    loss = HardNegativeMatching(HardNegativeMatching.Config())(step)
    assert torch.isfinite(loss)
    logits = torch.tensor([[0.0, 1.0], [5.0, 0.0], [5.0, 0.0]])
    only_positive = match_loss(logits, torch.tensor([True, False, False]))
    assert only_positive == torch.nn.functional.cross_entropy(logits[:1], torch.tensor([1]))


def test_positive_captions_are_the_image_s_own():
    step = make_step(3, [3, 4, 5, 2, 3, 4])
    for choice in ("uniform", "probability", "similarity"):
        own = step.batch.image_of_text[None, :] == torch.arange(3)[:, None]
        weights = positive_text_weights(step.similarity, own, choice)
        assert (weights[~own] == 0).all() and (weights[own] > 0).all()
    assert (step.batch.image_of_text[step.positive_text] == torch.arange(3)).all()
