"""Pictures with captions in many languages: which captions meet, and what is left out."""

import numpy as np
import pytest
import torch

from dataset.bad_records import BadRecords
from dataset.files import BadRecord, DataError
from dataset.pretrain import CaptionedImages
from dataset.text import SkipgramMasker
from tests.dataset.toy import base64_of, picture, preprocessing, write_lines

CAPTIONS = {"en": "a red bus", "de": "ein roter Bus", "ja": "赤い バス"}


def open_dataset(tmp_path, records, masker=None, **settings):
    (tmp_path / "a.png").write_bytes(picture())
    path = write_lines(tmp_path / "x.jsonl", records)
    config = CaptionedImages.Config(files=[path], image_root=str(tmp_path), **settings)
    return CaptionedImages(config, preprocessing(masker=masker))


def read(dataset, index=0, seed=0):
    return dataset.sample(index, np.random.default_rng(seed))


def test_captions_come_in_the_order_of_the_languages(tmp_path):
    record = {"caption": CAPTIONS, "image_path": "a.png"}
    dataset = open_dataset(tmp_path, [record], languages=["ja", "en"])
    words = dataset.preprocessing.tokenizer.encode_batch(["赤い バス", "a red bus"], 40)
    assert read(dataset).texts == words and read(dataset).languages == [0, 1]
    assert open_dataset(tmp_path, [record]).languages == ["de", "en", "ja"]


def test_some_of_the_languages_are_drawn_in_their_order(tmp_path):
    dataset = open_dataset(tmp_path, [{"caption": CAPTIONS, "image_path": "a.png"}], caption_num=2)
    draws = {tuple(read(dataset, seed=seed).languages) for seed in range(30)}
    assert draws == {(0, 1), (0, 2), (1, 2)}


def test_the_content_decides_between_path_and_base64(tmp_path):
    data = base64_of(picture(seed=1))
    records = [
        {"caption": CAPTIONS, "image_path": "a.png"},
        {"caption": CAPTIONS, "image_path": data},
        {"caption": CAPTIONS, "binary": data},
        {"caption": CAPTIONS, "image": f"data:image/png;base64,{data}"},
        {"caption": CAPTIONS, "image": data.replace("+", "-").replace("/", "_").rstrip("=")},
        {"caption": CAPTIONS, "image": f"{tmp_path}/a.png"},
    ]
    dataset = open_dataset(tmp_path, records)
    images = [read(dataset, index).image for index in range(len(records))]
    assert np.array_equal(images[0], images[5]) and not np.array_equal(images[0], images[1])
    assert all(np.array_equal(images[1], images[k]) for k in (2, 3, 4))


@pytest.mark.parametrize(
    "record, reason",
    [
        ({"image_path": "a.png"}, "missing caption"),
        ({"caption": "a bus", "image_path": "a.png"}, "missing caption"),
        ({"caption": [], "image_path": "a.png"}, "missing caption"),
        ({"caption": {"en": "a bus"}, "image_path": "a.png"}, "missing language"),
        ({"caption": {**CAPTIONS, "de": "..."}, "image_path": "a.png"}, "empty caption"),
        ({"caption": {**CAPTIONS, "de": 7}, "image_path": "a.png"}, "caption is not a string"),
        ({"caption": CAPTIONS}, "missing image"),
        ({"caption": CAPTIONS, "image_path": {"a": 1}}, "missing image"),
        ({"caption": CAPTIONS, "image_path": "absent.png"}, "image file not found"),
        ({"caption": CAPTIONS, "image_path": "a\0b.png"}, "unreadable image file"),
        ({"caption": CAPTIONS, "image_path": "a\ud800.png"}, "unreadable image file"),
        ({"caption": CAPTIONS, "image_path": "."}, "unreadable image file"),
        ({"caption": CAPTIONS, "image_path": "/dev/zero"}, "unreadable image file"),
        ({"caption": CAPTIONS, "image": "iVBORw0KGgo*"}, "broken base64"),
        ({"caption": CAPTIONS, "image": base64_of(picture(size=(99, 99)))[:-900]}, "truncated image"),
        ("{", "broken JSON"),
    ],
)
def test_unusable_records_say_why(tmp_path, record, reason):
    good = {"caption": CAPTIONS, "image_path": "a.png"}
    dataset = open_dataset(tmp_path, [good, record])
    with pytest.raises(BadRecord) as error:
        read(dataset, 1)
    assert error.value.reason == reason
    assert dataset.where(1).endswith("x.jsonl:2")


