"""The data section as a whole: from settings to batches and galleries, on the bundled set."""

import pytest
import torch

from dataset.data import Data, DataConfig
from dataset.files import DataError
from tests.conftest import ROOT
from tests.dataset.toy import picture, write_lines
from utils.config import ConfigError, build

ARCHIVE = f"{ROOT}/assets/emoji/emoji_96px.zip"
LANGUAGES = ["en", "tr"]


def settings(**changes):
    tree = {
        "tokenizer": f"{ROOT}/assets/tokenizers/bert-base-uncased",
        "train": {
            "name": "captioned_images",
            "files": [f"{ARCHIVE}::annotations/pretrain/train.jsonl"],
            "image_root": ARCHIVE,
            "languages": LANGUAGES,
        },
        "test": {
            "name": "image_text_pairs",
            "files": {name: f"{ARCHIVE}::annotations/retrieval/test.{name}.json" for name in LANGUAGES},
            "image_root": ARCHIVE,
        },
        "train_transform": "shift",
        "batch_size": 8,
        "cache_dir": "",
    }
    return build(DataConfig, {**tree, **changes})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_the_bundled_set_do_not_depend_on_workers(num_workers):
    def first(count):
        data = Data(settings(num_workers=count), image_size=16, seed=3, has_masks=True)
        return next(iter(data.train_loader()))

    batch, plain = first(num_workers), first(0)
    assert batch.images.shape == (8, 3, 16, 16) and batch.num_texts == 16
    assert torch.equal(batch.images, plain.images) and torch.equal(batch.masked.ids, plain.masked.ids)
    assert torch.equal(batch.texts.ids, plain.texts.ids)


def test_galleries_of_the_bundled_set_show_the_same_pictures():
    data = Data(settings(), image_size=16, seed=3)
    data.check()
    galleries = data.galleries("test")
    (english,), (turkish,) = galleries["en"], galleries["tr"]
    assert english.image_paths == turkish.image_paths and len(english.captions) == 668
    assert torch.equal(english.read_images([5]), turkish.read_images([5]))
    assert data.thumbnail(english.image_paths[5]).startswith("data:image/jpeg;base64,")
    assert data.galleries("val") == {}
    assert Data(settings(languages=["tr"]), image_size=16, seed=3).galleries("test").keys() == {"tr"}


def test_mistakes_are_found_early():
    with pytest.raises(FileNotFoundError, match="no such tokenizer"):
        Data(settings(tokenizer="absent"), image_size=16, seed=0)
    files = {"en": "absent.json"}
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        Data(settings(test={"name": "image_text_pairs", "files": files}), image_size=16, seed=0).check()
    with pytest.raises(ConfigError, match="languages: test has no xx; found: en, tr"):
        settings(languages=["xx"])
    with pytest.raises(ConfigError, match="batch_size must be at least 1, found 0"):
        settings(batch_size=0)
    with pytest.raises(ConfigError, match="did you mean 'resize'"):
        settings(test_transform="resise")


def test_files_with_too_many_empty_captions_stop_the_run(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    records = [{"caption": [".", "a cat"], "image": "a.png"}] * 9
    test = {"name": "image_text_pairs", "files": [write_lines(tmp_path / "t.jsonl", records)]}
    with pytest.raises(DataError, match="9 of 18 records could not be used"):
        Data(settings(test=test), image_size=16, seed=0).galleries("test")
    assert Data(settings(test=test, max_bad_share=0.5), image_size=16, seed=0).galleries("test")
