"""One worker that answers searches: whatever waits when it gets free is encoded and scored together.

Letters: M images, Q queries, E embedding, P pairs.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dataset.collection import Collection
from models.text_encoder import TextState
from tasks.rerank import pair_logits
from tasks.retrieval import RetrievalEvaluation
from tasks.search_index import PixelReader

MAX_TOGETHER = 64  # queries that are encoded at once

log = logging.getLogger(__name__)


class TooBusy(RuntimeError):
    """More searches wait than the engine keeps."""


@dataclass
class Query:
    """A text, or prepared pixels (3, S, S); the fusion stack scores `num_candidates` of its best images again."""

    text: str = ""
    pixels: Tensor | None = None
    num_results: int = 24
    num_candidates: int = 0
    started: float = field(default_factory=time.perf_counter)
    answer: Future[Answer] = field(default_factory=Future)


@dataclass
class Hit:
    """A picture by its place in the collection, what orders the hits, its similarity and, re-ranked, the probability
    that it matches.
    """

    place: int
    score: float
    similarity: float
    match: float | None = None


@dataclass
class Answer:
    """The hits, best first, and how long they took from being asked for; num_together queries were answered at once."""

    hits: list[Hit]
    milliseconds: float
    num_together: int


def put_in_order(hits: list[Hit]) -> None:
    """Re-ranked hits first; the scores of the others go on where theirs end."""
    hits.sort(key=lambda hit: (hit.match is not None, hit.score), reverse=True)
    again, others = ([hit for hit in hits if (hit.match is not None) == is_again] for is_again in (True, False))
    if again and others:
        gap = again[-1].score - others[0].score
        for hit in others:
            hit.score += gap


class TokenCache:
    """Image tokens of the pictures that were re-ranked last, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._tokens: OrderedDict[int, Tensor] = OrderedDict()

    def get(self, row: int) -> Tensor | None:
        if row in self._tokens:
            self._tokens.move_to_end(row)
        return self._tokens.get(row)

    def put(self, row: int, tokens: Tensor) -> None:
        self._tokens[row] = tokens
        self.num_bytes += tokens.nbytes
        while self.num_bytes > self.max_bytes and len(self._tokens) > 1:
            self.num_bytes -= self._tokens.popitem(last=False)[1].nbytes