def test_endless_captions_end(tmp_path):
    record = {"caption": {"en": "x" * 5_000_000, "ja": "猫 " * 1_000_000}, "image_path": "a.png"}
    dataset = open_dataset(tmp_path, [record])
    dataset.preprocessing.max_words = 10**9
    assert max(map(len, read(dataset).texts)) == 40
    dataset.preprocessing.truncate = False
    assert max(map(len, read(dataset).texts)) == 512


def test_missing_languages_can_be_kept(tmp_path):
    records = [{"caption": {"en": "a bus", "de": ""}, "image_path": "a.png"}, {"caption": {}, "image_path": "a.png"}]
    dataset = open_dataset(tmp_path, records, languages=["de", "en"], missing_language="keep")
    assert read(dataset).languages == [1]
    with pytest.raises(BadRecord, match="missing caption"):
        read(dataset, 1)


def test_one_of_several_caption_sets_is_drawn(tmp_path):
    dataset = open_dataset(tmp_path, [{"caption": [{"en": "one"}, {"en": "two"}], "image_path": "a.png"}])
    assert len({tuple(read(dataset, seed=seed).texts[0]) for seed in range(20)}) == 2


def test_batches_are_image_major(tmp_path):
    masker = SkipgramMasker(SkipgramMasker.Config(max_masks=3), mask_id=99, vocab_size=100)
    records = [{"caption": CAPTIONS, "image_path": name} for name in ("a.png", "./a.png", base64_of(picture(3)))]
    dataset = open_dataset(tmp_path, records, masker=masker)
    batch = dataset.collate([read(dataset, index) for index in range(3)], [])
    assert batch.images.shape == (3, 3, 8, 8) and batch.images.dtype == torch.uint8
    assert batch.image_of_text.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert batch.language_of_text.tolist() == [0, 1, 2] * 3
    assert batch.image_id[0] == batch.image_id[1] != batch.image_id[2]
    assert batch.texts.lengths == [5, 5, 4] * 3 and batch.texts.ids[2, 4] == 1
    assert batch.masked.positions.shape == (9, 3)
    same = batch.masked.ids == batch.texts.ids
    assert same[:, 0].all() and not same.all()
    assert batch.num_tokens == 42 and batch.num_padded_tokens == 45
    assert batch.to("cpu").texts.lengths == batch.texts.lengths


def test_kept_pictures_are_the_same_pictures(tmp_path):
    dataset = open_dataset(tmp_path, [{"caption": CAPTIONS, "image_path": "a.png"}], keep_in_memory=True)
    first = read(dataset).image
    (tmp_path / "a.png").unlink()
    assert np.array_equal(read(dataset).image, first)


def test_lines_of_captions_are_galleries_too(tmp_path):
    records = [
        {"caption": CAPTIONS, "image_path": "a.png"},
        {"caption": CAPTIONS, "image_path": base64_of(picture(3))},
        "{",
    ]
    galleries = open_dataset(tmp_path, records).galleries(BadRecords(1.0))
    assert list(galleries) == ["de", "en", "ja"]
    (gallery,) = galleries["ja"]
    assert gallery.captions == ["赤い バス"] * 2 and gallery.image_paths[0] == "a.png"
    assert gallery.read_images([1, 0]).shape == (2, 3, 8, 8)


