"""Regions: the crop, which boxes stay, careful mirroring, and batches of an exact number of rows."""

import numpy as np
import pytest

from dataset.boxes import draw_crop_around, place, visible_part
from dataset.directions import Directions
from dataset.files import BadRecord
from dataset.loader import Loader
from dataset.regions import RegionImages, choose_rows
from dataset.transforms import Box
from tests.dataset.toy import WordTokenizer, base64_of, picture, preprocessing, write_lines

SIZE = (24, 18)  # width, height


def record(number=0, **changes):
    mug = {"caption": {"en": "red mug", "de": "rote Tasse"}, "attributes": {"en": "shiny", "de": "blank"}}
    elements = [
        {"bb": [2, 3, 8, 6], **mug},
        {"bb": [10.7, 4, 10, 12], "caption": {"en": "plate", "de": "Teller"}},
    ]
    return {"binary": base64_of(picture(number, SIZE)), "elems": elements} | changes


def open_dataset(tmp_path, records, *, num_rows=0, grid=4, **config):
    path = write_lines(tmp_path / "regions.data", records)
    settings = RegionImages.Config(files=[path], **config)
    return RegionImages(settings, preprocessing(grid=grid, num_rows=num_rows))


def sample(dataset, index=0, seed=0):
    return dataset.sample(index, np.random.default_rng(seed))


def words(text):
    return WordTokenizer().encode_batch([text], 40)[0]


def test_a_crop_holds_the_whole_box_and_reaches_every_border():
    box, crops = Box(top=3, left=2, height=6, width=8), []
    generator = np.random.default_rng(0)
    for _ in range(300):
        crop = draw_crop_around(box, 18, 24, generator)
        assert visible_part(box, crop)[1] == 1
        crops.append((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
    lows, highs = np.min(crops, axis=0).tolist(), np.max(crops, axis=0).tolist()
    assert lows == [0, 0, 10, 9] and highs == [2, 3, 24, 18]


def test_a_mirrored_box_lies_on_the_other_side():
    crop, part = Box(0, 0, 10, 20), Box(top=1, left=2, height=3, width=4)
    straight, mirrored = (place(part, crop, 40, is_flipped=flipped) for flipped in (False, True))
    assert straight == (4, 4, 8, 12) and mirrored == (28, 4, 8, 12)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([24, 3, 5, 6], "box outside the image"),
        ([-5, 3, 5, 6], "box outside the image"),
        ([-3, 3, 6, 6], "box outside the image"),
        ([2, 3, 0.4, 6], "box outside the image"),
        ([2, 3, -1, -1], "box outside the image"),
        ([2, 3, 5], "broken box"),
        (["2", 3, 5, 6], "broken box"),
        ([2, 3, float("nan"), 6], "broken box"),
        (None, "broken box"),
    ],
)
def test_a_wrong_box_says_why(tmp_path, box, reason):
    dataset = open_dataset(tmp_path, [record(elems=[{"bb": box, "caption": {"en": "mug"}}])])
    with pytest.raises(BadRecord) as error:
        sample(dataset)
    assert error.value.reason == reason


def test_an_element_outside_of_the_picture_is_left_out_and_the_others_stay(tmp_path):
    outside = {"bb": [30, 3, 5, 6], "caption": {"en": "nowhere"}}
    dataset = open_dataset(tmp_path, [record(elems=[outside, *record()["elems"]])], languages=["en"])
    texts = {tuple(row.tokens) for seed in range(20) for row in sample(dataset, seed=seed).rows}
    assert texts == {tuple(words("shiny red mug")), tuple(words("plate"))}


