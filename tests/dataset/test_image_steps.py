"""Steps that draw: colours, blur, erased rectangles; each against what it is made of."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter
from torchvision.transforms.functional import adjust_hue

from dataset.decode import open_image
from dataset.erasing import ErasingConfig, erase
from dataset.image_steps import ImageSteps, turn_hue

SIZE = 32


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def finish(image, seed=0, **settings):
    packed = io.BytesIO()
    image.save(packed, "PNG")
    steps = ImageSteps(ImageSteps.Config(resize=SIZE, **settings), SIZE)
    return steps.finish(open_image(packed.getvalue()), np.random.default_rng(seed))


@pytest.mark.parametrize("angle", [-0.2, 0.07, 0.5])
def test_a_hue_is_turned_as_torchvision_does(image, angle):
    assert np.array_equal(np.asarray(turn_hue(image, angle)), np.asarray(adjust_hue(image, angle)))


def test_distortion_of_no_strength_is_grey_one_time_in_five(image):
    options = {"steps": ["resize", "color_distortion"], "strength": 0.0}
    found = [finish(image, seed, **options) for seed in range(60)]
    is_grey = [bool((pixels == pixels[:1]).all()) for pixels in found]
    assert 4 <= sum(is_grey) <= 22
    plain = finish(image, steps=["resize"])
    assert all(np.array_equal(pixels, plain) for pixels, grey in zip(found, is_grey) if not grey)
    distorted = [finish(image, seed, **options | {"strength": 1.0}) for seed in range(3)]
    assert len({pixels.tobytes() for pixels in distorted}) == 3


def test_a_blur_of_one_radius_is_pillows(image):
    options = {"steps": ["resize", "gaussian_blur"], "blur_probability": 1.0, "blur_radius": [1.5, 1.5]}
    expected = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5))).transpose(2, 0, 1)
    assert np.array_equal(finish(image, **options), expected)
    assert np.array_equal(finish(image, **options | {"blur_probability": 0.0}), finish(image, steps=["resize"]))


def test_erased_rectangles_are_within_the_areas_and_the_rest_stays():
    pixels = np.full((3, 200, 100), 7, np.uint8)
    generator = np.random.default_rng(1)
    shares = []
    for _ in range(100):
        changed = (erase(pixels, ErasingConfig(1.0, "const"), generator) != 7).all(axis=0)
        rows, columns = changed.any(axis=1), changed.any(axis=0)
        assert changed.sum() == rows.sum() * columns.sum()  # one rectangle
        shares.append(changed.mean())
    assert 0.015 < min(shares) < 0.06 and 0.25 < max(shares) < 0.35


def test_erased_pixels_are_normal_after_normalisation():
    config = ErasingConfig(1.0, "pixel")
    pixels = erase(np.zeros((3, 400, 400), np.uint8), config, np.random.default_rng(0))
    inside = pixels[:, (pixels > 0).any(axis=0)] / 255  # (3, n)
    mean, std = (np.array(values)[:, None] for values in (config.mean, config.std))
    normal = (inside - mean) / std
    assert np.abs(normal.mean(axis=1)).max() < 0.05 and np.abs(normal.std(axis=1) - 1).max() < 0.06


def test_how_often_is_erased():
    pixels, generator = np.full((3, 20, 20), 7, np.uint8), np.random.default_rng(0)
    found = [bool((erase(pixels, ErasingConfig(0.25), generator) != 7).any()) for _ in range(400)]
    assert 70 < sum(found) < 130


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"strength": -1}, "strength must not be negative"), ({"blur_radius": [2, 1]}, "blur_radius must be two numbers")],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageSteps.Config(**settings)
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\]"):
        ErasingConfig(2.0)
