"""A whole Chinese-CLIP project with our programs: LMDB, features, search, recall, zero-shot, API, training."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

import rosetta
from compat.chinese_clip_sizes import model_section
from configs.schema import load_settings
from dataset.lmdb_pairs import NUM_IMAGES, NUM_PAIRS, read_pair
from dataset.vectors import read_vectors
from tasks.build_lmdb import BuildLmdb
from tasks.evaluate_predictions import transpose
from tasks.extract import ExtractFeatures
from tasks.zero_shot import ZeroShot, read_prompts
from tests.parity.runners.cnclip_api import check_api
from tests.parity.runners.cnclip_pipeline_training import check_training
from tests.parity.runners.cnclip_search import check_recall, check_search, check_transposed
from utils.config import dump_yaml, to_tree

ROOT = Path(__file__).resolve().parents[3]
CONTEXT_LENGTH = 24  # of all but the Python API, says the fixtures' README
TOLERANCE = 1e-5
# Probabilities are rounded to six places: the last one may turn either way.
PROBABILITY_TOLERANCE = 2e-6


def run_pipeline(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        work, expected = Path(place), folder / "expected"
        check_lmdb(folder, work)
        config = write_config(folder, work)
        for split in sorted(path.name.split(".")[0] for path in expected.glob("*_texts.txt_feat.jsonl")):
            check_split(folder, split.removesuffix("_texts"), config, work)
        for result in sorted(expected.glob("zeroshot_*_top1.json")):
            check_zero_shot(folder, result.name.removeprefix("zeroshot_").removesuffix("_top1.json"), config, work)
        check_api(folder)
        for name in training_names(folder):
            check_training(folder, name)


def training_names(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "expected").glob("train_*.json"))


def check_lmdb(folder: Path, work: Path) -> None:
    """What we write, and what the original wrote, hold the listed records, in the order of the keys."""
    splits = sorted(path.name.removeprefix("lmdb_").removesuffix("_pairs.json") for path in folder.glob("*_pairs.json"))
    assert splits
    for split in splits:
        for end in ("imgs.tsv", "texts.jsonl"):
            shutil.copy(folder / "dataset" / f"{split}_{end}", work)
    BuildLmdb(BuildLmdb.Config(data_dir=str(work), splits=splits), None).run()
    for split in splits:
        for lmdb_dir in (work / "lmdb", folder / "dataset" / "lmdb"):
            for part in ("pairs", "imgs"):
                listed = json.loads((folder / f"lmdb_{split}_{part}.json").read_text(encoding="utf-8"))
                assert stored(lmdb_dir / split / part) == listed, f"{lmdb_dir}/{split}/{part}"


def stored(path: Path) -> list[Any]:
    found = []
    with lmdb.open(str(path), readonly=True, lock=False).begin() as transaction:
        for key, value in transaction.cursor():
            if key in (NUM_PAIRS, NUM_IMAGES):
                content: Any = value.decode()
            elif path.name == "pairs":
                pair = read_pair(value)
                content = [pair.image_id, pair.text_id, pair.text]
            else:
                content = {"base64_chars": len(value)}
            found.append([key.decode(), content])
    return found


def write_config(folder: Path, work: Path) -> str:
    settings = load_settings(ROOT / "configs/chinese_clip/vit_b_16.yaml")
    tree = to_tree(settings)
    tree["model"] = model_section(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    dump_yaml(tree, work / "tiny.yaml")
    return str(work / "tiny.yaml")


def check_split(folder: Path, split: str, config: str, work: Path) -> None:
    """Features from lines and from both LMDB folders; then the original's own features through search and recall."""
    expected, texts = folder / "expected", str(work / f"{split}_texts.jsonl")
    common = {"checkpoint": str(folder / "checkpoint.pt"), "model_config": config, "context_length": CONTEXT_LENGTH}
    lmdb_dirs = [work / "lmdb", folder / "dataset" / "lmdb"]
    for images in (*(str(path / split / "imgs") for path in lmdb_dirs), str(work / f"{split}_imgs.tsv")):
        ExtractFeatures(ExtractFeatures.Config(image_data=images, text_data=texts, **common), rosetta.load).run()
        image_file, text_file = (work / f"{split}_{end}" for end in ("imgs.img_feat.jsonl", "texts.txt_feat.jsonl"))
        for kind, path in (("image", image_file), ("text", text_file)):
            found, wanted = read_vectors(path, kind), read_vectors(expected / path.name, kind)
            if images.endswith(".tsv"):  # in the order of the lines, not of the keys
                assert sorted(found.ids) == sorted(wanted.ids)
            else:
                assert found.ids == wanted.ids
            rows = [found.ids.index(key) for key in wanted.ids]
            assert np.abs(found.values[rows] - wanted.values).max() <= TOLERANCE, (images, kind)
    files = [expected / f"{split}_{end}" for end in ("imgs.img_feat.jsonl", "texts.txt_feat.jsonl")]
    predictions, transposed = expected / f"{split}_predictions.jsonl", expected / f"{split}_tr_predictions.jsonl"
    check_search(*files, predictions, transposed)
    annotations = folder / "dataset" / f"{split}_texts.jsonl"
    check_transposed(annotations, expected / f"{split}_texts.tr.jsonl")
    assert transpose(annotations)
    check_recall(annotations, predictions, expected / f"{split}_result.json")
    check_recall(expected / f"{split}_texts.tr.jsonl", transposed, expected / f"{split}_tr_result.json")


def check_zero_shot(folder: Path, name: str, config: str, work: Path) -> None:
    expected, data = folder / "expected", folder / "zeroshot" / name
    wanted = json.loads((expected / f"zeroshot_{name}.json").read_text(encoding="utf-8"))
    index = data / "index.json"
    tool = ZeroShot(
        ZeroShot.Config(
            data=str(data / "test"),
            label_file=str(data / "label_cn.txt"),
            dataset=name,
            prompts=str(templates_of(folder)),
            index=str(index) if index.is_file() else "",
            save_dir=str(work / "save"),
            vision_model=wanted["model_name"].removeprefix("CN-CLIP-"),
            checkpoint=str(folder / "checkpoint.pt"),
            model_config=config,
            context_length=CONTEXT_LENGTH,
        ),
        rosetta.load,
    )
    result = tool.run()
    [top1] = json.loads((expected / f"zeroshot_{name}_top1.json").read_text(encoding="utf-8")).values()
    assert abs(result["top1"] - top1) < 1e-9
    assert re.match(r"zeroshot-top1: [\d.]+\n", tool.summary(result))
    written = json.loads((work / "save" / f"{name}.json").read_text(encoding="utf-8"))
    found, listed = (np.array(each.pop("predictions")) for each in (written, wanted))
    assert written == wanted
    assert found.shape == listed.shape and np.abs(found - listed).max() <= PROBABILITY_TOLERANCE


def templates_of(folder: Path) -> Path:
    """The original's prompts, a case of their own beside this one."""
    return folder.parent / "zeroshot_templates" / "templates.json"


def run_templates(folder: Path) -> None:
    """Every data set gets its list, order and repetitions kept; any other the default."""
    path = folder / "templates.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for dataset, name in {**content["dataset_to_list"], "any other": content["default_list"]}.items():
        assert read_prompts(str(path), dataset, "").sentences == content["lists"][name]
    for name, sentences in content["lists"].items():
        assert read_prompts(str(path), "any other", name).sentences == sentences


KINDS = {("chinese_clip", "pipeline"): run_pipeline, ("chinese_clip", "zeroshot_templates"): run_templates}
