import torch

from dataset.batch import ImageTextBatch, MaskedText, Regions, TextBatch, TextPairBatch

TEXTS = TextBatch(torch.ones(2, 4, dtype=torch.int64), [4, 2])


def make_region_batch() -> ImageTextBatch:
    rows = torch.arange(2)
    regions = Regions(torch.zeros(2, dtype=torch.int64), torch.ones(2, 5).bool(), torch.rand(2, 4), rows.bool())
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    return ImageTextBatch(images, rows, TEXTS, rows, rows, regions=regions, stream="regions")


def test_every_tensor_of_a_region_batch_moves_to_the_device():
    moved = make_region_batch().to("meta")
    assert moved.regions.mask.is_meta and moved.regions.target_box.is_meta and moved.texts.ids.is_meta
    assert moved.texts.lengths == [4, 2] and moved.stream == "regions"


def test_a_region_batch_counts_its_images_not_its_regions():
    assert make_region_batch().num_images == 1 and make_region_batch().num_texts == 2


def test_every_tensor_of_a_text_pair_batch_moves_to_the_device():
    masked = MaskedText(torch.ones(2, 8), torch.zeros(2, 3), torch.zeros(2, 3))
    moved = TextPairBatch(TEXTS, TEXTS, masked, masked_lengths=[8, 4]).to("meta")
    assert moved.first.ids.is_meta and moved.second.ids.is_meta and moved.masked.positions.is_meta
    assert moved.masked_lengths == [8, 4]


def test_a_text_pair_batch_counts_the_tokens_of_both_sides():
    batch = TextPairBatch(TEXTS, TextBatch(torch.ones(2, 6), [6, 1]))
    assert (batch.num_tokens, batch.num_padded_tokens) == (13, 20)
