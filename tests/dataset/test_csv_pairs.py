"""ZeroVL's annotation tables: rows, quoted cells, ids, and what is wrong with them."""

import numpy as np
import pytest
from PIL import Image

from dataset.bad_records import BadRecords
from dataset.csv_pairs import CsvPairs
from dataset.files import BadRecord, DataError, Files
from dataset.readers import Records
from dataset.samples import Preprocessing
from dataset.text import load_tokenizer
from dataset.text_augment import WordNoise
from dataset.transforms import Resize
from tests.toy_ccrk import TOKENIZER

ROWS = '''image,image_id,caption,caption_id
kite.png,7,"a red kite, high over the pier",3001
kite.png,7,"two people
fly a ""kite""",3002
boat.png,12,a small boat,3003
gone.png,-1,never evaluated,3004
'''


def write_set(folder, rows=ROWS, split="valid"):
    (folder / split).mkdir(parents=True, exist_ok=True)
    for name, colour in (("kite", (200, 0, 0)), ("boat", (0, 0, 200))):
        Image.new("RGB", (20, 20), colour).save(folder / split / f"{name}.png")
    path = folder / f"{split}_anno.csv"
    path.write_text(rows, encoding="utf-8")
    return str(path)


def open_set(path, **settings):
    tokenizer = load_tokenizer(TOKENIZER)
    preprocessing = Preprocessing(tokenizer, Resize(Resize.Config(), 16), max_tokens=25)
    return CsvPairs(CsvPairs.Config(files={"toy": path}, **settings), preprocessing)


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_cells_may_hold_commas_quotes_and_line_breaks(tmp_path, chunk, monkeypatch):
    monkeypatch.setattr("dataset.readers.CHUNK_BYTES", chunk)
    records = Records([write_set(tmp_path)], Files())
    assert [records.read(k)["caption"] for k in range(len(records))] == [
        "a red kite, high over the pier", 'two people\nfly a "kite"', "a small boat", "never evaluated",
    ]  # fmt: skip


def test_training_reads_the_folder_beside_the_table(tmp_path):
    data = open_set(write_set(tmp_path, split="train"))
    sample = data.sample(2, np.random.default_rng(0))
    assert len(data) == 4 and sample.image.shape == (3, 16, 16) and sample.image[2].min() > 150
    assert data.sample(0, np.random.default_rng(0)).image_id == data.sample(1, np.random.default_rng(0)).image_id


def test_gallery_has_every_picture_once_and_no_negative_id(tmp_path):
    data = open_set(write_set(tmp_path))
    [gallery] = data.galleries(BadRecords(0.0))["toy"]
    assert len(gallery.image_paths) == 2 and gallery.image_of_text.tolist() == [0, 0, 1]


def test_sets_with_equal_file_names_stay_apart(tmp_path):
    paths = {name: write_set(tmp_path / name) for name in ("one", "two")}
    data = open_set(paths["one"])
    data = CsvPairs(CsvPairs.Config(files=paths), data.preprocessing)
    names = [path for folds in data.galleries(BadRecords(0.0)).values() for path in folds[0].image_paths]
    assert len(set(names)) == 4


def test_missing_column_is_told_with_what_was_found(tmp_path):
    path = write_set(tmp_path, "image,caption\nkite.png,a kite\n")
    with pytest.raises(DataError, match=r"valid_anno.csv:1: no column image_id; found: image, caption"):
        open_set(path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("kite.png,7,,1", "missing caption"),
        ("kite.png,7,a kite", "broken row"),
        ("kite.png,seven,a kite,1", "image_id is not a whole number"),
        ("absent.png,7,a kite,1", "image file not found"),
    ],
)
def test_bad_row_says_what_is_wrong(tmp_path, row, reason):
    data = open_set(write_set(tmp_path, f"image,image_id,caption,caption_id\n{row}\n"))
    with pytest.raises(BadRecord, match=reason):
        data.sample(0, np.random.default_rng(0))


def test_noise_changes_a_fifth_of_the_pieces_by_the_sample_s_generator(tmp_path):
    tokenizer = load_tokenizer(TOKENIZER)
    noise = WordNoise(WordNoise.Config(share=0.2), tokenizer)
    text = "red colour left side number one"
    assert noise(text, np.random.default_rng(3)) == noise(text, np.random.default_rng(3))
    changed = sum(noise(text, np.random.default_rng(seed)) != WordNoise(WordNoise.Config(), tokenizer)(text, None)
                  for seed in range(40))  # fmt: skip
    assert changed > 10
