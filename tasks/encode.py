"""Every image, region and text of a batch through the towers once: the `Step` that objectives read."""

from __future__ import annotations

import torch

from dataset.batch import ImageTextBatch, LabelledBatch, TextPairBatch
from models.dual_encoder import ImageState
from models.model import Model
from models.packing import pack
from models.text_encoder import TextState
from objectives.step import Mix, PositiveChoice, RegionStep, Step, TextPairStep, TwoCaptionStep


def encode_step(
    model: Model,
    batch: ImageTextBatch | LabelledBatch | TextPairBatch,
    positive_choice: PositiveChoice,
    mix: Mix | None = None,
    *,
    reads_masked: bool = False,
) -> Step:
    """The step of a batch of images, regions or parallel texts.

    positive_choice: which of several captions matching and masked words see; `first` makes two captions per image a
    step in which the second meets the contrastive losses only. mix: mixup of a batch of images with captions.
    reads_masked: captions are encoded with their masks.
    """
    if isinstance(batch, TextPairBatch):
        return _encode_pairs(model, batch)
    if isinstance(batch, ImageTextBatch) and batch.regions is not None:
        return _encode_regions(model, batch)
    mixes_images = mix is not None and mix.is_image
    pixels = mix(model.image_encoder.normalise(batch.images)) if mixes_images else batch.images
    images = model.encode_image(pixels)
    ids = batch.masked.ids if reads_masked else batch.texts.ids
    texts = model.encode_text(ids, batch.texts.lengths, None if mixes_images else mix)
    if positive_choice == "first" and batch.num_texts != batch.num_images:
        return _with_two_captions(model, batch, images, texts)
    return Step(model, batch, images, texts, positive_choice, mix, reads_masked=reads_masked)


def _encode_regions(model: Model, batch: ImageTextBatch) -> RegionStep:
    regions = batch.regions
    images = model.encode_regions(batch.images, regions.image_of_region, regions.mask)
    texts = model.encode_text(batch.texts.ids, batch.texts.lengths)
    return RegionStep(
        model, batch, images, texts, row_id=batch.image_id
    )  # a region taken twice is no negative of itself


def _encode_pairs(model: Model, batch: TextPairBatch) -> TextPairStep:
    first, second = (model.encode_text(texts.ids, texts.lengths) for texts in (batch.first, batch.second))
    pairs = None if batch.masked_lengths is None else pack(batch.masked_lengths, batch.masked.ids.device)
    return TextPairStep(model, batch, first, second, pair_packing=pairs)


def _with_two_captions(model: Model, batch: ImageTextBatch, images: ImageState, texts: TextState) -> TwoCaptionStep:
    if batch.num_texts != 2 * batch.num_images:
        raise ValueError(
            f"positive_text 'first' needs one or two captions for every image; found {batch.num_texts} captions of "
            f"{batch.num_images} images"
        )
    first = torch.arange(0, batch.num_texts, 2)  # on the host, where the lengths are known
    return TwoCaptionStep(
        model,
        batch,
        images,
        texts.select(first),
        row_id=batch.image_id,
        second=texts.select(first + 1),
        captions=first.to(batch.image_id.device),
    )
