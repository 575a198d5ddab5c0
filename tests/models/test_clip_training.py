"""What CLIP-like training asks of the towers: masked patches, layers computed twice, a log-scale."""

import pytest
import torch

from models.heads import LogScale, Temperature
from models.patch_masking import PatchMasking
from tests.tiny import build_model, make_batch, model_tree
from utils.config import build

CLIP_TOWER = {"name": "vit", "image_size": 32, "patch_size": 16, "width": 24, "num_layers": 2, "num_heads": 2}


@pytest.mark.parametrize("num_patches, ratio, kept", [(25, 0.8, 4), (100, 0.9, 9), (196, 0.5, 98)])
def test_the_number_of_kept_patches_is_cut_off_as_in_the_recipes(num_patches, ratio, kept):
    masking = PatchMasking(ratio).train()
    assert masking.num_kept(num_patches) == kept
    assert masking(torch.zeros(2, 1 + num_patches, 3)).shape == (2, 1 + kept, 3)


def test_kept_patches_are_the_image_s_own_and_differ_between_images():
    x = torch.arange(2 * 17).float().view(2, 17, 1).expand(2, 17, 3)
    torch.manual_seed(0)
    kept = PatchMasking(0.5).train()(x)[:, :, 0]
    assert kept[0, 0] == 0 and kept[1, 0] == 17
    assert set(kept[0, 1:].tolist()) < set(range(1, 17)) and set(kept[1, 1:].tolist()) < set(range(18, 34))
    assert kept[0, 1:].tolist() != (kept[1, 1:] - 17).tolist()


def test_nothing_is_masked_outside_of_training():
    model = build_model(image_encoder=CLIP_TOWER | {"mask_ratio": 0.5})
    images = torch.randn(2, 3, 32, 32)
    assert model.train().encode_image(images).tokens.shape[1] == 3
    assert model.eval().encode_image(images).tokens.shape[1] == 5


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_mask_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match="mask_ratio must be in"):
        build_model(image_encoder=CLIP_TOWER | {"mask_ratio": ratio})


def test_recomputed_layers_give_the_same_gradients_with_dropout():
    def gradients(recomputes: bool):
        text = model_tree()["text_encoder"] | {"recomputes_layers": recomputes}
        model = build_model(image_encoder=CLIP_TOWER | {"recomputes_layers": recomputes}, text_encoder=text).train()
        batch = make_batch([5, 7, 3, 7], 2)
        torch.manual_seed(3)
        image = model.encode_image(batch.images).embed
        text = model.encode_text(batch.texts.ids, batch.texts.lengths).embed
        (image @ text.T).square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    kept, recomputed = gradients(False), gradients(True)
    assert kept.keys() == recomputed.keys()
    assert all(torch.allclose(value, recomputed[name], atol=1e-6) for name, value in kept.items())


def log_scale(**changes) -> LogScale:
    return Temperature.build(
        build(Temperature.Config, {"stored_as": "log_scale", "minimum": 0.01, "maximum": 1.0} | changes)
    )


def test_the_log_scale_is_the_logarithm_of_what_similarities_are_multiplied_by():
    module = log_scale(initial=0.07)
    assert module.log_scale.item() == pytest.approx(2.6593, abs=1e-4)
    assert module().item() == pytest.approx(0.07)


def test_the_log_scale_is_clamped_after_a_step_and_not_before():
    module = log_scale().train()
    module.log_scale.data.fill_(4.8)
    assert module().item() == pytest.approx(0.00823, abs=1e-5)
    module.after_step()
    assert module().item() == pytest.approx(0.01)
    module.log_scale.data.fill_(-3.0)
    module.after_step()
    assert module().item() == pytest.approx(1.0)
