"""The ring of embeddings of recent iterations."""

import pytest
import torch

from objectives.queue import EmbeddingQueue


def numbered(first, count):
    """Pairs whose vectors and ids are their numbers."""
    number = torch.arange(first, first + count)
    return number[:, None].float().expand(-1, 2), -number[:, None].float().expand(-1, 2), number


def test_entries_wrap_around_where_the_size_is_no_multiple_of_the_batch():
    queue = EmbeddingQueue(5, 2)
    for first in (1, 4):
        queue.put(*numbered(first, 3))
    assert queue.image_id.tolist() == [6, 2, 3, 4, 5] and int(queue.next) == 1
    assert queue.image[:, 0].tolist() == [6, 2, 3, 4, 5] and queue.text[:, 1].tolist() == [-6, -2, -3, -4, -5]


def test_weights_decay_by_iteration_and_empty_places_have_none():
    queue = EmbeddingQueue(4, 2)
    queue.put(*numbered(1, 2))
    queue.put(*numbered(3, 1))
    assert queue.age.tolist() == [2, 2, 1, 0]
    torch.testing.assert_close(queue.weight(0.5), torch.tensor([0.25, 0.25, 0.5, 0.0]))


def test_of_a_batch_larger_than_the_queue_the_last_pairs_stay():
    queue = EmbeddingQueue(3, 2)
    queue.put(*numbered(1, 8))
    assert sorted(queue.image_id.tolist()) == [6, 7, 8] and int(queue.next) == 8 % 3
    queue.put(*numbered(9, 1))
    assert sorted(queue.image_id.tolist()) == [7, 8, 9]


def test_a_restored_queue_goes_on_where_it_was():
    queue, restored = EmbeddingQueue(4, 2), EmbeddingQueue(4, 2)
    queue.put(*numbered(1, 3))
    restored.load_state_dict(queue.state_dict())
    for each in (queue, restored):
        each.put(*numbered(4, 3))
    assert all(torch.equal(restored.state_dict()[name], value) for name, value in queue.state_dict().items())


def test_a_queue_without_places_takes_nothing():
    queue = EmbeddingQueue(0, 2)
    queue.put(*numbered(1, 3))
    assert len(queue) == 0


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="-1 entries"):
        EmbeddingQueue(-1, 2)
