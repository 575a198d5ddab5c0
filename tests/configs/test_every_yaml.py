from pathlib import Path

import pytest
import torch

import run
from compat.command import settle
from compat.processes import Processes
from configs.schema import Config
from dataset.loader import Layout
from models.model import Model
from tasks import DEFAULT_CONFIG
from utils.config import build, dump_yaml, load_config, to_tree
from utils.config_tree import plain, read_file

ROOT = Path(run.__file__).parent
FILES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name != "base")


def task_of(path):
    by_config = {config: task for task, config in DEFAULT_CONFIG.items()}
    return by_config.get(path, "pretrain" if "pretrain" in path or "quickstart" in path else "itr_multi30k")


def configuration(path, *words):
    flags = ["--fewshot", "de,100"] if path.endswith("_fewshot.yaml") else []
    arguments = run.parse(["--task", task_of(path), "--config", path, *flags, *words])
    return build(Config, settle(arguments, Processes(), DEFAULT_CONFIG, ROOT).tree)


@pytest.mark.parametrize("path", FILES)
def test_every_file_is_a_whole_configuration_that_builds(path):
    config = configuration(path)
    with torch.device("meta"):
        model = Model(config.model)
    assert sum(parameter.numel() for parameter in model.parameters()) > 0


@pytest.mark.parametrize("path", FILES)
def test_the_resolved_settings_read_back_equal(path, tmp_path):
    config = configuration(path)
    dump_yaml(config, tmp_path / "config.yaml")
    again = load_config(Config, tmp_path / "config.yaml")
    assert again == config and to_tree(again) == to_tree(config)


@pytest.mark.parametrize("path", FILES)
def test_a_file_holds_only_what_differs(path):
    own = read_file(ROOT / path)
    if "base" not in own.value:
        return
    bases = plain(own)["base"]
    inherited = [read_file((ROOT / path).parent / base) for base in ([bases] if isinstance(bases, str) else bases)]
    for base in inherited:
        shared = flat(plain(own)).items() & flat(plain(base)).items()
        assert not shared, f"{path} repeats {sorted(shared)}"


def flat(tree, prefix=""):
    entries = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            entries |= flat(value, f"{prefix}{key}.")
        else:
            entries[prefix + key] = str(value)
    return entries


def test_pretraining_3m_has_the_published_numbers():
    config = configuration("configs/ccrk/pretrain_3m.yaml")
    assert len(config.data.train.files) == 4 and config.data.batch_size == 128 and config.train.epochs == 30
    assert config.optim.lr == 1e-4 and config.optim.fresh_lr_multiplier == 2 and config.train.clip_norm == 1
    assert set(config.objectives) == {"one_to_k", "itm", "mlm"} and config.model.temperature.is_clamped
    with torch.device("meta"):
        model = Model(config.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == 523565901


def test_cclm_pretraining_has_the_published_numbers():
    small, large = (configuration(f"configs/cclm/pretrain_{size}.yaml") for size in ("3m", "4m"))
    for config in (small, large):
        assert config.data.batch_size == 1024 and config.schedule.warmup == 2500 and config.train.epochs == 30
        assert config.data.max_tokens == config.data.max_words == 40 and config.data.mask.max_masks == 12
        assert config.optim.lr == 1e-4 and config.optim.fresh_lr_multiplier == 2 and config.train.clip_norm == 1
        assert set(config.objectives) == {"itc", "itm", "mlm"} and config.data.train.caption_num == 1
        parallel = config.streams["parallel"]
        assert (parallel.batch_size, parallel.max_tokens, parallel.max_words) == (1024, 64, 64)
        assert parallel.mask.max_masks == 20 and parallel.probability == 1
        assert set(parallel.objectives) == {"ttc", "ttm", "mlm"}
    assert list(small.streams) == ["parallel"] and len(large.data.train.files) == 4
    regions = large.streams["regions"]
    assert regions.replaces_image and regions.probability == 0.5 and len(regions.train.files) == 3
    assert (regions.train.max_images, regions.train.max_regions, regions.batch_size) == (48 * 8, 5, 128 * 8)
    assert regions.train.code_switch and regions.train.careful_flip and regions.train.min_share_in_image == 0.5


def test_cclm_pretraining_takes_as_many_steps_as_published():
    config = configuration("configs/cclm/pretrain_4m.yaml")
    for num_records, steps in ((2838361, 83160), (5004332, 146640)):
        layout = Layout(num_records, config.data.batch_size, rank=0, world_size=8, drop_last=config.data.drop_last)
        assert config.train.epochs * layout.count_batches(0) == steps


def test_fine_tuning_has_the_published_size():
    config = configuration("configs/ccrk/retrieval_multi30k_en.yaml")
    assert config.data.max_words == 30 and not config.data.truncate and config.evaluation.num_candidates == 128
    assert list(config.data.test.files) == ["en", "de", "fr", "cs"] and list(config.data.train.files) == ["en"]
    with torch.device("meta"):
        model = Model(config.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == 522399611


def test_few_shots_fill_language_and_number():
    config = configuration("configs/ccrk/xflickrco_fewshot.yaml")
    assert config.data.train.files == {"de": "iglue/datasets/xFlickrCO/annotations/de/train_100.jsonl"}
    assert (
        config.data.test.files == config.data.val.files == {"de": "iglue/datasets/xFlickrCO/annotations/de/test.jsonl"}
    )


def test_gmt_takes_the_translated_test_files():
    config = configuration("configs/ccrk/wit.yaml", "--gmt")
    assert "en" not in config.data.test.files and config.data.test.files["ar"].endswith("test_ar_gmt.jsonl")
