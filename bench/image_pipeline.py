"""A11: pictures per second of one core through the pre-training transform, from JPEG bytes to what the batch holds.

Plain: Pillow decodes and crops with bicubic resize, the host normalises floats, as in the originals. Ours: simplejpeg
decodes at a DCT scale where the crop allows, torch resizes 8-bit pixels with antialiasing, the batch stays 8-bit.
Crop box, flip and augmentations are drawn alike.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from PIL import Image

from bench.common import Disagreement, Options, Result, interleaved, rate, ratio
from dataset.augment import GREY, OPERATIONS, SHARPEN_KERNEL, apply_operation, magnitude, warp_matrix
from dataset.transforms import AugmentedCrop, draw_crop

SIZES = ((640, 480), (500, 375))
IMAGE_SIZE = 224
MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)[:, None, None]
STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)[:, None, None]
# Mean over pictures of the mean difference, in grey levels: what decoding at a DCT scale costs. Equal boxes at full
# scale differ by less than 0.1.
MAX_DIFFERENCE = 3.0


def run(options: Options) -> list[Result]:
    """Row A11, one thread, the two ways in turn."""
    pictures = [encode_photo(SIZES[k % 2], seed=k) for k in range(4 if options.is_small else 60)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        difference = compare(pictures)
        ways = {"plain": lambda: transform_all(plain, pictures), "ours": lambda: transform_all(ours, pictures)}
        seconds = interleaved(ways, 1 if options.is_small else options.repeats)
    finally:
        torch.set_num_threads(threads)
    kilobytes = sum(map(len, pictures)) / len(pictures) / 1000
    return [
        Result(
            row="A11",
            what="decode, crop 0.2-1, flip, 2 of 10 augmentations, 224 px, one core",
            plain=rate(len(pictures), seconds["plain"], "pictures"),
            ours=rate(len(pictures), seconds["ours"], "pictures"),
            ratio=f"{ratio(seconds['plain'], seconds['ours']):.2f}x",
            floor="1.8x",
            goal="2.4x",
            agreement=f"same boxes, operations bit for bit; pictures within {difference:.1f} of 255 on average",
            notes=[f"A11: made-up photographs of 640 x 480 and 500 x 375 pixels, {kilobytes:.0f} KB each"],
        )
    ]


def plain(data: bytes, config: AugmentedCrop.Config, generator: np.random.Generator) -> np.ndarray:
    """(3, S, S) float32, normalised."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    box = draw_crop(image.height, image.width, config.scale, generator)
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    image = image.crop(corners).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    if generator.random() < config.flip_prob:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.array(image)
    for name, sign in draw_operations(config, generator):
        pixels = plain_operation(pixels, name, config.level, sign)
    return (pixels.transpose(2, 0, 1).astype(np.float32) / 255 - MEAN) / STD


def draw_operations(config: AugmentedCrop.Config, generator: np.random.Generator) -> list[tuple[str, int]]:
    """The operations to carry out with their signs, from the same draws as `random_augment`."""
    count = config.num_operations
    picks = generator.integers(len(config.operations), size=count)
    is_done, is_negative = generator.random(count) < 0.5, generator.random(count) < 0.5
    return [(config.operations[k], -1 if minus else 1) for k, done, minus in zip(picks, is_done, is_negative) if done]


def plain_operation(image: np.ndarray, name: str, level: float, sign: int) -> np.ndarray:
    """One augmentation as a table per channel, float arithmetic or a warp."""
    if name == "Identity":
        return image
    if name == "AutoContrast":
        return cv2.merge([stretch(channel) for channel in cv2.split(image)])
    if name == "Equalize":
        return cv2.merge([flatten(channel) for channel in cv2.split(image)])
    amount = magnitude(name, level)
    if name == "Brightness":
        return (np.arange(256, dtype=np.float32) * amount).clip(0, 255).astype(np.uint8)[image]
    if name == "Sharpness":
        blurred = cv2.filter2D(image, -1, SHARPEN_KERNEL).astype(np.float32)[1:-1, 1:-1]
        sharp = image.astype(np.float32)
        sharp[1:-1, 1:-1] = blurred + amount * (sharp[1:-1, 1:-1] - blurred)
        return sharp.astype(np.int32).astype(np.uint8)
    matrix = warp_matrix(name, sign * amount, *image.shape[:2])
    return cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR, borderValue=GREY)


def stretch(channel: np.ndarray) -> np.ndarray:
    low, high = int(channel.min()), int(channel.max())
    if high <= low:
        return channel
    scale = 255 / (high - low)
    return (np.arange(256) * scale + (-low % 256) * scale).clip(0, 255).astype(np.uint8)[channel]


def flatten(channel: np.ndarray) -> np.ndarray:
    counts = cv2.calcHist([channel], [0], None, [256], [0, 256]).reshape(-1)
    step = counts[counts != 0][:-1].sum() // 255
    if step == 0:
        return channel
    below = np.concatenate([[step // 2], counts[:-1]])
    return (np.cumsum(below) // step).clip(0, 255).astype(np.uint8)[channel]


def ours(data: bytes, config: AugmentedCrop.Config, generator: np.random.Generator) -> np.ndarray:
    """(3, S, S) uint8; the model normalises."""
    return AugmentedCrop(config, IMAGE_SIZE)(data, generator)


def transform_all(way, pictures: Sequence[bytes]) -> None:
    config = AugmentedCrop.Config()
    for k, data in enumerate(pictures):
        way(data, config, np.random.default_rng([0, 0, k]))


def compare(pictures: Sequence[bytes]) -> float:
    """Mean difference of the two ways in grey levels; Disagreement if the boxes or operations cannot be the same."""
    check_operations(AugmentedCrop.Config().level)
    config, differences = AugmentedCrop.Config(), []
    for k, data in enumerate(pictures):
        expected = plain(data, config, np.random.default_rng([0, 0, k])) * STD + MEAN
        found = ours(data, config, np.random.default_rng([0, 0, k]))
        differences.append(float(np.abs(found - expected * 255).mean()))
    if max(differences) > 8 * MAX_DIFFERENCE or np.mean(differences) > MAX_DIFFERENCE:
        raise Disagreement(
            f"pictures differ by {np.mean(differences):.2f} grey levels, the worst by {max(differences):.2f}"
        )
    return float(np.mean(differences))


def check_operations(level: float) -> None:
    """Every augmentation gives the same bits both ways."""
    image = np.random.default_rng(0).integers(20, 230, (64, 80, 3)).astype(np.uint8)
    for name in OPERATIONS:
        for sign in (-1, 1):
            if not np.array_equal(plain_operation(image, name, level, sign), apply_operation(image, name, level, sign)):
                raise Disagreement(f"{name} differs")


def encode_photo(size: tuple[int, int], seed: int) -> bytes:
    """A JPEG of about 43 KB with detail on all scales, like a photograph."""
    width, height = size
    generator = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for scale in (1, 2, 4, 8, 16, 32, 64, 128):
        noise = generator.standard_normal((height // scale + 2, width // scale + 2, 3)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * scale**0.55
    image -= image.min()
    packed = io.BytesIO()
    Image.fromarray((image * 255 / image.max()).astype(np.uint8)).save(packed, "JPEG", quality=85)
    return packed.getvalue()


ROWS = {"A11": run}
