"""Retrieval numbers: ranks, recall, spread of ranks over languages, chance levels.

Letters: Q queries, C candidates, K re-ranked candidates per query, M images, T texts, L languages, N instances.
Ranks are 0-based. `img` names text-to-image numbers, `txt` image-to-text numbers; recall is in percent.

Order of the candidates of one query, and so the rule for ties:
1. candidates with a re-ranking score come first, higher score first (without re-ranking this step is empty);
2. equal re-ranking scores, and all candidates without one, follow their similarity, higher first;
3. equal similarities keep the order of the candidates. A constant model therefore gets chance, not a perfect recall.
The released code leaves candidates that were not re-ranked tied at -100 in the order of an unstable sort. Recall up to
the number of re-ranked candidates is the same here; later ranks, and so the spread over languages, are well defined.
"""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)
ENGLISH = "en"
SPREAD_BOUNDS = (0, 1, 3, 10, 30, 100)


@dataclass
class Reranked:
    """Second-stage scores of the candidates that were re-ranked: score (Q, K) of candidate number index (Q, K).

    A row with fewer than K candidates carries -inf scores in the rest.
    """

    index: Tensor
    score: Tensor


@dataclass
class LanguageRanks:
    """Ranks in one language's gallery: image_to_text (M,), text_to_image (T,); image_of_text (T,) and M paths."""

    image_to_text: Tensor
    text_to_image: Tensor
    image_of_text: Tensor
    image_paths: list[str]


# --- ranks -----------------------------------------------------------------------------------------------------------


def ranks_of_right_answers(
    similarity: Tensor,
    query_id: Tensor,
    candidate_id: Tensor,
    reranked: Reranked | None = None,
    *,
    also_right: Tensor | None = None,
    block_size: int = 1024,
) -> Tensor:
    """Rank (Q,) of the best right answer of every query among all candidates.

    similarity (Q, C); a candidate is right if its candidate_id (C,) equals the query's query_id (Q,), or if also_right
    (P, 2) holds (query, candidate). A query without any right answer gets rank C: it counts as missed. Works in blocks
    of `block_size` queries.
    """
    ranks = []
    for start in range(0, similarity.shape[0], block_size):
        rows = slice(start, start + block_size)
        second_stage = None if reranked is None else Reranked(reranked.index[rows], reranked.score[rows])
        is_right = query_id[rows, None] == candidate_id[None, :]  # (rows, C)
        if also_right is not None:
            query, candidate = also_right[(also_right[:, 0] >= start) & (also_right[:, 0] < start + block_size)].T
            is_right[query - start, candidate] = True
        ranks.append(_block_ranks(similarity[rows], is_right, second_stage))
    return torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.int64)


def _block_ranks(similarity: Tensor, is_right: Tensor, reranked: Reranked | None) -> Tensor:
    """Count the candidates that come before the first right one, by (re-ranked score, similarity, candidate order)."""
    num_candidates = similarity.shape[1]
    number = torch.arange(num_candidates, device=similarity.device).expand_as(similarity)
    keys = [similarity, -number]
    if reranked is not None:
        score = torch.full_like(similarity, -torch.inf, dtype=reranked.score.dtype)
        # amax keeps a real score when the padding of a short row points at the same candidate.
        keys.insert(0, score.scatter_reduce(1, reranked.index, reranked.score, "amax"))
    is_best = is_right
    for key in keys:  # narrow the right answers down to the first one
        _reject_nan(key)
        lowest = -torch.inf if key.is_floating_point() else -num_candidates
        best = key.masked_fill(~is_best, lowest).amax(dim=1, keepdim=True)
        is_best = is_best & (key == best)
    first = is_best.int().argmax(dim=1, keepdim=True)  # (rows, 1)
    is_before = torch.zeros_like(is_right)
    is_tied = torch.ones_like(is_right)
    for key in keys:
        of_first = key.gather(1, first)
        is_before |= is_tied & (key > of_first)
        is_tied &= key == of_first
    return torch.where(is_right.any(dim=1), is_before.sum(dim=1), num_candidates)


def _reject_nan(scores: Tensor) -> None:
    if scores.is_floating_point() and (num_bad := int(scores.isnan().sum())):
        raise ValueError(f"{num_bad} of {scores.numel()} retrieval scores are not a number, so they have no rank")


