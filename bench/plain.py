"""The plain forms of everything that the project computes in a leaner way: padded texts, an image repeated per pair,
all logits.

They use the weights of the project's own modules, so that a difference is one of form. Tests hold both forms against
each other, the benchmarks time them. Letters as in style: B texts padded to L, N image tokens, D width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.answer_decoder import AnswerDecoder
from models.model import Model
from models.padded import (
    attention,
    encode_text,
    fuse,
    image_match_logits,
    layer,
    match_logits,
    project_text,
)

__all__ = ["attention", "encode_text", "fuse", "image_match_logits", "layer", "match_logits"]


def embed_text(model: Model, x: Tensor, mask: Tensor) -> Tensor:
    """Unit vectors of padded tokens (B, L, D): (B, E)."""
    return F.normalize(project_text(model, x, mask), dim=-1)


def match_probability(model: Model, x: Tensor, mask: Tensor, image: Tensor) -> Tensor:
    """Mean over both stacks of the probability that a pair belongs together: (B,)."""
    sides = match_logits(model, x, mask, image), image_match_logits(model, x, mask, image)
    return sum(logits.softmax(dim=1)[:, 1] for logits in sides) / 2


def word_loss(
    model: Model,
    ids: Tensor,
    mask: Tensor,
    image: Tensor | None,
    positions: Tensor,
    targets: Tensor,
    image_mask: Tensor | None = None,
) -> Tensor:
    """Masked language modelling with every logit of every slot, (B, P, V), held at once."""
    images = [] if image is None else [image]
    hidden = fuse(model, encode_text(model.text_encoder, ids, mask), mask, *images, image_mask=image_mask)
    picked = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))  # (B, P, D)
    head = model.masked_language_head
    return full_vocabulary_loss(
        head(picked).flatten(0, 1), model.text_encoder.word.weight, head.bias, targets.flatten()
    )


def full_vocabulary_loss(tokens: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over all logits (Q, V)."""
    return F.cross_entropy(tokens @ weight.T + bias, target, ignore_index=-100)


def answer_rows(decoder: AnswerDecoder, ids: Tensor, mask: Tensor, states: Tensor, states_mask: Tensor) -> Tensor:
    """Every position of padded answers (B, L) with one copy of the question (B, N, D) each, ready for the vocabulary:
    (B, L, D).
    """
    length = ids.shape[1]
    causal = torch.ones(length, length, device=ids.device).tril() * mask[:, None, :]  # (B, L, L)
    x = encode_text(decoder.embedding, ids, mask)
    for block in decoder.layers:
        x = layer(block, x, causal, states, image_mask=states_mask)
    return decoder.head(x)


def answer_losses(decoder: AnswerDecoder, ids: Tensor, mask: Tensor, states: Tensor, states_mask: Tensor) -> Tensor:
    """Cross-entropy of all words of every answer, with every logit (B, L, V) held at once: (B,)."""
    logits = answer_rows(decoder, ids, mask, states, states_mask) @ decoder.word_weight.T + decoder.head.bias
    target = ids.masked_fill(~mask.bool(), -100)[:, 1:]
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), target, ignore_index=-100, reduction="none").sum(dim=1)


def rank_answers(
    decoder: AnswerDecoder, states: Tensor, states_mask: Tensor, ids: Tensor, mask: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Numbers and probabilities (S, k) of the best answers, one question at a time; states (S, N, D), ids (A, L)."""
    found = []
    for state, real in zip(states[:, None], states_mask[:, None], strict=True):
        row = answer_rows(decoder, ids[:1, :1], mask[:1, :1], state, real)[:, 0]
        words = (row @ decoder.word_weight.T + decoder.head.bias).softmax(dim=1)
        best, chosen = words[0, ids[:, 1]].topk(k)
        copies = state.repeat(k, 1, 1), real.repeat(k, 1)
        scores = best.log() - answer_losses(decoder, ids[chosen], mask[chosen], *copies)
        probability, order = scores.softmax(dim=0).topk(k)
        found.append((chosen[order], probability))
    return torch.stack([numbers for numbers, _ in found]), torch.stack([values for _, values in found])


def contrastive_loss(image: Tensor, text: Tensor, temperature: Tensor) -> Tensor:
    """Both directions over the whole matrix of similarities, diagonal targets."""
    logits = image @ text.T / temperature
    target = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def rerank(
    model: Model, image_tokens: Tensor, image_embed: Tensor, ids: Tensor, mask: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Two-stage scores one query at a time: (M, T) and (T, M), -100 where not re-ranked."""
    hidden = encode_text(model.text_encoder, ids, mask)
    similarity = image_embed @ embed_text(model, hidden, mask).T
    of_images = torch.full_like(similarity, -100.0)
    for image, row in enumerate(similarity):
        best = row.topk(min(k, len(row))).indices
        copies = image_tokens[image].expand(len(best), -1, -1)
        of_images[image, best] = match_logits(model, hidden[best], mask[best], copies)[:, 1]
    of_texts = torch.full_like(similarity.T, -100.0)
    for text, row in enumerate(similarity.T):
        best = row.topk(min(k, len(row))).indices
        repeat = hidden[text].expand(len(best), -1, -1), mask[text].expand(len(best), -1)
        of_texts[text, best] = match_logits(model, *repeat, image_tokens[best])[:, 1]
    return of_images, of_texts