class SearchEngine:
    """Answers queries on one thread of its own; `submit` may be called from any."""

    def __init__(
        self,
        loaded: Any,
        collection: Collection,
        reader: PixelReader,
        kept: list[int],
        embed: Tensor,
        *,
        max_waiting: int,
        cache_bytes: int,
    ) -> None:
        """kept (M,) are the places in the collection of the rows of embed (M, E)."""
        self.loaded, self.model, self.collection, self.reader = loaded, loaded.model, collection, reader
        self.device = next(self.model.parameters()).device
        self.kept, self.embed, self.cache = kept, embed.to(self.device), TokenCache(cache_bytes)
        evaluation = loaded.config.evaluation
        self.order = evaluation if isinstance(evaluation, RetrievalEvaluation.Config) else RetrievalEvaluation.Config()
        self._queue: queue.Queue[Query | None] = queue.Queue(max_waiting)
        self._thread = threading.Thread(target=self._work, name="search", daemon=True)

    @property
    def can_rerank(self) -> bool:
        """Whether the model has a fusion stack that scores one image with one text."""
        return self.model.has_fusion and self.model.text_fusion.num_images == 1

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Answer what waits already, then end."""
        self._queue.put(None)
        self._thread.join()

    def submit(self, query: Query) -> Future[Answer]:
        """The answer to come; TooBusy when too many wait."""
        try:
            self._queue.put_nowait(query)
        except queue.Full:
            raise TooBusy(f"{self._queue.maxsize} searches are waiting") from None
        return query.answer

    def _work(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            batch, is_last = [first], False
            while len(batch) < MAX_TOGETHER and not self._queue.empty():
                query = self._queue.get()
                if query is None:
                    is_last = True
                    break
                batch.append(query)
            batch = [query for query in batch if query.answer.set_running_or_notify_cancel()]
            try:
                self._answer(batch)
            except Exception as error:  # whatever went wrong belongs to those who wait, and the next ones are served
                log.exception("a search failed")
                for query in batch:
                    if not query.answer.done():
                        query.answer.set_exception(error)
            if is_last:
                return

    @torch.inference_mode()
    def _answer(self, batch: list[Query]) -> None:
        texts = [query for query in batch if query.pixels is None]
        images = [query for query in batch if query.pixels is not None]
        if texts:
            state = self._encode_texts(texts)
            found = self._nearest(state.embed, texts)
            self._rerank(state, texts, found)
            self._settle(texts, found, len(batch))
        if images:
            pixels = torch.stack([query.pixels for query in images]).to(self.device)
            self._settle(images, self._nearest(self.model.embed_image(pixels), images), len(batch))

    def _encode_texts(self, queries: list[Query]) -> TextState:
        prepared = self.loaded.inputs.texts([query.text for query in queries])
        return self.model.encode_text(prepared.ids.to(self.device), prepared.lengths)

    def _nearest(self, embed: Tensor, queries: list[Query]) -> list[list[Hit]]:
        """The most similar rows of every query; embed (Q, E)."""
        similarity = embed.float() @ self.embed.T  # (Q, M)
        wanted = max(max(query.num_results, query.num_candidates) for query in queries)
        values, rows = similarity.topk(min(wanted, len(self.kept)), dim=1)
        return [
            [Hit(row, value, value) for row, value in zip(*both, strict=True)]
            for both in zip(rows.tolist(), values.tolist(), strict=True)
        ]

    def _rerank(self, state: TextState, queries: list[Query], found: list[list[Hit]]) -> None:
        """Score the candidates of all queries in one go and put the best first, as the run's evaluation orders them."""
        wanted = [hits[: query.num_candidates] for query, hits in zip(queries, found, strict=True)]
        tokens = self._tokens(sorted({hit.place for hits in wanted for hit in hits})) if self.can_rerank else {}
        if not tokens:
            return
        rows = list(tokens)
        number = {row: n for n, row in enumerate(rows)}
        asked = [(number[h.place], text, h) for text, hits in enumerate(wanted) for h in hits if h.place in number]
        asked.sort(key=lambda pair: pair[0])
        pairs = torch.tensor([pair[:2] for pair in asked])  # (P, 2)
        read = lambda own: torch.stack([tokens[rows[n]] for n in own])  # noqa: E731
        logits = pair_logits(self.model, read, state, pairs).float().cpu()  # (P, S, 2)
        match = logits.softmax(dim=2)[..., 1].mean(dim=1)
        weight = self.order.similarity_weight / self.model.temperature().item() + self.order.cosine_weight
        score = match if self.order.match_score == "probability" else logits[..., 1].mean(dim=1)
        for (_, _, hit), probability, own in zip(asked, match.tolist(), score.tolist(), strict=True):
            hit.match, hit.score = probability, own + weight * hit.similarity
        for hits in found:
            put_in_order(hits)

    def _tokens(self, rows: list[int]) -> dict[int, Tensor]:
        """Image tokens (N, V) of these rows; a picture that can no longer be read is left out."""
        found = {row: self.cache.get(row) for row in rows}
        absent = [row for row, tokens in found.items() if tokens is None]
        pixels = self.reader.read([self.kept[row] for row in absent])
        good = {row: image for row, image in zip(absent, pixels, strict=True) if isinstance(image, Tensor)}
        if good:
            encoded = self.model.encode_image(torch.stack(list(good.values())).to(self.device)).tokens
            for row, tokens in zip(good, encoded, strict=True):
                found[row] = tokens.clone()
                self.cache.put(row, found[row])
        return {row: tokens for row, tokens in found.items() if tokens is not None}

    def _settle(self, queries: list[Query], found: list[list[Hit]], num_together: int) -> None:
        for query, hits in zip(queries, found, strict=True):
            chosen = [replace(hit, place=self.kept[hit.place]) for hit in hits[: query.num_results]]
            query.answer.set_result(Answer(chosen, 1000 * (time.perf_counter() - query.started), num_together))
