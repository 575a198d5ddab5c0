"""Exact search in blocks against sorting everything in fp64."""

import pytest
import torch

from utils.nearest import nearest


def plain(queries, gallery, k):
    score = (queries.double() @ gallery.double().T).float()
    score, order = score.sort(dim=1, descending=True, stable=True)
    return score[:, :k], order[:, :k]


def unit(rows, width, seed):
    vectors = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


@pytest.mark.parametrize("gallery_block", [7, 64, 1000])
@pytest.mark.parametrize("kind", ["distinct", "repeated", "all equal", "near", "zero"])
def test_blocks_agree_with_sorting_everything(kind, gallery_block):
    queries, gallery = unit(33, 24, 0), unit(200, 24, 1)
    if kind == "repeated":
        gallery = gallery[torch.randint(0, 40, (200,), generator=torch.Generator().manual_seed(2))]
    elif kind == "all equal":
        gallery = gallery[:1].repeat(200, 1)
    elif kind == "near":
        gallery = gallery[:1] + 1e-7 * gallery
    elif kind == "zero":
        queries[::2] = 0
    found = nearest(queries, gallery, 10, query_block=8, gallery_block=gallery_block)
    score, index = plain(queries, gallery, 10)
    assert torch.equal(found.index, index)
    torch.testing.assert_close(found.score, score, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("num_gallery", "k"), [(3, 10), (10, 10), (1, 1)])
def test_a_small_gallery_is_ranked_whole(num_gallery, k):
    queries, gallery = unit(4, 8, 0), unit(num_gallery, 8, 1)
    assert torch.equal(nearest(queries, gallery, k).index, plain(queries, gallery, k)[1])


def test_no_queries_have_no_neighbours():
    assert nearest(torch.zeros(0, 8), unit(5, 8, 0), 3).index.shape == (0, 3)