def test_a_box_is_cut_at_the_border_and_its_share_counts_what_lies_beyond(tmp_path):
    # 4 of 6 columns are in the picture; in a crop that holds them the box has two thirds of itself.
    element = {"bb": [20, 2, 6, 8], "caption": {"en": "mug"}}
    for smallest, is_kept in ((0.6, True), (0.7, False)):
        dataset = open_dataset(tmp_path, [record(elems=[element])], min_share_in_image=smallest, flip_prob=0)
        if not is_kept:
            with pytest.raises(BadRecord, match="box outside the image; found .20, 2, 6, 8.; the image has 24 x 18"):
                sample(dataset)
            continue
        for seed in range(9):
            x, _, width, _ = sample(dataset, seed=seed).rows[0].target
            assert x + width / 2 == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"elems": []}, "missing boxes"),
        ({"elems": [{"caption": {"en": "mug"}}]}, "missing boxes"),
        ({"elems": [{"bb": [99, 0, 9, 9], "caption": {"en": "mug"}}]}, "box outside the image"),
        ({"elems": [{"bb": [0, 0, 9, 9]}]}, "missing caption"),
        ({"elems": [{"bb": [0, 0, 9, 9], "caption": {"en": " "}}]}, "empty caption"),
        ({"elems": [{"bb": [0, 0, 9, 9], "caption": {"en": "..."}}]}, "empty caption"),
        ({"binary": ""}, "missing image"),
    ],
)
def test_an_unusable_record_is_named_with_its_line(tmp_path, change, reason):
    dataset = open_dataset(tmp_path, [record(), record(**change)], num_rows=4)
    batch = next(iter(Loader(dataset, batch_size=2, shuffle=False)))
    assert [(skipped.where, skipped.reason) for skipped in batch.skipped] == [(f"{tmp_path}/regions.data:2", reason)]


def test_rows_are_the_picture_then_its_regions_with_attribute_and_caption(tmp_path):
    dataset = open_dataset(tmp_path, [record(caption={"en": "a table"})], languages=["en"])
    rows = sample(dataset).rows
    assert rows[0].is_image and rows[0].target == [0.5, 0.5, 1, 1] and rows[0].mask.all()
    assert rows[0].tokens == words("a table") and not any(row.is_image for row in rows[1:])
    assert all(row.tokens in (words("shiny red mug"), words("plate")) for row in rows[1:])


def test_attributes_stay_whole_and_switch_language_only_when_asked(tmp_path):
    seen = {}
    for code_switch in (False, True):
        dataset = open_dataset(tmp_path, [record()], code_switch=code_switch, max_regions=2)
        rows = [row for seed in range(40) for row in sample(dataset, seed=seed).rows]
        seen[code_switch] = {tuple(row.tokens) for row in rows if len(row.tokens) == 5}
    pure = {tuple(words("shiny red mug")), tuple(words("blank rote tasse"))}
    assert seen[False] == pure
    assert seen[True] == pure | {tuple(words("blank red mug")), tuple(words("shiny rote tasse"))}


def test_a_caption_with_a_direction_is_never_mirrored(tmp_path):
    texts = {"en": "the left mug", "de": "die linke Tasse", "zh": "\u5de6\u8fb9\u7684\u676f\u5b50"}
    for language, text in texts.items():
        element = {"bb": [1, 1, 4, 4], "caption": {language: text}}
        records, always = [record(elems=[element])], {"flip_prob": 1.0, "min_share_in_image": 0}
        careful, careless = (open_dataset(tmp_path, records, careful_flip=c, **always) for c in (True, False))
        crops = [(sample(careful, seed=seed).rows[0].target[0], sample(careless, seed=seed).rows[0].target[0])
                 for seed in range(9)]  # fmt: skip
        assert all(straight == pytest.approx(1 - mirrored) for straight, mirrored in crops), language


def test_direction_words_are_whole_words_unless_starred(tmp_path):
    path = tmp_path / "words.json"
    path.write_text('{"en": ["left"], "de": ["link*"], "zh": ["*\\u5de6*"]}')
    directions = Directions(path)
    assert directions.are_in("on the LEFT side", "en") and not directions.are_in("leftovers", "en")
    assert directions.are_in("linker Schuh", "de") and not directions.are_in("flink", "de")
    assert directions.are_in("\u732b\u5728\u5de6\u8fb9", "zh")
    assert directions.are_in("left", "fr") and not directions.are_in("left", "de")


