"""A14: re-ranking with R2D2's two fusion stacks at ViT-L size, one padded query at a time, and our way.

Both ways get the same encoded texts and images; only the stacks are timed.
Letters: M images, T texts, L text tokens, N image tokens, V and D widths of image and text tokens.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench import plain
from bench.common import Options, Result, agree, caption_lengths, histogram, interleaved, rate, ratio
from models.model import Model
from models.text_encoder import TextState
from tasks.rerank import Candidates, rerank
from utils.config import build

PADDED, MEAN_LENGTH = 64, 16  # what the released program pads to; Chinese captions of Flickr30k-CNA
IMAGE_TOKENS = 257
SCORE_TOLERANCE = 1e-4


def make_model(is_small: bool) -> Model:
    """Random weights; the towers, which are not timed, have one layer."""
    image_width, width, layers = (64, 48, 2) if is_small else (1024, 768, 6)
    image = {"name": "vit", "image_size": 32, "patch_size": 32, "width": image_width, "num_layers": 1, "num_heads": 16}
    sizes = {"width": width, "mlp_width": 4 * width, "num_heads": 12, "num_layers": 1, "layer_norm_eps": 1e-12}
    text = {"name": "bert", "vocab_size": 1000, "pad_id": 0} | sizes
    stack = {"num_layers": layers}
    tree = {"image_encoder": image, "text_encoder": text, "text_fusion": stack, "image_fusion": stack}
    torch.manual_seed(0)
    return Model(build(Model.Config, tree | {"match_head": "linear"})).eval().requires_grad_(False)


@torch.inference_mode()
def one_query_at_a_time(model: Model, images: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
    """The released way: the image repeated for all padded texts, every layer at every position: scores (M, T)."""
    copies = (image.repeat(len(hidden), 1, 1) for image in images)
    return torch.stack([plain.match_probability(model, hidden, mask, tokens) for tokens in copies])


@torch.inference_mode()
def our_way(model: Model, images: Tensor, texts: TextState) -> Tensor:
    """The evaluation's own code: scores (M, T)."""
    every = torch.ones(len(images), texts.packing.num_texts, dtype=torch.bool)
    return rerank(model, lambda own: images[own], texts, Candidates(every, every), is_probability=True)


def run(options: Options) -> list[Result]:
    """A14: every image with every text."""
    num_images, num_texts, num_tokens = (2, 4, 17) if options.is_small else (2, 64, IMAGE_TOKENS)
    model = make_model(options.is_small)
    lengths = caption_lengths(num_texts, MEAN_LENGTH, PADDED)
    mask = torch.arange(PADDED)[None, :] < torch.tensor(lengths)[:, None]
    ids = torch.randint(4, 1000, mask.shape).masked_fill(~mask, 0)
    images = torch.randn(num_images, num_tokens, model.image_encoder.width)
    hidden = plain.encode_text(model.text_encoder, ids, mask)
    plain_way = partial(one_query_at_a_time, model, images, hidden, mask)
    ours = partial(our_way, model, images, model.encode_text(ids, lengths))
    words = agree(ours(), plain_way(), SCORE_TOLERANCE, "scores")
    seconds = interleaved({"plain": plain_way, "ours": ours}, options.repeats)
    return [
        Result(
            row="A14",
            what=f"two fusion stacks at {num_tokens} image tokens, fp32, {num_images * num_texts} pairs",
            plain=rate(num_images * num_texts, seconds["plain"], "pairs"),
            ours=rate(num_images * num_texts, seconds["ours"], "pairs"),
            ratio=f"{ratio(seconds['plain'], seconds['ours']):.2f}x",
            floor="2.5x",
            goal="3.5x",
            agreement=words,
            notes=[f"A14: {histogram(lengths)}; the plain way pads to {PADDED}"],
        )
    ]


ROWS = {"A14": run}
