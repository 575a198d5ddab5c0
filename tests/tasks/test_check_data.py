"""The check of data: what was planted is found, with its place, and nothing else."""

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import run
from dataset import DATASETS
from dataset.check import Checker, Count, count_chunks, cut_chunks
from dataset.check_pairs import Split, find_repeats
from dataset.retrieval import ImageTextPairs
from tests.dataset.toy import picture, preprocessing, write_lines
from tests.toy_ccrk import ROOT, toy_settings, write_toy_data
from utils.config import dump_yaml


@pytest.fixture
def folder(tmp_path):
    """A sound set: 24 pictures to train on, none of them in val and test."""
    write_toy_data(tmp_path, 40)
    for split, numbers in (("val", range(32, 36)), ("test", range(36, 40))):
        for language in ("en", "de"):
            records = json.loads((tmp_path / f"train.{language}.json").read_text())
            (tmp_path / f"{split}.{language}.json").write_text(json.dumps([records[k] for k in numbers]))
    lines = [line for part in range(2) for line in (tmp_path / f"pretrain/part_{part}.data").read_text().splitlines()]
    (tmp_path / "pretrain/part_0.data").write_text("\n".join(lines[:24]) + "\n")
    (tmp_path / "pretrain/part_1.data").unlink()
    return tmp_path


def edit(folder, number, **changes):
    """Change fields of a training record; a string in place of them replaces the line."""
    path = folder / "pretrain/part_0.data"
    lines = path.read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | changes)
    path.write_text("\n".join(lines) + "\n")


def check(folder, *words):
    """Exit status and metrics.json of the command."""
    dump_yaml(toy_settings(folder) | {"output_dir": str(folder / "out")}, folder / "c.yaml")
    status = run.main(["--task", "check_data", "--config", str(folder / "c.yaml"), "num_workers=0", *words])
    path = folder / "out/check_data/metrics.json"
    return status, json.loads(path.read_text()) if path.exists() else {}


def test_sound_data_is_usable_and_the_run_is_left_alone(folder, capsys):
    status, result = check(folder)
    train = result["splits"]["train"]
    assert status == 0 and result["usable"] and train["records"] == 24 and train["bad"] == 0 and not train["problems"]
    assert {name: each["captions"] for name, each in train["languages"].items()} == {"de": 24, "en": 24}
    assert result["leaks"]["val in train"]["images"] == result["leaks"]["test in train"]["captions"] == 0
    assert sorted(path.name for path in (folder / "out/check_data").iterdir()) == ["metrics.json", "report.html"]
    assert not (folder / "out/metrics.json").exists()
    assert "a run can use this data" in capsys.readouterr().out


def test_data_that_makes_no_batch_is_unusable(folder, capsys):
    status, result = check(folder, "data.batch_size=32")
    assert status == 1 and not result["splits"]["train"]["usable"]
    assert "has 24 records that can be used; needed: at least 32, the batch size" in capsys.readouterr().out
    assert check(folder, "data.batch_size=32", "data.drop_last=false")[0] == 0


def test_every_planted_problem_is_found_with_its_line(folder, capsys):
    cut = folder / "images/cut.png"
    cut.write_bytes((folder / "images/2.png").read_bytes()[:-30])
    edit(folder, 1, image_path="nowhere.png")
    edit(folder, 2, image_path="cut.png")
    edit(folder, 3, caption={"en": "no german"})
    edit(folder, 4, caption={"en": "...", "de": "leer"})
    edit(folder, 5, caption={"en": "word " * 50, "de": "kurz"})
    path = folder / "pretrain/part_0.data"
    path.write_text("\n" + path.read_text() + '{"broken\n')  # a blank line shifts the numbers by one
    status, result = check(folder, "data.max_bad_share=0.2")
    train = result["splits"]["train"]
    places = {
        reason: [text.split(": ")[0].rpartition(":")[2] for text in each["examples"]]
        for reason, each in train["problems"].items()
    }
    assert places == {
        "image file not found": ["3"],
        "truncated image": ["4"],
        "missing language": ["5"],
        "empty caption": ["6"],
        "broken JSON": ["26"],
    }
    assert train["bad"] == 5 and train["samples"] == 25 and status == 0
    english = train["languages"]["en"]
    assert english["cut"] == english["over_max_words"] == 1 and english["empty"] == 1
    assert train["languages"]["de"]["missing"] == 1 and train["languages"]["de"]["captions"] == 23
    assert check(folder, "data.max_bad_share=0.1")[0] == 1
    assert "part_0.data:4: truncated image" in capsys.readouterr().out


def test_pictures_smaller_than_the_model_sees_are_counted(folder):
    (folder / "images/3.png").write_bytes(picture(size=(48, 24)))
    _, result = check(folder)
    images = result["splits"]["train"]["images"]
    assert images["smaller_than_input"] == 1 and images["shorter_side"] == {"p5": 40, "p50": 40, "p95": 40}


def test_leaks_are_found_by_bytes_id_and_caption(folder):
    shutil.copy(folder / "images/36.png", folder / "images/renamed.png")
    edit(folder, 7, image_path="renamed.png")
    edit(folder, 8, image_path="33.png")
    test = json.loads((folder / "test.en.json").read_text())
    edit(folder, 9, caption={"en": test[2]["caption"].upper() + "!", "de": "etwas"})
    _, result = check(folder)
    leaks = result["leaks"]
    assert [leaks["test in train"][kind] for kind in ("images", "captions")] == [1, 1]
    assert leaks["val in train"]["images"] == 1
    assert leaks["test in train"]["image_examples"] == [f"{folder}/test.en.json[0] = {folder}/pretrain/part_0.data:8"]


