"""Decoding, cropping, shifting; what hostile bytes become."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from bench.image_pipeline import check_operations
from dataset.augment import OPERATIONS, apply_operation, shift
from dataset.decode import MAX_PIXELS, decode_image, open_image
from dataset.files import BadRecord
from dataset.transforms import AugmentedCrop, Box, Resize, Shift, crop_and_resize, draw_crop, resize
from tests.dataset.toy import picture


def smooth(size=(640, 480)):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    packed = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(packed, "JPEG", quality=92)
    return packed.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_decoding_equals_pillow(kind):
    data = picture(size=(33, 21), kind=kind)
    assert np.array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_print_colours_become_rgb(mode):
    packed = io.BytesIO()
    Image.open(io.BytesIO(picture(size=(33, 21)))).convert(mode).save(packed, "JPEG")
    expected = np.asarray(Image.open(packed).convert("RGB"))
    assert np.array_equal(decode_image(packed.getvalue()), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_cut_files_are_bad_records(kind):
    data = picture(size=(240, 180), kind=kind)
    for share in (0.3, 0.8):
        with pytest.raises(BadRecord, match="truncated image|unreadable image"):
            decode_image(data[: int(len(data) * share)])


def test_hostile_bytes_are_bad_records():
    generator = np.random.default_rng(0)
    kinds = {kind: picture(size=(60, 40), kind=kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF")}
    for data in kinds.values():
        for _ in range(40):
            broken = bytearray(data)
            for place in generator.integers(len(data), size=6):
                broken[place] = generator.integers(256)
            try:
                assert decode_image(bytes(broken)).shape[2] == 3
            except BadRecord:
                continue
    for data in (b"", b"x", b"\xff\xd8", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        with pytest.raises(BadRecord):
            decode_image(data)


def test_decompression_bombs_are_refused_before_decoding():
    data = bytearray(picture(kind="PNG"))
    import struct
    import zlib

    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(BadRecord, match="image too large"):
        decode_image(bytes(data))
    assert 60_000**2 > MAX_PIXELS


def test_scaled_decoding_keeps_enough_pixels_and_the_picture():
    data = smooth()
    encoded = open_image(data)
    assert encoded.decode(shrink=2.5).shape == (240, 320, 3)
    assert encoded.decode(shrink=1.9).shape == (480, 640, 3)
    box = Box(8, 32, 448, 576)  # whole pixels at every scale
    whole = resize(simplejpeg.decode_jpeg(data)[8:456, 32:608], 112)
    assert np.abs(crop_and_resize(encoded, box, 112).astype(int) - whole).mean() < 1.0


def test_resizing_is_pillow_s_to_one_grey_level():
    image = decode_image(smooth())
    ours = resize(image[5:400, 100:500], 64).astype(int)
    pillow = np.asarray(Image.fromarray(image[5:400, 100:500]).resize((64, 64), Image.Resampling.BICUBIC))
    assert np.abs(ours - pillow).max() <= 1


def test_evaluation_resize_is_pillow_s():
    data = smooth()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((48, 48), Image.Resampling.BICUBIC))
    assert np.array_equal(Resize(Resize.Config(), 48)(data), expected.transpose(2, 0, 1))


def test_crops_are_distributed_as_torchvision_s():
    generator = np.random.default_rng(0)
    image = Image.new("RGB", (50, 40))
    ours = np.array([draw_crop(40, 50, (0.2, 1.0), generator) for _ in range(4000)], float)
    theirs = np.array([RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)], float)
    assert np.abs(ours.mean(axis=0) - theirs.mean(axis=0)).max() < 0.8
    assert np.abs(ours.std(axis=0) - theirs.std(axis=0)).max() < 0.8


@pytest.mark.parametrize("height, width", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_odd_shapes_are_cropped(height, width):
    for seed in range(20):
        box = draw_crop(height, width, (0.2, 1.0), np.random.default_rng(seed))
        assert box.height >= 1 and box.width >= 1
        assert box.top + box.height <= height and box.left + box.width <= width
    data = picture(size=(width * 3, height * 3))
    assert AugmentedCrop(AugmentedCrop.Config(), 16)(data, np.random.default_rng(0)).shape == (3, 16, 16)


def test_training_transform_depends_on_its_generator_only():
    crop, data = AugmentedCrop(AugmentedCrop.Config(), 32), smooth()
    first, second, other = (crop(data, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.dtype == np.uint8 and first.shape == (3, 32, 32)
    assert np.array_equal(first, second) and not np.array_equal(first, other)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_keep_shape_and_kind(name):
    for shape in ((1, 1, 3), (2, 5, 3), (30, 20, 3)):
        image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        changed = apply_operation(image, name, 7, -1)
        assert changed.shape == shape and changed.dtype == np.uint8


def test_whole_shifts_equal_the_warp():
    image = np.random.default_rng(0).integers(0, 256, (12, 9, 3)).astype(np.uint8)
    assert np.array_equal(apply_operation(image, "TranslateX", 7, 1)[:, :2], image[:, 7:])
    assert np.array_equal(shift(image, 2, -3, (1, 2, 3))[2:, :6], image[:-2, 3:])
    assert (shift(image, 20, 0, (1, 2, 3)) == np.array([1, 2, 3])).all()


def test_shift_moves_by_at_most_its_limit_and_fills_the_border():
    plain = resize(decode_image(picture(size=(32, 32))), 32).transpose(2, 0, 1)
    moved = Shift(Shift.Config(max_shift=3, fill=[9, 9, 9]), 32)
    places = set()
    for seed in range(60):
        image = moved(picture(size=(32, 32)), np.random.default_rng(seed))
        inner = image[:, 3:29, 3:29]
        found = [
            (dy, dx)
            for dy in range(-3, 4)
            for dx in range(-3, 4)
            if np.array_equal(inner, plain[:, 3 - dy : 29 - dy, 3 - dx : 29 - dx])
        ]
        places.update(found[:1])
        assert found
    assert len(places) > 20


@pytest.mark.parametrize("level", [0, 3, 5.5, 10])
def test_operations_agree_with_plain_ones_at_every_level(level):
    check_operations(level)
