import pytest
import torch

from models.packing import fold_by_image, join_packings, pack, read_positions, select_texts, token_rows
from tests.tiny import make_texts


def test_packed_rows_are_the_real_tokens_sorted_by_length():
    ids, _ = make_texts([4, 2, 4, 3])
    packing = pack([4, 2, 4, 3])
    packed = ids.flatten()[token_rows(packing, ids.shape[1])]
    expected = torch.cat([ids[1, :2], ids[3, :3], ids[0], ids[2]])
    assert torch.equal(packed, expected)
    assert packing.num_rows == 13
    assert torch.equal(packed[packing.first_row], ids[:, 0])


def test_empty_text_is_an_error():
    with pytest.raises(ValueError, match="at least one token"):
        pack([3, 0])


@pytest.mark.parametrize("on_host", [True, False])
def test_selected_texts_keep_their_tokens_and_may_repeat(on_host):
    lengths = [4, 2, 5, 3]
    ids, _ = make_texts(lengths)
    packing = pack(lengths)
    packed = ids.flatten()[token_rows(packing, ids.shape[1])]
    index = torch.tensor([2, 0, 2, 1])
    if not on_host:  # lengths that only a device knows: every text takes the longest, the rest is masked
        packing = replace_mask(packing)
    selected, rows = select_texts(packing, index)
    for place, text in enumerate(selected.order.tolist()):
        start = selected.first_row[text]
        length = lengths[index[text]]
        assert torch.equal(packed[rows[start : start + length]], ids[index[text], :length]), place
    if not on_host:
        assert torch.equal(selected.key_mask.sum(dim=1), torch.tensor(lengths)[index])


def replace_mask(packing):
    import dataclasses

    return dataclasses.replace(
        packing, key_mask=torch.ones(len(packing.lengths), max(packing.lengths), dtype=torch.bool)
    )


def test_joined_packings_list_every_text_once():
    first, second = pack([3, 1]), pack([2, 2, 5])
    joined, rows = join_packings([first, second])
    assert joined.lengths == [3, 1, 2, 2, 5]
    assert sorted(rows.tolist()) == list(range(13))
    assert rows[joined.first_row[4]] == first.num_rows + second.first_row[2]


def test_reading_lists_the_wanted_positions_in_packed_order():
    packing = pack([4, 2, 4])
    positions = torch.tensor([[3, 1], [1, 0], [2, 0]])
    wanted = torch.tensor([[True, True], [True, False], [False, False]])
    reading = read_positions(packing, positions, wanted)
    assert reading.rows.tolist() == [1, 2 + 3, 2 + 1]
    assert reading.text_of_row.tolist() == [1, 0, 0]


def test_folding_covers_every_row_once_with_its_image():
    image_of_row = torch.randint(0, 7, (50,), generator=torch.Generator().manual_seed(0))
    seen = []
    for block in fold_by_image(image_of_row, torch.device("cpu")):
        slots = block.slots.flatten()[block.kept]
        assert torch.equal(slots, block.rows)
        owner = block.images.repeat_interleave(block.slots.shape[1])[block.kept]
        assert torch.equal(image_of_row[block.rows], owner)
        seen += block.rows.tolist()
    assert sorted(seen) == list(range(50))
