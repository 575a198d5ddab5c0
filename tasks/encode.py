"""Every image, region and text of a batch through the towers once: the `Step` that objectives read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dataset.batch import ImageTextBatch, LabelledBatch, TextPairBatch
from models.dual_encoder import ImageState
from models.model import Model
from models.packing import pack
from models.text_encoder import TextState
from objectives.step import Mix, PositiveChoice, RegionStep, Step, TextPairStep, TwoCaptionStep


@dataclass
class Embedded:
    """Images or texts of which a step reads nothing but their unit embeddings (n, E)."""

    embed: Tensor


def encode_step(
    model: Model,
    batch: ImageTextBatch | LabelledBatch | TextPairBatch,
    positive_choice: PositiveChoice,
    mix: Mix | None = None,
    *,
    reads_masked: bool = False,
    joins_masked: bool = False,
    reads_tokens: bool = True,
) -> Step:
    """The step of a batch of images, regions or parallel texts.

    positive_choice: which of several captions matching and masked words see; `first` makes two captions per image a
    step in which the second meets the contrastive losses only. mix: mixup of a batch of images with captions.
    reads_masked: captions are encoded with their masks. joins_masked: masked texts, where it is known beforehand which
    ones will be read, go through the text tower in one pass with the others. Without reads_tokens images and captions
    have nothing but their embeddings.
    """
    if isinstance(batch, TextPairBatch):
        return _encode_pairs(model, batch, joins_masked=joins_masked)
    if isinstance(batch, ImageTextBatch) and batch.regions is not None:
        return _encode_regions(model, batch, joins_masked=joins_masked)
    mixes_images = mix is not None and mix.is_image
    pixels = mix(model.image_encoder.normalise(batch.images)) if mixes_images else batch.images
    change = None if mixes_images else mix
    if not reads_tokens:
        images, texts = model.embed_image(pixels), model.embed_text(batch.texts.ids, batch.texts.lengths, change)
        return Step(model, batch, Embedded(images), Embedded(texts), positive_choice, mix)
    images = model.encode_image(pixels)
    if positive_choice == "first" and batch.num_texts != batch.num_images:
        return _with_two_captions(model, batch, images, change, joins_masked=joins_masked)
    masked = None
    if joins_masked and not reads_masked and batch.num_texts == batch.num_images:
        texts, masked = _encode_captions(model, batch, change)
    else:
        ids = batch.masked.ids if reads_masked else batch.texts.ids
        texts = model.encode_text(ids, batch.texts.lengths, change)
    options = {"reads_masked": reads_masked, "encoded_masked": masked}
    return Step(model, batch, images, texts, positive_choice, mix, **options)


def _encode_captions(
    model: Model, batch: ImageTextBatch, change: Mix | None, rows: Tensor | None = None
) -> tuple[TextState, TextState]:
    """All captions of a batch and, in the same pass, the masked ones in `rows` (on the host; None: all)."""
    lengths, masked_ids = batch.texts.lengths, batch.masked.ids
    if rows is not None:
        masked_ids, lengths = masked_ids[rows], [lengths[row] for row in rows.tolist()]
    texts, masked = model.text_encoder.encode_all([(batch.texts.ids, batch.texts.lengths), (masked_ids, lengths)])
    return model.embed_encoded(texts, change), masked


def _encode_regions(model: Model, batch: ImageTextBatch, *, joins_masked: bool) -> RegionStep:
    regions, masked = batch.regions, None
    images = model.encode_regions(batch.images, regions.image_of_region, regions.mask)
    if joins_masked:
        texts, masked = _encode_captions(model, batch, None)
    else:
        texts = model.encode_text(batch.texts.ids, batch.texts.lengths)
    # With row ids a region taken twice is no negative of itself.
    return RegionStep(model, batch, images, texts, encoded_masked=masked, row_id=batch.image_id)


def _encode_pairs(model: Model, batch: TextPairBatch, *, joins_masked: bool) -> TextPairStep:
    sets = [(batch.first.ids, batch.first.lengths), (batch.second.ids, batch.second.lengths)]
    if joins_masked:
        sets.append((batch.masked.ids, batch.masked_lengths or batch.first.lengths))
    first, second, *masked = model.text_encoder.encode_all(sets)
    pairs = None if batch.masked_lengths is None else pack(batch.masked_lengths, batch.masked.ids.device)
    options = {"encoded_masked": masked[0] if masked else None, "pair_packing": pairs}
    return TextPairStep(model, batch, model.embed_encoded(first), model.embed_encoded(second), **options)


def _with_two_captions(
    model: Model, batch: ImageTextBatch, images: ImageState, change: Mix | None, *, joins_masked: bool
) -> TwoCaptionStep:
    if batch.num_texts != 2 * batch.num_images:
        raise ValueError(
            f"positive_text 'first' needs one or two captions for every image; found {batch.num_texts} captions of "
            f"{batch.num_images} images"
        )
    first = torch.arange(0, batch.num_texts, 2)  # on the host, where the lengths are known
    masked = None
    if joins_masked:
        texts, masked = _encode_captions(model, batch, change, first)
    else:
        texts = model.encode_text(batch.texts.ids, batch.texts.lengths, change)
    return TwoCaptionStep(
        model,
        batch,
        images,
        texts.select(first),
        row_id=batch.image_id,
        second=texts.select(first + 1),
        captions=first.to(batch.image_id.device),
        encoded_masked=masked,
    )