def test_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match="files is empty"):
        CaptionedImages.Config()
    with pytest.raises(ValueError, match="holds one twice"):
        CaptionedImages.Config(files=["x"], languages=["de", "de"])
    with pytest.raises(ValueError, match="between 0 and 1, found 2"):
        CaptionedImages.Config(files=["x"], languages=["de"], caption_num=2)
    with pytest.raises(DataError, match="no record has captions by language under 'caption'"):
        open_dataset(tmp_path, [{"n": 1}])


def test_a_description_holds_every_caption_set_and_what_is_missing(tmp_path):
    sets = [{"en": "a bus", "de": ""}, {"en": "a red bus"}]
    records = [{"caption": sets, "image_path": "./a.png"}, "broken"]
    dataset = open_dataset(tmp_path, records, languages=["en", "de"])
    contents = dataset.describe(0)
    assert contents.captions == [("en", "a bus"), ("de", ""), ("en", "a red bus"), ("de", None)]
    assert contents.images == [("./a.png", str(tmp_path))] and contents.image_id == "a.png"
    assert contents.needed == "all" and dataset.num_records == 2
    with pytest.raises(BadRecord, match=r"x.jsonl:2: broken JSON"):
        dataset.describe(1)


def test_captions_without_a_language_are_texts_or_lists_of_texts(tmp_path):
    records = [{"desc": "ein Hund", "image_path": "a.png"}, {"desc": ["eine Katze", "ein Tier"], "image_path": "a.png"}]
    dataset = open_dataset(tmp_path, records, languages=[], caption_key="desc", caption_num=1)
    assert dataset.languages == ["und"]
    tokenizer = dataset.preprocessing.tokenizer
    assert dataset.sample(0, np.random.default_rng(0)).texts == tokenizer.encode_batch(["ein hund"], 40)
    drawn = {tuple(dataset.sample(1, np.random.default_rng(seed)).texts[0]) for seed in range(20)}
    assert drawn == set(map(tuple, tokenizer.encode_batch(["eine katze", "ein tier"], 40)))


def test_any_language_of_a_record_can_be_drawn_when_none_is_named(tmp_path):
    records = [{"caption": {"en": "dog"}, "image_path": "a.png"}, {"caption": {"fr": "chat"}, "image_path": "a.png"}]
    dataset = open_dataset(tmp_path, records, languages=[], caption_num=1, missing_language="keep")
    chat = dataset.preprocessing.tokenizer.encode_batch(["chat"], 40)
    assert dataset.sample(1, np.random.default_rng(0)).texts == chat
    assert dataset.describe(1).captions == [("fr", "chat")]


def test_two_drawn_captions_can_come_in_any_order(tmp_path):
    dataset = open_dataset(
        tmp_path, [{"caption": CAPTIONS, "image_path": "a.png"}], caption_num=2, caption_order="drawn"
    )
    orders = {tuple(dataset.sample(0, np.random.default_rng(seed)).languages) for seed in range(30)}
    assert {tuple(reversed(order)) for order in orders} == orders and all(len(set(order)) == 2 for order in orders)


def test_a_picture_with_fewer_captions_than_are_compared_is_left_out(tmp_path):
    record = {"caption": {"en": "a bus"}, "image_path": "a.png"}
    settings = {"caption_num": 2, "caption_order": "drawn", "missing_language": "keep"}
    dataset = open_dataset(tmp_path, [{"caption": CAPTIONS, "image_path": "a.png"}, record], **settings)
    with pytest.raises(BadRecord, match="too few captions; needed 2, found en"):
        read(dataset, 1)


def test_tokenized_captions_are_not_cleaned(tmp_path):
    dataset = open_dataset(tmp_path, [{"caption": {"en": " \u2581A \u2581Dog . "}, "image_path": "a.png"}],
                           languages=["en"], tokenized=True)  # fmt: skip
    assert dataset.preprocessing.clean(" \u2581A \u2581Dog . ", 1) == "\u2581A \u2581Dog ."
