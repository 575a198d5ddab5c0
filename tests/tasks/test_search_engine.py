"""Searches that wait are answered together as each would be alone, in the order of the run's own evaluation."""

from __future__ import annotations

import pytest
import torch

import rosetta
from dataset.collection import Collection
from tasks.search_engine import Hit, Query, SearchEngine, TokenCache, TooBusy, put_in_order
from tasks.search_index import IndexStore, PixelReader, build_index
from tests.toy_served import write_run

TEXTS = ["red colour left side", "blau farbe rechts", "green"]


def make_engine(folder, *, max_waiting=16, **model):
    loaded = rosetta.load(write_run(folder, **model))
    collection = Collection([str(folder / "data" / "images")])
    reader = PixelReader(collection, loaded, 1)
    kept, embed = build_index(collection, loaded, reader, IndexStore(folder / "index"), batch_size=8)
    return SearchEngine(loaded, collection, reader, kept, embed, max_waiting=max_waiting, cache_bytes=1 << 20)


@pytest.fixture
def engine(tmp_path):
    return make_engine(tmp_path)


def ask(engine, *queries):
    """All submitted before the engine starts, so that they are answered in one go."""
    answers = [engine.submit(query) for query in queries]
    engine.start()
    engine.close()
    return [answer.result(10) for answer in answers]


def test_hits_have_the_scores_of_the_python_face(engine, tmp_path):
    (answer,) = ask(engine, Query(text=TEXTS[0], num_results=8, num_candidates=8))
    paths = [tmp_path / "data" / "images" / picture.name for picture in engine.collection.pictures]
    scores = engine.loaded.score(paths, [TEXTS[0]])
    for hit in answer.hits:
        assert hit.similarity == pytest.approx(scores["similarity"][hit.place, 0].item(), abs=1e-5)
        assert hit.match == pytest.approx(scores["match"][hit.place, 0].item(), abs=1e-5)
    assert [hit.score for hit in answer.hits] == sorted((hit.score for hit in answer.hits), reverse=True)


def test_answers_together_equal_answers_alone(tmp_path):
    pixels = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    make = lambda: [*(Query(text=text, num_candidates=3) for text in TEXTS), Query(pixels=pixels)]  # noqa: E731
    together = ask(make_engine(tmp_path / "a"), *make())
    assert {answer.num_together for answer in together} == {4}
    for number, query in enumerate(make()):
        (alone,) = ask(make_engine(tmp_path / str(number)), query)
        for one, other in zip(alone.hits, together[number].hits, strict=True):
            assert one.place == other.place and one.match == pytest.approx(other.match, abs=1e-5)


def test_only_the_candidates_are_scored_again_and_stand_first(engine):
    (answer,) = ask(engine, Query(text=TEXTS[1], num_results=8, num_candidates=3))
    assert [hit.match is not None for hit in answer.hits] == [True] * 3 + [False] * 5
    assert [hit.score for hit in answer.hits] == sorted((hit.score for hit in answer.hits), reverse=True)


def test_a_weight_of_the_evaluation_orders_hits(engine):
    engine.order.similarity_weight = 1e6
    (answer,) = ask(engine, Query(text=TEXTS[1], num_results=8, num_candidates=8))
    assert [hit.similarity for hit in answer.hits] == sorted((hit.similarity for hit in answer.hits), reverse=True)


def test_two_stacks_score_pairs_by_their_mean(tmp_path):
    engine = make_engine(tmp_path, image_fusion={"num_layers": 1})
    (answer,) = ask(engine, Query(text=TEXTS[0], num_results=2, num_candidates=8))
    paths = [tmp_path / "data" / "images" / engine.collection.pictures[hit.place].name for hit in answer.hits]
    expected = engine.loaded.score(paths, [TEXTS[0]])["match"][:, 0]
    assert [hit.match for hit in answer.hits] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_candidate_that_is_gone_keeps_its_similarity(engine, tmp_path):
    (tmp_path / "data" / "images" / "2.png").unlink()
    (answer,) = ask(engine, Query(text=TEXTS[0], num_results=8, num_candidates=8))
    assert [engine.collection.pictures[hit.place].name for hit in answer.hits if hit.match is None] == ["2.png"]


def test_a_model_without_fusion_answers_by_similarity(tmp_path):
    engine = make_engine(tmp_path, text_fusion=None, has_masked_language_head=False)
    (answer,) = ask(engine, Query(text=TEXTS[0], num_results=5, num_candidates=4))
    assert len(answer.hits) == 5 and not any(hit.match for hit in answer.hits) and not engine.can_rerank


def test_too_many_waiting_searches_are_refused(tmp_path):
    engine = make_engine(tmp_path, max_waiting=2)
    engine.submit(Query(text="a"))
    engine.submit(Query(text="b"))
    with pytest.raises(TooBusy, match="2 searches are waiting"):
        engine.submit(Query(text="c"))


def test_a_failed_search_fails_those_who_wait_and_not_the_next(engine, monkeypatch):
    nearest = engine._nearest
    monkeypatch.setattr(engine, "_nearest", lambda *_: 1 / 0)
    failed = engine.submit(Query(text="red"))
    engine.start()
    with pytest.raises(ZeroDivisionError):
        failed.result(10)
    monkeypatch.setattr(engine, "_nearest", nearest)
    assert engine.submit(Query(text="red")).result(10).hits
    engine.close()


def test_the_cache_keeps_to_its_bytes_and_forgets_the_oldest():
    cache = TokenCache(max_bytes=2 * 400)
    for row in (1, 2):
        cache.put(row, torch.zeros(100))
    cache.get(1)
    cache.put(3, torch.zeros(100))
    assert cache.get(2) is None and cache.get(1) is not None and cache.num_bytes == 800


def test_scores_go_on_behind_the_re_ranked():
    hits = [Hit(0, 0.9, 0.9), Hit(1, -4.0, 0.8, 0.1), Hit(2, 3.0, 0.7, 0.9), Hit(3, 0.5, 0.5)]
    put_in_order(hits)
    assert [hit.place for hit in hits] == [2, 1, 0, 3]
    assert [hit.score for hit in hits] == pytest.approx([3.0, -4.0, -4.0, -4.4])
