"""The model that every system configures: a dual encoder, and optionally one or two fusion stacks with their heads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import IMAGE_ENCODERS, TEXT_ENCODERS
from models.answer_decoder import AnswerDecoder
from models.cross_encoder import CrossEncoder
from models.dual_encoder import DualEncoder, Projections, RegionState
from models.heads import ClassifierConfig, MaskedLanguageHead, Temperature, classification_head, exact_logits
from models.packing import Packing, pack, read_positions, select_texts
from models.projection import Projection
from models.text_encoder import TextState
from models.transformer import KeyValue


@dataclass
class TextSide:
    """What the stacks need of texts: their rows as queries, and for the image stack their keys and values by layer."""

    queries: TextState
    keys: list[KeyValue] | None
    is_attended: bool


@dataclass
class ImageSide:
    """What the stacks need of images: keys and values by layer, and for the image stack their tokens as queries."""

    keys: list[KeyValue]
    queries: TextState | None
    is_attended: bool


@dataclass
class FusedMasked:
    """Masked texts after the fusion stack: their first tokens (T, D); tokens (Q, D) at masked positions, ready for the
    vocabulary, and their targets (Q,).
    """

    first: Tensor
    tokens: Tensor
    target: Tensor


class Model(DualEncoder):
    """Dual encoder with what the stacks add: match_head (pair or not), classifier, masked_language_head and box_head on
    fused texts (`text_fusion`), image_match_head on fused images (`image_fusion`), answer_decoder that reads fused
    texts.
    """

    @dataclass
    class Config:
        image_encoder: Annotated[Any, IMAGE_ENCODERS]
        text_encoder: Annotated[Any, TEXT_ENCODERS]
        text_fusion: CrossEncoder.Config | None = None
        image_fusion: CrossEncoder.Config | None = None  # R2D2: image tokens, projected, read the texts
        match_head: Literal["mlp", "linear"] = "mlp"  # two maps with norm and GELU between (CCLM), or one (R2D2)
        embed_dim: int = 256
        shared_projection: bool = False
        # What is projected into the common space; without `both` there is no temperature either.
        projections: Projections = "both"
        projection_form: Projection.Config = field(default_factory=Projection.Config)
        image_projection_form: Projection.Config | None = None  # where images have another form than texts
        temperature: Temperature.Config = field(default_factory=Temperature.Config)
        has_match_head: bool = True  # where there is a fusion stack
        classifier: ClassifierConfig | None = None
        has_masked_language_head: bool = False
        answer_decoder: AnswerDecoder.Config | None = None  # reads the fused texts and writes answers
        has_box_head: bool = False

        def __post_init__(self) -> None:
            if self.text_fusion is not None and self.text_encoder.name != "bert":
                found = self.text_encoder.name
                raise ValueError(f"text_fusion needs text_encoder bert, whose layers it repeats; found {found}")
            if self.has_box_head and self.text_fusion is None:
                raise ValueError("has_box_head needs text_fusion: boxes are predicted from fused tokens")
            if self.has_masked_language_head and self.text_fusion is None:
                raise ValueError(
                    "has_masked_language_head needs text_fusion: masked words are predicted from fused tokens"
                )
            if self.classifier is not None and self.text_fusion is None:
                raise ValueError("classifier needs text_fusion: classes are predicted from fused tokens")
            if self.answer_decoder is not None and self.text_fusion is None:
                raise ValueError("answer_decoder needs text_fusion: answers are read from fused questions")
            if self.shared_projection and self.projections == "image":
                raise ValueError("shared_projection is the text's projection, which projections: image leaves out")
            if self.image_fusion is not None and (self.text_fusion is None or not self.has_match_head):
                raise ValueError("image_fusion needs text_fusion and has_match_head: a pair is scored by both stacks")

    def __init__(self, config: Config) -> None:
        image_encoder = IMAGE_ENCODERS.load(config.image_encoder.name)(config.image_encoder)
        text_encoder = TEXT_ENCODERS.load(config.text_encoder.name)(config.text_encoder)
        super().__init__(
            image_encoder,
            text_encoder,
            embed_dim=config.embed_dim,
            shared_projection=config.shared_projection,
            temperature=Temperature.build(config.temperature) if config.projections == "both" else None,
            projections=config.projections,
            projection_form=config.projection_form,
            image_projection_form=config.image_projection_form,
        )
        self.config = config
        width = text_encoder.width
        self.text_fusion = self.match_head = self.classifier = self.masked_language_head = self.box_head = None
        if config.text_fusion is not None:
            self.text_fusion = CrossEncoder(config.text_fusion, config.text_encoder, image_encoder.width)
            self.match_head = _match_head(config, width) if config.has_match_head else None
        self.image_fusion = self.image_fusion_projection = self.image_match_head = None
        if config.image_fusion is not None:
            self.image_fusion_projection = nn.Linear(image_encoder.width, width)
            self.image_fusion = CrossEncoder(config.image_fusion, config.text_encoder, width)
            self.image_match_head = _match_head(config, width)
        if config.classifier is not None:
            self.classifier = config.classifier.build(width)
        if config.has_masked_language_head:
            self.masked_language_head = MaskedLanguageHead(
                width, config.text_encoder.vocab_size, config.text_encoder.layer_norm_eps
            )
        if config.has_box_head:
            self.box_head = classification_head(width, 4)

        self.answer_decoder = None
        if config.answer_decoder is not None:
            self.answer_decoder = AnswerDecoder(config.answer_decoder, config.text_encoder)

    @property
    def has_fusion(self) -> bool:
        """Whether pairs can be scored by the fusion stack."""
        return self.match_head is not None

    def project_images(self, tokens: Tensor) -> list[KeyValue]:
        """Keys and values of images (M, N, V) for every fusion layer."""
        return self.text_fusion.project(tokens)

    def text_side(self, texts: TextState, *, is_reused: bool = False) -> TextSide:
        """The texts ready for pairs. is_reused: their part of the first layer is computed here, once for all pairs;
        in training pairs then share the dropout in it.
        """
        keys = None if self.image_fusion is None else self.image_fusion.project_texts(texts)
        return TextSide(self.text_fusion.attend_texts(texts) if is_reused else texts, keys, is_reused)

    def image_side(self, tokens: Tensor, *, is_reused: bool = False) -> ImageSide:
        """Images (M, N, V) ready for pairs; is_reused as for texts."""
        queries = None
        if self.image_fusion is not None:
            num_images, num_tokens, _ = tokens.shape
            rows = self.image_fusion_projection(tokens).flatten(0, 1)  # (M N, D)
            queries = TextState(rows, pack([num_tokens] * num_images, tokens.device))
            queries = self.image_fusion.attend_texts(queries) if is_reused else queries
        return ImageSide(self.project_images(tokens), queries, is_reused)

    def pair_logits(
        self, images: ImageSide, texts: TextSide, image: Tensor, text: Tensor, fused: Tensor | None = None
    ) -> Tensor:
        """Two logits per pair and stack, index 1 = they belong together: (P, S, 2), S = 1 or 2 stacks.

        image (P,) and text (P,) number the images and texts of each pair; fused (F, D) are first tokens of the first
        F pairs that the text stack has made already.
        """
        num_fused = 0 if fused is None else len(fused)
        queries = texts.queries.select(text[num_fused:])
        logits = self.match_logits(queries, images.keys, image[num_fused:], is_attended=texts.is_attended)
        sides = [logits if fused is None else torch.cat([exact_logits(self.match_head, fused), logits])]
        if self.image_fusion is not None:
            queries = images.queries.select(image)
            fused = self.image_fusion.first_tokens(queries, texts.keys, text, is_attended=images.is_attended)
            sides.append(exact_logits(self.image_match_head, fused))
        return torch.stack(sides, dim=1)

    def fuse_texts(self, texts: TextState, keys: list[KeyValue], image_of_text: Tensor) -> TextState:
        """Every text after all fusion layers, each with its image: text t with the keys of image_of_text[t], (T,)."""
        return replace(texts, tokens=self.text_fusion(texts, keys, image_of_text))

    def region_side(self, regions: RegionState, full_keys: list[KeyValue]) -> ImageSide:
        """Regions ready for pairs; full_keys are those of the images that they lie in."""
        return self._side_of_keys(self.text_fusion.project_regions(regions, full_keys))

    def reading_side(self, texts: TextState) -> ImageSide:
        """Texts in the place of images, which other texts read, ready for pairs."""
        return self._side_of_keys(self.project_texts(texts))

    def _side_of_keys(self, keys: list[KeyValue]) -> ImageSide:
        if self.image_fusion is not None:
            raise ValueError("regions and parallel texts can be read by texts only; leave out model.image_fusion")
        return ImageSide(keys, None, False)

    def project_texts(self, texts: TextState) -> list[KeyValue]:
        """Keys and values of texts (T, L, D) that other texts read as if they were images, for every fusion layer."""
        if self.image_encoder.width != self.text_encoder.width:
            raise ValueError(
                "texts can stand in for images only where both towers have one width; "
                f"found image {self.image_encoder.width}, text {self.text_encoder.width}"
            )
        return self.text_fusion.project_texts(texts)

    def encode_masked(self, ids: Tensor, packing: Packing, chosen: Tensor) -> TextState:
        """Masked texts ids (M, L), those `chosen` (M,) of a packing, after the text tower."""
        return self.text_encoder.encode_packed(ids, select_texts(packing, chosen)[0])

    def masked_tokens(
        self, texts: TextState, positions: Tensor, targets: Tensor, keys: list[KeyValue] | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (Q, D) at the masked positions, ready for the vocabulary, and their targets (Q,).

        texts with masks, M of them: text m meets image m, or none without keys; positions and targets (M, P), a
        negative target marks an unused slot.
        """
        order = texts.packing.order
        reading = read_positions(texts.packing, positions, targets >= 0)
        fused = self.text_fusion(texts, keys, torch.arange(len(order), device=order.device), reading)
        placed = targets[order]  # (M, P) by packed place
        target = placed[placed >= 0] if len(fused) != placed.numel() else placed.flatten()
        return self.masked_language_head(fused), target

    def fuse_masked(self, texts: TextState, keys: list[KeyValue], positions: Tensor, targets: Tensor) -> FusedMasked:
        """Texts that were encoded with their masks, text m with image m, in a single pass for both heads.

        positions and targets (M, P), a negative target marks an unused slot.
        """
        order = texts.packing.order
        is_wanted = F.pad(targets >= 0, (1, 0), value=True)  # (M, 1 + P), the first token and the masked ones
        reading = read_positions(texts.packing, F.pad(positions, (1, 0)), is_wanted)
        fused = self.text_fusion(texts, keys, torch.arange(len(order), device=order.device), reading)
        placed, is_kept = targets[order], is_wanted[order]  # by packed place
        if len(fused) == is_kept.numel():  # the host does not know which slots are used
            by_slot = fused.view(*is_kept.shape, -1)  # (M, 1 + P, D)
            first, masked, target = by_slot[:, 0], by_slot[:, 1:].flatten(0, 1), placed.flatten()
        else:
            is_first = (torch.arange(is_kept.shape[1], device=order.device) == 0).expand_as(is_kept)[is_kept]
            first, masked, target = fused[is_first], fused[~is_first], placed[placed >= 0]
        by_text = torch.zeros_like(first).index_copy(0, order, first)
        return FusedMasked(by_text, self.masked_language_head(masked), target)

    def match_logits(
        self, texts: TextState, keys: list[KeyValue], image_of_text: Tensor, *, is_attended: bool = False
    ) -> Tensor:
        """Two logits per (text, image) pair, index 1 = they belong together: (T, 2).

        is_attended: the texts come from `text_fusion.attend_texts`.
        """
        fused = self.text_fusion.first_tokens(texts, keys, image_of_text, is_attended=is_attended)
        return exact_logits(self.match_head, fused)

    def label_logits(self, images: ImageSide, texts: TextSide, image_of_text: Tensor) -> Tensor:
        """Logits (T, C) of labelled texts, image_of_text (I, T): the classifier's, or without one the logarithm of the
        probability, mean over the stacks, that a text does not match its image, and that it does.
        """
        if self.classifier is not None:
            return self.class_logits(texts.queries, images.keys, image_of_text)
        every = torch.arange(image_of_text.shape[-1], device=image_of_text.device)
        return self.pair_logits(images, texts, image_of_text.reshape(-1), every).softmax(dim=2).mean(dim=1).log()

    def class_logits(self, texts: TextState, keys: list[KeyValue], image_of_text: Tensor) -> Tensor:
        """Logits (T, C) of the classes of every text with its image, or with its images image_of_text (I, T)."""
        fused = self.text_fusion.first_tokens(texts, keys, image_of_text)
        return exact_logits(self.classifier, fused)

    def predict_boxes(self, texts: TextState, keys: list[KeyValue], image_of_text: Tensor) -> Tensor:
        """Where in its image each text's region lies, centre and size in [0, 1]: (T, 4)."""
        fused = self.text_fusion.first_tokens(texts, keys, image_of_text)
        return exact_logits(self.box_head, fused).sigmoid()


def _match_head(config: Model.Config, width: int) -> nn.Module:
    return classification_head(width, 2) if config.match_head == "mlp" else nn.Linear(width, 2)
