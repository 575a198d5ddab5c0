"""A16: a text with its two images (NLVR2, MaRVL): the text tower, twelve fusion layers in pairs and the classifier, one
padded batch after the other and our way.

Both ways get the same image tokens and start from the token ids; no image belongs to two texts, so nothing is shared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench import plain
from bench.common import Options, Result, agree, caption_lengths, histogram, interleaved, rates
from models.model import Model
from utils.config import build

MEAN_LENGTH, LONGEST, BATCH = 22, 40, 8  # tokens of NLVR2's sentences, which the original pads to a batch's longest
NUM_IMAGE_TOKENS = 145  # Swin at 384 pixels
TOLERANCE = 1e-4


def make_model(is_small: bool) -> Model:
    """CCLM-base for NLVR2, or a tiny one."""
    text = {"name": "bert"}
    if is_small:
        text |= {"vocab_size": 200, "width": 32, "num_layers": 1, "num_heads": 2, "mlp_width": 64}
    image = {"name": "vit", "image_size": 32, "patch_size": 16, "width": 32 if is_small else 1024, "num_layers": 1}
    tree = {
        "image_encoder": image | {"num_heads": 2},  # stands for the tower, whose tokens are made up
        "text_encoder": text,
        "text_fusion": {"num_layers": 2 if is_small else 6, "num_images": 2},
        "classifier": {"num_classes": 2},
        "projections": "none",
        "has_match_head": False,
    }
    torch.manual_seed(0)
    return Model(build(Model.Config, tree)).eval().requires_grad_(False)


def padded_logits(model: Model, ids: Tensor, lengths: list[int], left: Tensor, right: Tensor) -> Tensor:
    """Logits (T, 2) batch by batch; ids (T, L), left and right (T, N, V)."""
    found = []
    for rows in torch.arange(len(ids)).split(BATCH):
        of_batch = torch.tensor(lengths)[rows]
        longest = int(of_batch.max())
        mask = torch.arange(longest)[None, :] < of_batch[:, None]
        hidden = plain.encode_text(model.text_encoder, ids[rows, :longest], mask)
        found.append(model.classifier(plain.fuse(model, hidden, mask, left[rows], right[rows])[:, 0]))
    return torch.cat(found)


def run(options: Options) -> list[Result]:
    """Row A16."""
    model, count = make_model(options.is_small), 16 if options.is_small else 32
    config = model.config.text_encoder
    lengths = caption_lengths(count, MEAN_LENGTH, LONGEST)
    ids = torch.randint(4, config.vocab_size, (count, LONGEST))
    images = torch.randn(2 * count, NUM_IMAGE_TOKENS, model.image_encoder.width)
    left, right = images.split(count)

    @torch.inference_mode()
    def plainly() -> Tensor:
        return padded_logits(model, ids, lengths, left, right)

    @torch.inference_mode()
    def ours() -> Tensor:
        texts, pairs = model.encode_text(ids, lengths), torch.arange(2 * count).view(2, count)
        return model.class_logits(texts, model.project_images(images), pairs)

    words = agree(ours(), plainly(), TOLERANCE, "logits")
    seconds = interleaved({"plain": plainly, "ours": ours}, options.repeats)
    what = f"{count} texts with two images of {NUM_IMAGE_TOKENS} tokens each, fp32"
    notes = [f"A16: {histogram(lengths)}; the plain way pads to the longest of {BATCH}"]
    return [rates("A16", what, words, (count, "texts"), (seconds["plain"], seconds["ours"]), notes=notes)]


ROWS = {"A16": run}
