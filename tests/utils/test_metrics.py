import itertools
import math

import pytest
import torch

from utils.metrics import (
    LanguageRanks,
    Reranked,
    align_ranks,
    chance_metrics,
    mean_rank_spread,
    mean_rank_variance,
    mean_without_english,
    median_rank,
    rank_spread,
    ranks_of_right_answers,
    recall_metrics,
    retrieval_metrics,
    retrieval_ranks,
)


def ranks_by_sorting(similarity, query_id, candidate_id, reranked=None):
    """The plain twin: sort every row with Python and look for the first right answer."""
    ranks = []
    for q, row in enumerate(similarity.tolist()):
        second = dict(zip(reranked.index[q].tolist(), reranked.score[q].tolist())) if reranked else {}
        order = sorted(range(len(row)), key=lambda c: (-second.get(c, -math.inf), -row[c], c))
        right = [place for place, c in enumerate(order) if candidate_id[c] == query_id[q]]
        ranks.append(min(right, default=len(row)))
    return ranks


@pytest.mark.parametrize("block_size", [1, 3, 1024])
@pytest.mark.parametrize("stages", [1, 2])
def test_ranks_agree_with_sorting_under_many_ties(block_size, stages):
    torch.manual_seed(0)
    similarity = torch.randint(0, 4, (11, 9)).float()
    query_id, candidate_id = torch.randint(0, 5, (11,)), torch.randint(0, 5, (9,))
    reranked = None
    if stages == 2:
        index = torch.stack([torch.randperm(9)[:4] for _ in range(11)])
        reranked = Reranked(index, torch.randint(0, 3, (11, 4)).float())
    found = ranks_of_right_answers(similarity, query_id, candidate_id, reranked, block_size=block_size)
    assert found.tolist() == ranks_by_sorting(similarity, query_id, candidate_id, reranked)


def test_candidates_without_second_score_follow_by_similarity():
    similarity = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    reranked = Reranked(torch.tensor([[0, 1]]), torch.tensor([[-500.0, -400.0]]))  # worse than any fixed filler
    places = [ranks_of_right_answers(similarity, torch.tensor([c]), torch.arange(4), reranked).item() for c in range(4)]
    assert places == [1, 0, 2, 3]


def test_filler_of_a_short_row_does_not_hide_a_score():
    reranked = Reranked(torch.tensor([[2, 2]]), torch.tensor([[5.0, -torch.inf]]))
    rank = ranks_of_right_answers(torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([2]), torch.arange(3), reranked)
    assert rank.item() == 0


def test_constant_scores_reach_chance_and_no_more():
    image_of_text = torch.arange(20)
    metrics = recall_metrics(*retrieval_ranks(torch.zeros(20, 20), torch.zeros(20, 20), image_of_text))
    assert metrics == pytest.approx(chance_metrics(image_of_text, 20))


def test_query_without_right_answer_is_missed():
    assert ranks_of_right_answers(torch.rand(1, 7), torch.tensor([9]), torch.arange(7)).tolist() == [7]


def test_best_caption_counts_for_an_image():
    score = torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.3, 0.8]])
    image_to_text, text_to_image = retrieval_ranks(score, score.T, torch.tensor([0, 0, 1]))
    assert image_to_text.tolist() == [0, 0]
    assert text_to_image.tolist() == [1, 0, 0]


def test_not_a_number_is_refused():
    with pytest.raises(ValueError, match="1 of 4 retrieval scores are not a number"):
        ranks_of_right_answers(torch.tensor([[0.0, torch.nan], [0.0, 1.0]]), torch.arange(2), torch.arange(2))


def test_chance_is_the_mean_over_all_orders():
    image_of_text = torch.tensor([0, 0, 1, 2, 0, 1])  # 3, 2 and 1 captions
    hits = []
    for order in itertools.permutations(range(6)):
        first = {image_of_text[t].item() for t in order[:1]}
        hits.append(sum(image in first for image in range(3)) / 3)
    chance = chance_metrics(image_of_text, 3)
    assert chance["txt_r1"] == pytest.approx(100 * sum(hits) / len(hits))
    assert chance["txt_r5"] == pytest.approx(100 * (1 + 1 + 5 / 6) / 3)
    assert chance["img_r1"] == pytest.approx(100 / 3)
    assert chance["img_r5"] == 100


