"""Chinese-CLIP's augmentation agrees with timm's operations, and draws from the sample's generator only."""

import io

import numpy as np
import pytest
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP, auto_augment_policy_original

from dataset.auto_augment import POLICIES
from dataset.clip_augment import CLIP_MEAN, ClipAugment, apply_operation
from models.image_encoder import CLIP_MEAN as MEAN_OF_PIXELS

TIMM_NAMES = {"posterize": "PosterizeOriginal", "autocontrast": "AutoContrast"}
HPARAMS = {"img_mean": CLIP_MEAN, "translate_const": 10, "interpolation": Image.Resampling.BICUBIC}


def picture(size=(40, 28), mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def png(image):
    packed = io.BytesIO()
    image.save(packed, "PNG")
    return packed.getvalue()


def timm_name(name):
    return TIMM_NAMES.get(name, name[0].upper() + name[1:])


def test_the_policies_are_timm_s():
    theirs = [[(op.prob, op.name, op.magnitude) for op in policy] for policy in auto_augment_policy_original(HPARAMS)]
    assert theirs == [[(p, timm_name(name), level) for p, name, level in policy] for policy in POLICIES]


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("name", "level"), sorted({(name, level) for policy in POLICIES for _, name, level in policy}))
def test_operations_are_timm_s(name, level, sign, monkeypatch):
    monkeypatch.setattr("timm.data.auto_augment._randomly_negate", lambda value: sign * value)
    argument = LEVEL_TO_ARG[timm_name(name)]
    arguments = argument(level, HPARAMS) if argument is not None else ()
    settings = {"fillcolor": CLIP_MEAN, "resample": Image.Resampling.BICUBIC}
    expected = NAME_TO_OP[timm_name(name)](picture(), *arguments, **settings)
    assert np.array_equal(np.asarray(apply_operation(picture(), name, level, sign)), np.asarray(expected))


def test_the_fill_is_the_mean_of_pixels():
    assert tuple(min(255, round(255 * value)) for value in MEAN_OF_PIXELS) == CLIP_MEAN


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_every_mode_becomes_a_square_and_a_seed_repeats_it(mode):
    transform = ClipAugment(ClipAugment.Config(), 24)
    one, other = (transform(png(picture(mode=mode)), np.random.default_rng(3)) for _ in range(2))
    assert one.shape == (3, 24, 24) and one.dtype == np.uint8 and np.array_equal(one, other)
    draws = {transform(png(picture(mode=mode)), np.random.default_rng(seed)).tobytes() for seed in range(8)}
    assert len(draws) > 4


def test_scale_must_be_two_shares():
    with pytest.raises(ValueError, match="scale must be two shares"):
        ClipAugment.Config(scale=[0.9])