def test_the_shipped_words_cover_the_languages_of_the_corpora():
    directions = Directions()
    languages = "ar bg bn cs da de el en es et fr id ja ko pt ru sw ta tr vi zh".split()
    assert directions.patterns.keys() >= set(languages)
    assert directions.are_in("\u5de6\u306e\u732b", "ja") and directions.are_in("vlevo stoj\u00ed pes", "cs")
    assert not directions.are_in("ein rechteckiger Tisch", "de") and not directions.are_in("a bright day", "en")


def test_a_batch_has_exactly_the_asked_number_of_rows(tmp_path):
    records = [record(number, caption={"en": f"table {number}"}) for number in range(4)]
    for num_rows in (3, 5, 40):
        dataset = open_dataset(tmp_path, records, num_rows=num_rows)
        batch = next(iter(Loader(dataset, batch_size=4, seed=1)))
        regions = batch.regions
        assert len(batch.texts) == len(regions.target_box) == len(regions.mask) == num_rows
        assert regions.mask.shape == (num_rows, 17) and regions.mask[:, 0].all()
        assert sorted(set(regions.image_of_region.tolist())) == list(range(batch.num_images))
        assert batch.image_of_text.tolist() == list(range(num_rows))


def test_rows_taken_twice_share_their_id_and_others_do_not(tmp_path):
    dataset = open_dataset(tmp_path, [record()], num_rows=9)
    batch = next(iter(Loader(dataset, batch_size=1)))
    texts = [tuple(row.tolist()) for row in batch.texts.ids]
    by_id = dict(zip(batch.image_id.tolist(), texts))
    assert len(set(texts)) == len(by_id) <= 2 and all(
        by_id[i] == text for i, text in zip(batch.image_id.tolist(), texts)
    )


def test_a_batch_depends_on_seed_epoch_and_record_only(tmp_path):
    records = [record(number) for number in range(6)]
    batches = [next(iter(Loader(open_dataset(tmp_path, records, num_rows=5), batch_size=3, seed=4))) for _ in range(2)]
    assert (batches[0].images == batches[1].images).all() and (batches[0].texts.ids == batches[1].texts.ids).all()
    assert (batches[0].regions.target_box == batches[1].regions.target_box).all()


def test_every_row_is_equally_likely_to_stay():
    generator, counts = np.random.default_rng(0), np.zeros(6)
    for _ in range(3000):
        counts[choose_rows(generator.random(6).tolist(), 3)] += 1
    assert np.abs(counts / 3000 - 0.5).max() < 0.05


def test_operations_that_move_boxes_are_refused():
    with pytest.raises(ValueError, match="Rotate.*allowed: Identity, AutoContrast.*the others move boxes"):
        RegionImages.Config(files=["a"], operations=["Identity", "Rotate"])


def test_an_encoder_without_a_known_grid_is_refused(tmp_path):
    with pytest.raises(ValueError, match="grid of tokens is known: swin or vit"):
        open_dataset(tmp_path, [record()], grid=0)


def test_a_description_holds_every_text(tmp_path):
    contents = open_dataset(tmp_path, [record(caption="a table")]).describe(0)
    assert len(contents.images) == 1
    assert contents.captions == [("und", "a table"), ("en", "red mug"), ("de", "rote Tasse"), ("en", "plate"),
                                 ("de", "Teller")]  # fmt: skip


def test_a_description_refuses_pictures_that_its_boxes_leave(tmp_path):
    contents = open_dataset(tmp_path, [record()]).describe(0)
    contents.check_size(18, 24)
    with pytest.raises(BadRecord, match="box outside the image; found .* the image has 2 x 18 pixels"):
        contents.check_size(18, 2)
