"""Retrieval evaluation: texts find images and images find texts, by similarity first and by the fusion stack second.

Letters: M images and T texts of one gallery, K candidates, N image tokens.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dataset.batch import TextBatch
from models.model import Model
from models.text_encoder import TextState, join_texts
from tasks.rerank import Candidates, choose_candidates, rerank
from utils.distributed import gather_rows, is_main, rank, world_size
from utils.logger import progress
from utils.metrics import LanguageRanks, Reranked, chance_of_galleries, mean_metrics, recall_metrics, retrieval_metrics, retrieval_ranks

log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Gallery:
    """One set to search: M image paths, T texts with lengths, image_of_text (T,), and how to read images by number."""

    language: str
    image_paths: list[str]
    texts: TextBatch
    captions: list[str]
    image_of_text: Tensor
    read_images: Callable[[Sequence[int]], Tensor]


@dataclass
class Encoded:
    """A gallery after the towers: this rank's image tokens by image number, all embeddings, all texts."""

    tokens: dict[int, Tensor]
    image_embed: Tensor
    texts: TextState


class RetrievalEvaluation:
    """Scores every gallery of a split and writes the pictures that the report shows."""

    @dataclass
    class Config:
        # `fused` re-ranks the candidates that similarity chose; `dual` stops at similarity.
        score: Literal["fused", "dual"] = "fused"
        # Candidates of each query (the originals' k_test); a smaller gallery is re-ranked whole.
        num_candidates: int = 128
        # Added to the match logit: similarity over temperature times this. The originals use 0.
        similarity_weight: float = 0.0
        batch_size_image: int = 64
        batch_size_text: int = 256
        precision: Precision = "fp32"
        report_queries: int = 4
        report_languages: list[str] = field(default_factory=list)

        def __post_init__(self) -> None:
            for name in ("num_candidates", "batch_size_image", "batch_size_text"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")

    def __init__(self, config: Config, data: Any, output_dir: str) -> None:
        self.config, self.data, self.output_dir = config, data, Path(output_dir)

    def __call__(self, model: Model, split: str) -> dict[str, Any]:
        """Metrics of every set of a split by its name, their mean and the spread of ranks over the sets; {} without data."""
        sets = self.data.galleries(split)
        if not sets:
            return {}
        fused: dict[str, list[LanguageRanks]] = {name: [] for name in sets}
        dual: dict[str, list[LanguageRanks]] = {name: [] for name in sets}
        images, shown = ImageCache(self.config.batch_size_image), []
        for name, folds in sets.items():
            for gallery in folds:
                of_fused, of_dual, queries = self.rank_gallery(model, gallery, images)
                fused[name].append(of_fused)
                dual[name].append(of_dual)
                shown += queries
        metrics = metrics_of_folds(fused)
        metrics["chance"] = chance_of_galleries({f"{n}/{k}": fold for n, folds in fused.items() for k, fold in enumerate(folds)})
        if self.uses_fusion(model):
            metrics["dual_encoder"] = metrics_of_folds(dual)["mean"]
        if split == "test" and shown and is_main():
            self.write_gallery(shown)
        return metrics

    def uses_fusion(self, model: Model) -> bool:
        """Whether candidates are re-ranked."""
        return self.config.score == "fused" and model.has_fusion

    def rank_gallery(self, model: Model, gallery: Gallery, images: ImageCache) -> tuple[LanguageRanks, LanguageRanks, list]:
        """Ranks with and without re-ranking, and the queries for the report."""
        device = next(model.parameters()).device
        with torch.autocast(device.type, _DTYPES.get(self.config.precision), enabled=self.config.precision != "fp32"):
            encoded = self.encode(model, gallery, images, device)
            similarity = encoded.image_embed @ encoded.texts.embed.T                              # (M, T)
            candidates = scores = None
            if self.uses_fusion(model):
                candidates, scores = self.fuse(model, encoded, similarity, gallery.language)
        image_of_text = gallery.image_of_text.to(device)
        dual = retrieval_ranks(similarity, similarity.T, image_of_text)
        fused, order = dual, similarity
        if candidates is not None:
            i2t = scores.masked_fill(~candidates.of_images, -torch.inf)
            t2i = scores.masked_fill(~candidates.of_texts, -torch.inf).T
            fused = retrieval_ranks(similarity, similarity.T, image_of_text, _whole(i2t), _whole(t2i))
            order = t2i.T
        shown = self.show(gallery, similarity, order, fused[1], dual[1]) if self.is_shown(gallery) else []
        as_ranks = lambda sides: LanguageRanks(sides[0].cpu(), sides[1].cpu(), gallery.image_of_text, gallery.image_paths)  # noqa: E731
        return as_ranks(fused), as_ranks(dual), shown

    def encode(self, model: Model, gallery: Gallery, images: ImageCache, device: torch.device) -> Encoded:
        """Images m with m % world_size == rank and a share of the texts on every rank; embeddings and texts are exchanged."""
        tokens, embed = images.encode(model, gallery, device, keep_tokens=self.uses_fusion(model))
        own = list(range(rank(), len(gallery.texts), world_size()))
        states = [self._encode_texts(model, gallery.texts, own, device)]
        if world_size() > 1:
            states = [_exchange(states[0], len(gallery.texts), gallery.texts.lengths)]
        return Encoded(tokens, embed, states[0])

    def _encode_texts(self, model: Model, texts: TextBatch, own: list[int], device: torch.device) -> TextState:
        """The texts `own` in blocks of similar length, joined again in their order."""
        by_length = sorted(own, key=lambda text: texts.lengths[text])
        size, states = self.config.batch_size_text, []
        for start in range(0, len(by_length), size):
            block = by_length[start : start + size]
            lengths = [texts.lengths[text] for text in block]
            states.append(model.encode_text(texts.ids[block, : max(lengths)].to(device), lengths))
        place = {text: number for number, text in enumerate(by_length)}
        return join_texts(states).select(torch.tensor([place[text] for text in own]))

    def fuse(self, model: Model, encoded: Encoded, similarity: Tensor, language: str) -> tuple[Candidates, Tensor]:
        """Candidates of both directions and the scores (M, T) that re-rank them."""
        wanted = self.config.num_candidates
        if wanted > min(similarity.shape):
            log.info("%s: %d candidates asked for, the gallery of %d x %d is re-ranked whole", language, wanted, *similarity.shape)
        candidates = choose_candidates(similarity, wanted)
        total = int((candidates.of_images | candidates.of_texts).sum()) // world_size()
        with progress(total, f"re-rank {language}") as bar:
            scores = rerank(model, lambda own: torch.stack([encoded.tokens[m] for m in own]), encoded.texts, candidates, on_progress=bar.update)
        return candidates, scores + self.config.similarity_weight * similarity / model.temperature.value

    def is_shown(self, gallery: Gallery) -> bool:
        """Whether the report shows queries of this gallery."""
        chosen = self.config.report_languages
        return self.config.report_queries > 0 and (not chosen or gallery.language in chosen)

    def show(self, gallery: Gallery, similarity: Tensor, order: Tensor, fused: Tensor, dual: Tensor) -> list[dict[str, Any]]:
        """The first queries with their five best images, for the report."""
        queries = []
        step = max(1, len(gallery.captions) // self.config.report_queries)
        for text in range(0, len(gallery.captions), step)[: self.config.report_queries]:
            ranked = sorted(range(len(similarity)), key=lambda m: (-float(order[m, text]), -float(similarity[m, text])))
            right = int(gallery.image_of_text[text])
            answers = [
                {"image": gallery.image_paths[m], "right": m == right, "score": _finite(order[m, text], similarity[m, text])}
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
    """Metrics by set; the recall of a set in folds is the mean of its folds, spreads and medians are over all instances."""
    metrics = retrieval_metrics({name: _join(folds) for name, folds in ranks.items()})
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


class ImageCache:
    """Images of the galleries of one split, encoded once however many languages ask for them."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._paths: list[str] | None = None
        self._encoded: tuple[dict[int, Tensor], Tensor] | None = None

    def encode(self, model: Model, gallery: Gallery, device: torch.device, *, keep_tokens: bool) -> tuple[dict[int, Tensor], Tensor]:
        """Tokens (N, V) of this rank's images by number, and embeddings (M, E) of all images."""
        if self._paths == gallery.image_paths:
            return self._encoded
        own = list(range(rank(), len(gallery.image_paths), world_size()))
        tokens, embeds = {}, []
        for start in range(0, len(own), self.batch_size):
            block = own[start : start + self.batch_size]
            state = model.encode_image(gallery.read_images(block).to(device))
            embeds.append(state.embed)
            if keep_tokens:
                tokens |= dict(zip(block, state.tokens, strict=True))
        embed = torch.cat(embeds) if embeds else torch.zeros(0, model.config.embed_dim, device=device)
        self._paths, self._encoded = gallery.image_paths, (tokens, _interleave(embed, len(gallery.image_paths)))
        return self._encoded


def _interleave(own: Tensor, total: int) -> Tensor:
    """Rows of all ranks, where rank r holds rows r, r + R, ...: (total, ...)."""
    if world_size() == 1:
        return own
    stacked = gather_rows(own, "none")
    order = torch.cat([torch.arange(r, total, world_size()) for r in range(world_size())]).to(own.device)
    return torch.empty_like(stacked).index_copy_(0, order, stacked)


def _exchange(state: TextState, total: int, lengths: list[int]) -> TextState:
    """The texts of all ranks, where rank r holds texts r, r + R, ..."""
    from models.packing import pack, token_rows

    padded = state.padded(max(lengths))
    every = _interleave(padded, total)
    packing = pack(lengths, every.device)
    return TextState(every.flatten(0, 1)[token_rows(packing, every.shape[1])], packing, _interleave(state.embed, total))


def _whole(scores: Tensor) -> Reranked:
    """Scores of all candidates, -inf where not re-ranked."""
    return Reranked(torch.arange(scores.shape[1], device=scores.device).expand(scores.shape), scores)


def _finite(score: Tensor, similarity: Tensor) -> float:
    return round(float(score if torch.isfinite(score) else similarity), 4)
