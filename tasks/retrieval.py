"""Retrieval evaluation: texts find images and images find texts, by similarity first and by the fusion stack second.

Letters: M images and T texts of one gallery, K candidates, N image tokens.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dataset.gallery import Gallery, end_reading
from models.model import Model
from models.packing import pack, token_rows
from models.text_encoder import TextState, join_texts
from tasks.in_batch import in_batch_metrics
from tasks.rerank import Candidates, choose_candidates, rerank
from utils.distributed import all_reduce_sum, gather_objects, gather_rows, is_main, rank, world_size
from utils.logger import progress_bar
from utils.metrics import (
    LanguageRanks,
    Reranked,
    chance_of_galleries,
    mean_metrics,
    mean_without_english,
    rank_spread,
    recall_metrics,
    retrieval_metrics,
    retrieval_ranks,
)
from utils.precision import DTYPES, Precision

log = logging.getLogger(__name__)


@dataclass
class EncodedImages:
    """All P pictures of a split, each encoded once: their rows by path, this rank's tokens (N, V) by row, all
    embeddings.

    embed is (P, E); row p belongs to rank p % R.
    """

    place: dict[str, int]
    tokens: dict[int, Tensor]
    embed: Tensor


@dataclass
class RankedGallery:
    """Ranks with and without re-ranking, the queries for the report, and the numbers of its pairs in batches."""

    fused: LanguageRanks
    dual: LanguageRanks
    queries: list[dict[str, Any]] = field(default_factory=list)
    in_batch: dict[str, float] = field(default_factory=dict)


class RetrievalEvaluation:
    """Scores every gallery of a split and writes the pictures that the report shows."""

    headline = "r_mean"

    @dataclass
    class Config:
        name: str = "retrieval"
        # `fused` re-ranks the candidates that similarity chose; `dual` stops at similarity.
        score: Literal["fused", "dual"] = "fused"
        # Candidates of each query (the originals' k_test); a smaller gallery is re-ranked whole.
        num_candidates: int = 128
        # What a pair gets from the match head: its logit (CCLM, CCRK) or its probability (R2D2).
        match_score: Literal["logit", "probability"] = "logit"
        # Added to that: similarity over temperature times this, and the cosine itself (R2D2: 1).
        similarity_weight: float = 0.0
        cosine_weight: float = 0.0
        batch_size_image: int = 64
        batch_size_text: int = 256
        precision: Precision = "fp32"
        # Repeat the first captions up to a multiple of this, as ZeroVL's evaluation on so many processes does: its
        # published numbers count them twice. 0: no caption counts twice. For `score: dual`.
        repeat_to_multiple: int = 0
        # Also the contrastive loss and the accuracies within shuffled batches of so many pairs of a process, which is
        # Chinese-CLIP's validation (tasks/in_batch.py); 0: no.
        in_batch_size: int = 0
        report_queries: int = 4
        report_languages: list[str] = field(default_factory=list)

        def __post_init__(self) -> None:
            for name in ("num_candidates", "batch_size_image", "batch_size_text"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
            if self.in_batch_size < 0:
                raise ValueError(f"in_batch_size must not be negative, found {self.in_batch_size}")
            if self.repeat_to_multiple < 0 or (self.repeat_to_multiple and self.score != "dual"):
                raise ValueError(f"repeat_to_multiple {self.repeat_to_multiple} needs score: dual, found {self.score}")

    def __init__(self, config: Config, data: Any, output_dir: str) -> None:
        self.config, self.data, self.output_dir = config, data, Path(output_dir)
        # Called with the name of a set before it is scored, where every set has weights of its own (few-shot models).
        self.before_set: Callable[[str], None] | None = None

    def __call__(self, model: Model, split: str) -> dict[str, Any]:
        """Metrics of every set of a split by its name, their mean and the spread of ranks over the sets; {} without
        data.
        """
        sets = self.data.galleries(split)
        if not sets:
            return {}
        fused: dict[str, list[LanguageRanks]] = {name: [] for name in sets}
        dual: dict[str, list[LanguageRanks]] = {name: [] for name in sets}
        shown, in_batch = [], {}
        for group in [sets] if self.before_set is None else [{name: folds} for name, folds in sets.items()]:
            if self.before_set is not None:
                self.before_set(next(iter(group)))
            with self.autocast(model):
                images = self.encode_images(model, [gallery for folds in group.values() for gallery in folds])
            for name, gallery in ((name, gallery) for name, folds in group.items() for gallery in folds):
                ranked = self.rank_gallery(model, gallery, images)
                fused[name].append(ranked.fused)
                dual[name].append(ranked.dual)
                shown += ranked.queries
                in_batch |= {name: ranked.in_batch} if ranked.in_batch else {}
        metrics = metrics_of_folds(fused)
        if others := mean_without_english({name: metrics[name] for name in fused}):
            metrics["mean_without_en"] = others
        metrics["chance"] = chance_of_galleries(
            {f"{n}/{k}": fold for n, folds in fused.items() for k, fold in enumerate(folds)}
        )
        if self.uses_fusion(model):
            metrics["dual_encoder"] = metrics_of_folds(dual)["mean"]
        if in_batch:
            metrics["in_batch"] = in_batch
        if split == "test" and shown and is_main():
            self.write_gallery(shown)
        return metrics

    def uses_fusion(self, model: Model) -> bool:
        """Whether candidates are re-ranked."""
        return self.config.score == "fused" and model.has_fusion

    def autocast(self, model: Model) -> torch.autocast:
        """The precision of the evaluation."""
        dtype = DTYPES.get(self.config.precision)
        return torch.autocast(_device(model).type, dtype, enabled=dtype is not None)

    def encode_images(self, model: Model, galleries: list[Gallery]) -> EncodedImages:
        """Every picture of the split once, whatever number of languages shows it.

        Rank r encodes pictures r, r + R, ...; all ranks get all embeddings, tokens stay where they are.
        """
        place: dict[str, int] = {}
        origin: list[tuple[Gallery, int]] = []
        for gallery in galleries:
            for row, path in enumerate(gallery.image_paths):
                if path not in place:
                    place[path] = len(origin)
                    origin.append((gallery, row))
        embed = torch.zeros(len(origin), model.config.embed_dim, device=_device(model))
        tokens: dict[int, Tensor] = {}
        for block in _image_blocks(origin, self.config.batch_size_image):
            gallery = origin[block[0]][0]
            pixels = gallery.read_images([origin[number][1] for number in block]).to(embed.device)
            if not self.uses_fusion(model):
                embed[block] = model.embed_image(pixels).float()
                continue
            state = model.encode_image(pixels)
            embed[block] = state.embed.float()
            tokens |= dict(zip(block, state.tokens, strict=True))
        # Rows of other ranks are zero here, so the sum puts all of them together.
        encoded = EncodedImages(place, tokens, all_reduce_sum(embed))
        end_reading(galleries)
        return encoded

    def rank_gallery(self, model: Model, gallery: Gallery, images: EncodedImages) -> RankedGallery:
        """What a gallery comes to."""
        rows = torch.tensor([images.place[path] for path in gallery.image_paths])  # (M,)
        with self.autocast(model):
            texts = self.encode_texts(model, gallery)
        similarity = images.embed[rows.to(images.embed.device)].float() @ texts.embed.float().T  # (M, T)
        candidates = scores = None
        if self.uses_fusion(model):
            with self.autocast(model):
                candidates, scores = self.fuse(model, images, rows, texts, similarity, gallery.language)
        in_batch = {}
        if self.config.in_batch_size:
            embeds = images.embed[rows.to(images.embed.device)], texts.embed.float()
            options = {"batch_size": self.config.in_batch_size, "num_processes": world_size(), "seed": self.data.seed}
            in_batch = in_batch_metrics(*embeds, model.temperature().float(), gallery.pairs, **options)
        image_of_text = gallery.image_of_text.to(similarity.device)
        also_right = gallery.also_right.to(similarity.device)
        dual = retrieval_ranks(similarity, similarity.T, image_of_text, also_right=also_right)
        if self.config.repeat_to_multiple:
            padded, of_text = repeat_first(similarity, image_of_text, self.config.repeat_to_multiple)
            sides = retrieval_ranks(padded, padded.T, of_text)
            ranks = LanguageRanks(*(side.cpu() for side in sides), of_text.cpu(), gallery.image_paths)
            return RankedGallery(ranks, ranks, in_batch=in_batch)
        fused, order = dual, similarity
        if candidates is not None:
            i2t = scores.masked_fill(~candidates.of_images, -torch.inf)
            t2i = scores.masked_fill(~candidates.of_texts, -torch.inf).T
            fused = retrieval_ranks(similarity, similarity.T, image_of_text, _whole(i2t), _whole(t2i), also_right)
            order = t2i.T
        shown = self.show(gallery, similarity, order, fused[1], dual[1]) if self.is_shown(gallery) else []
        return RankedGallery(_as_ranks(fused, gallery), _as_ranks(dual, gallery), shown, in_batch)

    def encode_texts(self, model: Model, gallery: Gallery) -> TextState:
        """All texts of a gallery in its order; rank r encodes texts r, r + R, ... and the rest comes from the
        others.
        """
        own = sorted(range(rank(), len(gallery.texts), world_size()), key=lambda text: gallery.texts.lengths[text])
        states = []
        for start in range(0, len(own), self.config.batch_size_text):
            block = own[start : start + self.config.batch_size_text]
            lengths = [gallery.texts.lengths[text] for text in block]
            states.append(model.encode_text(gallery.texts.ids[block, : max(lengths)].to(_device(model)), lengths))
        if world_size() == 1:
            return _in_order(join_texts(states), own)
        longest, device = max(gallery.texts.lengths), _device(model)
        padded = torch.zeros(0, longest, model.text_encoder.width, device=device)
        embed = torch.zeros(0, model.config.embed_dim, device=device)
        if states:
            state = join_texts(states)
            padded, embed = state.padded(longest).float(), state.embed.float()
        order = [text for part in gather_objects(own) for text in part]
        packing = pack([gallery.texts.lengths[text] for text in order], device)
        tokens = gather_rows(padded, "none").flatten(0, 1)[token_rows(packing, longest)]
        return _in_order(TextState(tokens, packing, gather_rows(embed, "none")), order)

    def fuse(
        self, model: Model, images: EncodedImages, rows: Tensor, texts: TextState, similarity: Tensor, language: str
    ) -> tuple[Candidates, Tensor]:
        """Candidates of both directions and the scores (M, T) that re-rank them."""
        wanted = self.config.num_candidates
        if wanted > min(similarity.shape):
            log.info(
                "%s: %d candidates asked for, the gallery of %d x %d is re-ranked whole",
                language,
                wanted,
                *similarity.shape,
            )
        candidates = choose_candidates(similarity, wanted)
        read = lambda own: torch.stack([images.tokens[row] for row in rows[own].tolist()])  # noqa: E731
        total = int((candidates.of_images | candidates.of_texts).sum()) // world_size()
        with progress_bar(total, 0, is_shown=is_main()) as bar:
            bar.set_description(f"re-rank {language}")
            scores = rerank(
                model,
                read,
                texts,
                candidates,
                owner=rows % world_size(),
                is_probability=self.config.match_score == "probability",
                on_progress=bar.update,
            )
        weight = self.config.similarity_weight / model.temperature() + self.config.cosine_weight
        return candidates, scores + weight * similarity

    def is_shown(self, gallery: Gallery) -> bool:
        """Whether the report shows queries of this gallery."""
        chosen = self.config.report_languages
        return self.config.report_queries > 0 and (not chosen or gallery.language in chosen)

    def show(
        self, gallery: Gallery, similarity: Tensor, order: Tensor, fused: Tensor, dual: Tensor
    ) -> list[dict[str, Any]]:
        """The first queries with their five best images, for the report."""
        queries = []
        step = max(1, len(gallery.texts) // self.config.report_queries)
        for text in range(0, len(gallery.texts), step)[: self.config.report_queries]:
            ranked = sorted(range(len(similarity)), key=lambda m: (-float(order[m, text]), -float(similarity[m, text])))
            right = int(gallery.image_of_text[text])
            all_right = {right, *gallery.also_right[gallery.also_right[:, 0] == text, 1].tolist()}
            answers = [
                {
                    "image": gallery.image_paths[m],
                    "right": m in all_right,
                    "score": _finite(order[m, text], similarity[m, text]),
                }
                for m in ranked[:5]
            ]
            queries.append(
                {
                    "language": gallery.language,
                    "text": gallery.captions[text],
                    "answers": answers,
                    "rank": int(fused[text]),
                    "dual_rank": int(dual[text]),
                    "right_image": gallery.image_paths[right],
                }
            )
        return queries

    def write_gallery(self, queries: list[dict[str, Any]]) -> None:
        """gallery.json with the pictures inside, so that the report needs nothing else."""
        for query in queries:
            for answer in query["answers"]:
                answer["image"] = self.data.thumbnail(answer["image"])
            query["right_image"] = self.data.thumbnail(query["right_image"])
        self.output_dir.mkdir(parents=True, exist_ok=True)
        temporary = self.output_dir / "gallery.json.tmp"
        temporary.write_text(json.dumps({"queries": queries}, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, self.output_dir / "gallery.json")


def metrics_of_folds(ranks: dict[str, list[LanguageRanks]]) -> dict[str, Any]:
    """Metrics by set; the recall of a set in folds is the mean of its folds, spreads and medians are over all
    instances.
    """
    joined = {name: _join(folds) for name, folds in ranks.items()}
    metrics = retrieval_metrics(joined)
    if spread := rank_spread(joined):
        metrics["rank_spread"] = spread
    for name, folds in ranks.items():
        metrics[name] = mean_metrics([recall_metrics(fold.image_to_text, fold.text_to_image) for fold in folds])
    metrics["mean"] = mean_metrics([metrics[name] for name in ranks])
    return metrics


def _join(folds: list[LanguageRanks]) -> LanguageRanks:
    """The instances of all folds, each with its rank within its fold."""
    paths, image_of_text = [], []
    for fold in folds:
        image_of_text.append(fold.image_of_text + len(paths))
        paths += fold.image_paths
    sides = (torch.cat([getattr(fold, side) for fold in folds]) for side in ("image_to_text", "text_to_image"))
    return LanguageRanks(*sides, torch.cat(image_of_text), paths)


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device


def _image_blocks(origin: list[tuple[Gallery, int]], size: int) -> Iterator[list[int]]:
    """This rank's pictures in blocks of at most `size`, each from one gallery."""
    block: list[int] = []
    for number in range(rank(), len(origin), world_size()):
        if block and (len(block) == size or origin[number][0] is not origin[block[0]][0]):
            yield block
            block = []
        block.append(number)
    if block:
        yield block