def test_expected_false_negatives_are_those_of_all_batches(tmp_path):
    """Every batch of three of seven pairs, counted one by one."""
    for number, seed in enumerate((0, 0, 0, 1, 2, 3)):
        (tmp_path / f"{number}.png").write_bytes(picture(seed))
    pairs = [("0", "a"), ("1", "b"), ("0", "c"), ("3", "a"), ("4", "d"), ("5", "a"), ("2", "b")]
    records = [{"caption": caption, "image": f"{image}.png"} for image, caption in pairs]
    (tmp_path / "train.json").write_text(json.dumps(records))
    files = {"en": str(tmp_path / "train.json")}
    dataset = ImageTextPairs(ImageTextPairs.Config(files=files, image_root=str(tmp_path)), preprocessing())
    count = Count()
    for each in count_chunks(Checker(dataset, cut_chunks(dataset.num_records, 0, 0, 1), 8), 0):
        count.add(each)
    found = find_repeats(Split.of(count), 3, dataset.where_record)
    content = {"0": 0, "1": 0, "2": 0, "3": 1, "4": 2, "5": 3}
    by_image, by_caption = [], []
    for batch in itertools.combinations(pairs, 3):
        two = list(itertools.combinations(batch, 2))
        by_image.append(sum(content[a] == content[b] and a != b for (a, _), (b, _) in two))
        by_caption.append(sum(x == y and content[a] != content[b] for (a, x), (b, y) in two))
    assert found["false_negatives_per_batch"]["image"] == pytest.approx(np.mean(by_image))
    assert found["false_negatives_per_batch"]["caption"] == pytest.approx(np.mean(by_caption))
    assert found["distinct_images"] == 4 and found["images_under_several_ids"] == 4


def test_processes_and_workers_do_not_change_the_outcome(folder):
    edit(folder, 1, image_path="nowhere.png")
    edit(folder, 20, image_path="nowhere.png")
    _, alone = check(folder)
    words = [sys.executable, "run.py", "--task", "check_data", "--config", str(folder / "c.yaml"), "--nproc", "2"]
    done = subprocess.run([*words, "num_workers=1"], cwd=ROOT, capture_output=True, text=True)
    both = json.loads((folder / "out/check_data/metrics.json").read_text())
    assert done.returncode == 1, done.stderr
    assert {**both, "seconds": 0} == {**alone, "seconds": 0}


def test_a_sample_is_spread_over_the_split(folder):
    _, result = check(folder, "limit=6")
    assert result["splits"]["train"]["records"] == 6 and result["limit"] == 6
    assert np.concatenate(cut_chunks(24, 6, 0, 1)).tolist() == [0, 4, 8, 12, 16, 20]


def test_ranks_share_the_chunks():
    own = [np.concatenate(cut_chunks(1000, 0, rank, 3)) for rank in range(3)]
    assert np.array_equal(np.sort(np.concatenate(own)), np.arange(1000))


def test_a_split_without_files_is_told_and_the_others_are_read(folder):
    (folder / "val.de.json").unlink()
    status, result = check(folder)
    assert status == 1 and "val.de.json: no such data file" in result["splits"]["val"]["error"]
    assert result["splits"]["test"]["usable"] and not result["usable"]


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "--task check_data needs --config, the settings of a run"),
        (["--config", "configs/quickstart.yaml", "limit=-1"], "limit must be at least 0"),
        (["--config", "configs/quickstart.yaml", "limt=1"], "unknown key 'limt'"),
    ],
)
def test_wrong_commands_are_named(words, message, capsys):
    assert run.main(["--task", "check_data", *words]) == 2
    assert message in capsys.readouterr().err


def test_streams_are_read_too(folder):
    region = {"bb": [2, 2, 20, 20], "caption": {"en": "a corner"}}
    write_lines(folder / "regions.jsonl", [{"image_path": "36.png", "elems": [region]}, {"image_path": "x.png"}])
    write_lines(folder / "texts.jsonl", [{"source_text": "a", "target_text": "b"}, {"source_text": "a"}])
    region = {"name": "regions", "files": [str(folder / "regions.jsonl")], "image_root": str(folder / "images")}
    text = {"name": "parallel_text", "files": [str(folder / "texts.jsonl")]}
    streams = {
        "region": {"train": region, "objectives": {"itc": {}}},
        "text": {"train": text, "objectives": {"mlm": {}}},
    }
    status, result = check(folder, f"streams={json.dumps(streams)}")
    assert list(result["splits"]) == ["train", "streams.region", "streams.text", "val", "test"] and status == 0
    assert result["leaks"]["test in streams.region"]["images"] == 1
    text = result["splits"]["streams.text"]
    assert text["languages"]["source_text"]["captions"] == 2 and text["languages"]["target_text"]["missing"] == 1
    assert text["bad"] == result["splits"]["streams.region"]["bad"] == 1
    assert result["splits"]["streams.region"]["is_contrasted"] and not text["is_contrasted"]


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_kind_of_data_set_describes_its_records(name):
    kind = DATASETS.load(name)
    assert all(hasattr(kind, each) for each in ("describe", "num_records", "where_record"))