def test_spread_is_the_population_deviation_meant_over_instances():
    ranks = torch.tensor([[0, 3], [2, 3], [4, 3]])
    assert mean_rank_spread(ranks) == pytest.approx(math.sqrt(8 / 3) / 2)
    assert mean_rank_variance(ranks) == pytest.approx(8 / 3 / 2)


def test_median_rank_counts_from_one():
    assert median_rank(torch.tensor([0, 0, 5])) == 1
    assert median_rank(torch.tensor([0, 1, 2, 9])) == 2.5


def test_languages_are_aligned_by_path_and_cut_to_what_all_have():
    names = {"en": ["a", "b", "c"], "de": ["c", "a", "d"], "ja": ["a", "d", "c"]}
    ranks = {"en": torch.tensor([1, 2, 3]), "de": torch.tensor([30, 10, 40]), "ja": torch.tensor([100, 400, 300])}
    shared, aligned = align_ranks(names, ranks)
    assert shared == ["a", "c"]
    assert aligned.tolist() == [[1, 3], [10, 30], [100, 300]]


def test_images_with_unequal_caption_counts_are_left_out():
    names = {"en": ["a", "a", "b"], "cs": ["b", "a"]}
    shared, aligned = align_ranks(names, {"en": torch.tensor([1, 2, 3]), "cs": torch.tensor([4, 5])})
    assert shared == ["b"]
    assert aligned.tolist() == [[3], [4]]


def gallery(ranks, paths):
    return LanguageRanks(torch.tensor(ranks), torch.tensor(ranks), torch.arange(len(paths)), paths)


def test_metrics_tree_has_every_language_the_mean_and_the_spread():
    tree = retrieval_metrics({"en": gallery([0, 7], ["a", "b"]), "de": gallery([4, 0], ["b", "a"])})
    assert set(tree) == {"en", "de", "mean", "mrv", "median_rank"}
    assert tree["mean"]["img_r5"] == 75.0
    assert tree["mrv"] == {"img": 0.75, "txt": 0.75}  # a: 0 and 0, b: 7 and 4
    assert tree["median_rank"]["de"] == {"img": 3.0, "txt": 3.0}


def test_one_language_has_no_spread():
    only = {"en": gallery([0, 7], ["a", "b"])}
    assert "mrv" not in retrieval_metrics(only)
    assert rank_spread(only) == {}


def test_spread_distribution_covers_every_instance():
    spread = rank_spread({"en": gallery([0, 7, 900], list("abc")), "de": gallery([0, 3, 0], list("abc"))})
    assert spread["num_img"] == 3
    assert spread["img"] == pytest.approx([100 / 3, 0, 100 / 3, 0, 0, 0, 100 / 3])


def test_the_mean_of_iglue_leaves_out_english():
    metrics = {"en": {"img_r1": 90.0}, "de": {"img_r1": 10.0}, "ja": {"img_r1": 30.0}}
    assert mean_without_english(metrics) == {"img_r1": 20.0}
    assert mean_without_english({"en": metrics["en"]}) == mean_without_english({"de": metrics["de"]}) == {}
    assert mean_without_english({"coco": metrics["en"], "f30k": metrics["de"]}) == {}


def test_any_of_several_images_of_a_text_counts():
    similarity = torch.tensor([[0.9, 0.1], [0.5, 0.2], [0.4, 0.8]])  # images x texts
    image_of_text, also_right = torch.tensor([1, 1]), torch.tensor([[1, 2]])
    images, texts = retrieval_ranks(similarity, similarity.T, image_of_text, also_right=also_right)
    assert texts.tolist() == [1, 0]  # text 1 finds image 2, its second one
    assert images.tolist() == [2, 0, 0]  # image 0 has no text
