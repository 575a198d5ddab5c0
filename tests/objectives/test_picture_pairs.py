import torch
import torch.nn.functional as F

from dataset.batch import TextBatch
from objectives.picture_pairs import NEITHER, PicturePairs, arrange, draw_pairs, pair_weights
from objectives.step import Step
from tests.tiny import build_model, make_texts

LENGTHS = [5, 3, 6, 2]


def make_step(num_images=4):
    parts = {"projections": "image", "has_match_head": False, "classifier": {"num_classes": 3, "num_layers": 1}}
    model = build_model(text_fusion={"num_layers": 2, "num_images": 2}, has_masked_language_head=False, **parts)
    torch.manual_seed(1)
    ids, _ = make_texts(LENGTHS[:num_images])
    images = model.encode_image(torch.randn(num_images, 3, 32, 32))
    texts = model.encode_text(ids, TextBatch(ids, LENGTHS[:num_images]).lengths)
    return Step(model, None, images, texts)


def test_pictures_are_drawn_by_likeness_and_never_the_own_one():
    torch.manual_seed(0)
    embed = F.normalize(torch.randn(6, 8), dim=1)
    weights = pair_weights(embed, 0.07)
    own = torch.arange(6)
    counts = torch.zeros(6, 6)
    for _ in range(3000):
        pairs = draw_pairs(weights)
        assert bool((pairs.images[0] != pairs.images[1]).all())
        has_own = (pairs.images == own).any(dim=0)
        assert torch.equal(has_own, pairs.label != NEITHER)
        other = torch.where(pairs.images[0] == own, pairs.images[1], pairs.images[0])
        counts[own[has_own], other[has_own]] += 1
    expected = weights / weights.sum(dim=1, keepdim=True)
    assert (counts / counts.sum(dim=1, keepdim=True) - expected).abs().max() < 0.05


def test_the_label_says_which_picture_is_the_text_s_own():
    label, own, drawn = torch.tensor([0, 1, 2]), torch.arange(3), torch.tensor([[1, 2], [0, 2], [1, 0]])
    assert arrange(label, own, drawn).images.T.tolist() == [[0, 1], [0, 1], [1, 0]]


def test_pictures_as_unlike_as_can_be_can_still_be_drawn():
    embed = torch.eye(5).index_select(0, torch.tensor([0, 1, 2, 3, 4]))
    weights = pair_weights(embed, 0.001)  # everything but the diagonal underflows
    assert float(weights.max()) == 0
    assert bool((draw_pairs(weights).images[0] != draw_pairs(weights).images.flip(0)[0]).any())


def test_the_projection_gets_no_gradient_and_everything_else_does():
    step = make_step()
    loss = PicturePairs(PicturePairs.Config())(step)
    loss.backward()
    without = {name for name, p in step.model.named_parameters() if p.grad is None}
    assert without == {"image_projection.weight", "image_projection.bias"}


def test_two_pictures_add_nothing_but_a_gradient_of_zero():
    step = make_step(num_images=2)
    loss = PicturePairs(PicturePairs.Config())(step)
    loss.backward()
    assert loss.item() == 0 and float(step.model.classifier.weight.grad.abs().max()) == 0
