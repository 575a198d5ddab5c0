"""Teachers follow their originals, get no gradient and stay out of the way."""

import pytest
import torch
from torch import nn

from models.momentum import MomentumTowers, Teacher
from models.packing import pack
from tests.tiny import build_model, make_texts


def changed(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)


def test_every_update_goes_a_step_of_the_average():
    original = nn.Linear(2, 3)
    teacher, start = Teacher({"map": original}, 0.9), original.weight.detach().clone()
    changed(original)
    for _ in range(3):
        teacher.update()
    torch.testing.assert_close(teacher["map"].weight, start + 1 - 0.9**3)


def test_a_teacher_starts_again_from_its_original():
    original = nn.Linear(2, 3)
    teacher = Teacher({"map": original}, 0.9)
    changed(original)
    teacher.reset()
    assert torch.equal(teacher["map"].weight, original.weight)


def test_a_teacher_s_weights_are_saved_and_not_trained_and_its_originals_are_not_its_own():
    teacher = Teacher({"map": nn.Linear(2, 3)}, 0.9)
    assert set(teacher.state_dict()) == {"copies.map.weight", "copies.map.bias"}
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_with_momentum_1_never_changes_and_is_not_saved():
    original = nn.Linear(2, 3)
    teacher = Teacher({"map": original}, 1.0)
    start = teacher["map"].weight.clone()
    changed(original)
    teacher.update()
    assert torch.equal(teacher["map"].weight, start) and not teacher.state_dict()
    assert teacher.to("meta")["map"].weight.is_meta


@pytest.mark.parametrize("has_dropout", [False, True])
def test_a_teacher_drops_out_only_if_asked_to(has_dropout):
    teacher = Teacher({"drop": nn.Dropout()}, 0.5, has_dropout=has_dropout)
    assert teacher.train()["drop"].training is has_dropout
    assert not teacher.eval()["drop"].training


def test_a_momentum_outside_0_and_1_is_refused():
    with pytest.raises(ValueError, match="momentum must be in 0 ... 1, found 1.5"):
        Teacher({}, 1.5)
    with pytest.raises(ValueError, match="less than 1, found 1"):
        MomentumTowers.Config(momentum=1.0)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_momentum_towers_begin_as_the_model_encodes(is_frozen):
    tree = {"name": "vit", "image_size": 32, "patch_size": 16, "width": 24, "num_layers": 1, "num_heads": 2}
    model = build_model(image_encoder=tree | {"is_frozen": is_frozen}).eval()
    towers = MomentumTowers(MomentumTowers.Config(), model)
    assert ("image_encoder" in towers.towers) is not is_frozen
    ids, mask = make_texts([5, 3, 7])
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    images, packing = model.encode_image(pixels), pack(mask.sum(1).tolist())
    texts = model.encode_text(ids, packing)
    found = towers(images.tokens if is_frozen else pixels, ids, packing)
    torch.testing.assert_close(found.image, images.embed)
    torch.testing.assert_close(found.text, texts.embed)
    torch.testing.assert_close(found.pooled_text, model.text_encoder.pool(texts))


def test_pooled_texts_alone_are_those_of_all_tokens():
    encoder = build_model().text_encoder.eval()
    ids, mask = make_texts([4, 9, 2, 4])
    packing = pack(mask.sum(1).tolist())
    torch.testing.assert_close(encoder.encode_pooled(ids, packing), encoder.pool(encoder.encode_packed(ids, packing)))