def _in_order(state: TextState, numbers: list[int]) -> TextState:
    """The texts in the gallery's order; text k of the state has number numbers[k]."""
    place = torch.tensor(numbers).argsort()
    return state.select(place)


def repeat_first(similarity: Tensor, image_of_text: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """similarity (M, T) and image_of_text (T,) with the first texts again, so that T is a multiple."""
    place = torch.arange(-(-len(image_of_text) // multiple) * multiple, device=similarity.device) % len(image_of_text)
    return similarity[:, place], image_of_text[place]


def _as_ranks(sides: tuple[Tensor, Tensor], gallery: Gallery) -> LanguageRanks:
    """The ranks of a gallery; pictures without a text are found or not, but look for none themselves."""
    kept = torch.cat([gallery.image_of_text, gallery.also_right[:, 1]]).unique()  # sorted
    image_of_text = torch.searchsorted(kept, gallery.image_of_text)
    paths = [gallery.image_paths[row] for row in kept.tolist()]
    return LanguageRanks(sides[0].cpu()[kept], sides[1].cpu(), image_of_text, paths)


def _whole(scores: Tensor) -> Reranked:
    """Scores of all candidates, -inf where not re-ranked."""
    return Reranked(torch.arange(scores.shape[1], device=scores.device).expand(scores.shape), scores)


def _finite(score: Tensor, similarity: Tensor) -> float:
    return round(float(score if torch.isfinite(score) else similarity), 4)