def retrieval_ranks(
    score_i2t: Tensor,
    score_t2i: Tensor,
    image_of_text: Tensor,
    reranked_i2t: Reranked | None = None,
    reranked_t2i: Reranked | None = None,
    also_right: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Ranks of both directions: (M,) of the best caption of each image, (T,) of the best image of each text.

    score_i2t (M, T), score_t2i (T, M), image_of_text (T,) the row of each text's image; also_right (P, 2) holds further
    (text, image) that belong together.
    """
    image_id = torch.arange(score_i2t.shape[0], device=image_of_text.device)
    of_image = None if also_right is None else also_right.flip(1)
    image_to_text = ranks_of_right_answers(score_i2t, image_id, image_of_text, reranked_i2t, also_right=of_image)
    text_to_image = ranks_of_right_answers(score_t2i, image_of_text, image_id, reranked_t2i, also_right=also_right)
    return image_to_text, text_to_image


# --- numbers from ranks ----------------------------------------------------------------------------------------------


def recall(ranks: Tensor, k: int) -> float:
    """Percent of ranks (N,) below k."""
    return 100.0 * int((ranks < k).sum()) / max(len(ranks), 1)


def recall_metrics(image_to_text: Tensor, text_to_image: Tensor) -> dict[str, float]:
    """R@1, R@5, R@10 of both directions in percent with their means and sum, from ranks (M,) and (T,)."""
    metrics = {f"txt_r{k}": recall(image_to_text, k) for k in RECALL_AT}
    metrics |= {f"img_r{k}": recall(text_to_image, k) for k in RECALL_AT}
    return _with_means(metrics)


def _with_means(metrics: dict[str, float]) -> dict[str, float]:
    for side in ("txt", "img"):
        metrics[f"{side}_r_mean"] = sum(metrics[f"{side}_r{k}"] for k in RECALL_AT) / len(RECALL_AT)
    metrics["r_mean"] = (metrics["txt_r_mean"] + metrics["img_r_mean"]) / 2
    metrics["rsum"] = sum(metrics[f"{side}_r{k}"] for side in ("txt", "img") for k in RECALL_AT)
    return metrics


def mean_metrics(metrics: list[dict[str, float]]) -> dict[str, float]:
    """The plain mean of each number over several galleries (languages, or the folds of one test set)."""
    return {key: math.fsum(one[key] for one in metrics) / len(metrics) for key in metrics[0]}


def mean_without_english(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """What IGLUE reports: the mean of each number over all languages but English; {} where that says nothing new.

    metrics holds one entry per language (or data set); without English, or with English alone, there is no such mean.
    """
    others = [numbers for name, numbers in metrics.items() if name != ENGLISH]
    return mean_metrics(others) if 0 < len(others) < len(metrics) else {}


def median_rank(ranks: Tensor) -> float:
    """Median of ranks (N,), counted from 1 as the literature does; the mean of the middle two for an even number."""
    ordered = ranks.double().sort().values
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2 + 1


def mean_rank_spread(ranks: Tensor) -> float:
    """MRV as the released code computes it: mean over instances of the standard deviation over languages.

    ranks (L, N) of the same N instances in L languages; the deviation is that of a population; lower is better.
    """
    return float(_spread(ranks).mean())


def mean_rank_variance(ranks: Tensor) -> float:
    """The variance in place of the deviation in `mean_rank_spread`, as the metric's name reads. ranks (L, N)."""
    return float(_spread(ranks).square().mean())


def _spread(ranks: Tensor) -> Tensor:
    """Population standard deviation (N,) over the languages of ranks (L, N)."""
    return ranks.double().std(dim=0, correction=0)


def chance_metrics(image_of_text: Tensor, num_images: int) -> dict[str, float]:
    """What a random order of the gallery is expected to reach, exactly, under the keys of `recall_metrics`.

    image_of_text (T,). An image with c of the T texts finds one of them among k with 1 - C(T - c, k) / C(T, k).
    """
    num_texts = len(image_of_text)
    captions = Counter(torch.bincount(image_of_text, minlength=num_images).tolist())  # captions per image -> images
    metrics = {}
    for k in RECALL_AT:
        at_most = min(k, num_texts)
        all_draws = math.comb(num_texts, at_most)
        hits = sum(n * (1 - math.comb(num_texts - c, at_most) / all_draws) for c, n in captions.items())
        metrics[f"txt_r{k}"] = 100 * hits / num_images
        metrics[f"img_r{k}"] = 100 * min(k / num_images, 1.0)
    return _with_means(metrics)


# --- several languages -----------------------------------------------------------------------------------------------


def align_ranks(names: dict[str, list[str]], ranks: dict[str, Tensor]) -> tuple[list[str], Tensor]:
    """Names of the instances that every language has, and their ranks (L, N) in the order of `names`.

    names[language] says what each rank of ranks[language] belongs to: an image path. It may stand several times, once
    per caption: its k-th ranks are compared, and it is left out where the languages disagree on their number.
    """
    if len(names) < 2:
        raise ValueError(f"a spread over languages needs at least 2 of them; found: {', '.join(names) or 'none'}")
    position = {language: _occurrences(paths) for language, paths in names.items()}
    counts = [Counter(paths) for paths in names.values()]
    shared = [
        (path, k) for path, k in position[next(iter(names))] if all(count[path] == counts[0][path] for count in counts)
    ]
    rows = [ranks[language][[at[key] for key in shared]].double().cpu() for language, at in position.items()]
    return [path for path, _ in shared], torch.stack(rows)


def _occurrences(paths: list[str]) -> dict[tuple[str, int], int]:
    """Position of the k-th occurrence of every path, keyed by (path, k)."""
    seen: Counter[str] = Counter()
    position = {}
    for i, path in enumerate(paths):
        position[path, seen[path]] = i
        seen[path] += 1
    return position


def _aligned_sides(galleries: dict[str, LanguageRanks]) -> dict[str, Tensor]:
    """Ranks (L, N) per side, of the instances that all languages share; empty for fewer than two languages."""
    if len(galleries) < 2:
        return {}
    of_text = {name: [g.image_paths[i] for i in g.image_of_text.tolist()] for name, g in galleries.items()}
    of_image = {name: g.image_paths for name, g in galleries.items()}
    return {
        "img": align_ranks(of_text, {name: g.text_to_image for name, g in galleries.items()})[1],
        "txt": align_ranks(of_image, {name: g.image_to_text for name, g in galleries.items()})[1],
    }


def retrieval_metrics(galleries: dict[str, LanguageRanks]) -> dict[str, dict]:
    """The tree a retrieval task writes for one split: one entry per language, `mean`, `mrv` and `median_rank`.

    `mrv` is left out where fewer than two languages share an instance.
    """
    tree: dict[str, dict] = {
        name: recall_metrics(one.image_to_text, one.text_to_image) for name, one in galleries.items()
    }
    medians = {
        name: {"img": median_rank(one.text_to_image), "txt": median_rank(one.image_to_text)}
        for name, one in galleries.items()
    }
    tree["mean"] = mean_metrics(list(tree.values()))
    spread = {side: mean_rank_spread(ranks) for side, ranks in _aligned_sides(galleries).items() if ranks.shape[1]}
    if spread:
        tree["mrv"] = spread
    tree["median_rank"] = medians | {"mean": mean_metrics(list(medians.values()))}
    return tree


def chance_of_galleries(galleries: dict[str, LanguageRanks]) -> dict[str, float]:
    """Mean over the languages of what chance reaches, under the keys of `recall_metrics`."""
    return mean_metrics([chance_metrics(g.image_of_text, len(g.image_paths)) for g in galleries.values()])


def rank_spread(galleries: dict[str, LanguageRanks]) -> dict:
    """How rank spreads over languages are distributed, for the report; {} where nothing can be compared.

    `img` and `txt` hold the percent of instances whose standard deviation is at most each of `bounds` and above the one
    before, then the percent above the last; `num_img` and `num_txt` count instances, `variance` is the mean variance.
    """
    sides = {side: ranks for side, ranks in _aligned_sides(galleries).items() if ranks.shape[1]}
    if not sides:
        return {}
    bounds = torch.tensor(SPREAD_BOUNDS, dtype=torch.float64)
    result: dict = {"bounds": list(SPREAD_BOUNDS)}
    for side, ranks in sides.items():
        counts = torch.bincount(torch.bucketize(_spread(ranks), bounds), minlength=len(bounds) + 1)
        result[side] = (100.0 * counts / ranks.shape[1]).tolist()
        result[f"num_{side}"] = ranks.shape[1]
    result["variance"] = {side: mean_rank_variance(ranks) for side, ranks in sides.items()}
    return result
