"""CCLM's pre-training on four streams: what a step trains, what the log says, exact resume, and wrong settings."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import run
from configs.schema import Config
from dataset.streams import choose_streams
from tasks.image_text import ImageText
from tests.test_resume import assert_equal_runs, finish, kill_after_progress, log_of, start
from tests.toy_streams import stream_settings, write_stream_data
from trainer import Trainer
from utils.config import ConfigError, build, dump_yaml

OBJECTIVES = {
    "": {"itc", "itm", "mlm"},
    "parallel/": {"ttc", "ttm", "mlm"},
    "mono/": {"itc", "itm", "mlm"},
    "regions/": {"itc", "itm", "mlm", "bbox"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    write_stream_data(folder)
    return folder


def make_trainer(settings: dict[str, Any], output: Path) -> Trainer:
    torch.manual_seed(0)
    config = build(Config, settings)
    task = ImageText.from_config(config)
    options = {"output_dir": output, "seed": config.seed, "device": torch.device("cpu")}
    return Trainer(config.train, task, config.optim, config.schedule, **options)


def test_every_stream_trains_with_its_own_objectives(data, tmp_path):
    dump_yaml(stream_settings(data, epochs=2), tmp_path / "c.yaml")
    words = ["--config", str(tmp_path / "c.yaml"), "--output_dir", str(tmp_path / "out"), "train.log_every_steps=100"]
    assert run.main(words) == 0
    record = next(line for line in log_of(tmp_path / "out") if line["kind"] == "train")
    found = {name for name in record if name.startswith("train/")}
    wanted = {f"train/{stream}{name}" for stream, names in OBJECTIVES.items() for name in names}
    assert wanted <= found and all(name.startswith(tuple(wanted)) for name in found)
    assert record["step"] == 12 and all(0 < record[name] < 100 for name in found)
    environment = json.loads((tmp_path / "out/environment.json").read_text())
    assert {"regions.data", "pairs.data", "mono.data"} <= {Path(entry["path"]).name for entry in environment["data"]}


def test_a_step_updates_once_for_every_stream_it_takes_and_only_what_the_stream_reaches(data, tmp_path):
    settings = stream_settings(data) | {"schedule": {"warmup": 0}}
    trainer = make_trainer(settings, tmp_path)
    batches, seen = trainer.stream(), []
    for step in range(6):
        trainer.train_step(step, batches)
        seen += choose_streams(build(Config, settings).streams, settings["seed"], step)
    counts = trainer.num_updates
    with_images = sum(name != "parallel" for name in seen)
    assert counts["model.image_encoder.backbone.patch_embed.proj.weight"] == with_images < len(seen)
    assert counts["model.text_encoder.word.weight"] == len(seen)
    assert trainer.task.num_steps == 6
    moments = trainer.optimizer.state
    for name, parameter in trainer.task.named_parameters():
        assert moments[parameter]["step"].item() == counts[name] if parameter in moments else counts[name] == 0


def test_two_processes_killed_on_several_streams_end_bit_equal(data, tmp_path):
    config = tmp_path / "c.yaml"
    dump_yaml(stream_settings(data, epochs=3, eval_every_epochs=0, save_every_steps=3), config)
    finish(start(config, tmp_path / "whole", 2, "streams.regions.num_workers=1"))
    process = start(config, tmp_path / "killed", 2, "streams.regions.num_workers=1")
    kill_after_progress(process, tmp_path / "killed", random.Random(2))
    assert log_of(tmp_path / "killed")[-1]["step"] < log_of(tmp_path / "whole")[-1]["step"]
    finish(start(config, tmp_path / "killed", 2, "streams.regions.num_workers=1"))
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("last_step", [1, 4, 8])
def test_a_run_that_breaks_off_on_several_streams_ends_bit_equal(data, tmp_path, monkeypatch, last_step):
    settings = stream_settings(data, epochs=2, eval_every_epochs=0, save_every_steps=3)
    make_trainer(settings, tmp_path / "whole").fit()

    def break_off(trainer, step, batches, train_step=Trainer.train_step):
        if step > last_step:
            raise InterruptedError
        return train_step(trainer, step, batches)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(Trainer, "train_step", break_off)
        make_trainer(settings, tmp_path / "broken").fit()
    make_trainer(settings, tmp_path / "broken").fit()
    assert_equal_runs(tmp_path / "broken", tmp_path / "whole")


def test_two_captions_of_an_image_meet_each_other(data, tmp_path):
    settings = stream_settings(data) | {"schedule": {"warmup": 0}, "streams": {}}
    settings["data"]["train"] |= {"caption_num": 2, "caption_order": "drawn"}
    settings["objectives"] = {"itc": {}, "ttc": {}, "itm": {"positive_text": "first"}, "mlm": {}}
    trainer = make_trainer(settings, tmp_path)
    trainer.train_step(0, trainer.stream())
    assert set(trainer.meter.parts) == {"itc", "ttc", "itm", "mlm"} and len(trainer.meter.parts) == 4


def test_a_batch_that_some_process_would_get_nothing_of_is_refused(data, tmp_path, capsys):
    dump_yaml(stream_settings(data), tmp_path / "c.yaml")
    words = ["--config", str(tmp_path / "c.yaml"), "--nproc", "6", "data.batch_size=8", "streams.mono.batch_size=8"]
    assert run.main(words) == 2
    assert "streams.regions.train.max_images 4 cannot be shared among 6 processes" in capsys.readouterr().err


def test_a_stream_without_probability_changes_nothing(data, tmp_path):
    logs = []
    for name, files in (("with", "absent.data"), ("without", None)):
        settings = stream_settings(data, epochs=1, eval_every_epochs=0, find_unused_parameters=True)
        settings["model"]["has_box_head"] = False
        parallel = settings.pop("streams")["parallel"]
        if files:
            parallel |= {"probability": 0, "train": {"name": "parallel_text", "files": [files]}}
            settings["streams"] = {"parallel": parallel}
        dump_yaml(settings, tmp_path / f"{name}.yaml")
        words = ["--config", str(tmp_path / f"{name}.yaml"), "--output_dir", str(tmp_path / name)]
        assert run.main(words) == 0
        logs.append(log_of(tmp_path / name))
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.accumulate": 2}, "train.accumulate must be 1 and not decoupled with several streams, found 2"),
        ({"streams.parallel.objectives": {}}, "streams.parallel: objectives is empty"),
        ({"streams.parallel.probability": 1.5}, r"streams.parallel: probability must be in \[0, 1\], found 1.5"),
        ({"streams.regions.train_transform": "resize"}, "streams.regions: train_transform: regions have their own"),
        ({"model.has_box_head": False}, "streams.regions.objectives.bbox needs model.has_box_head: true"),
        ({"model.has_masked_language_head": False}, "mlm needs model.has_masked_language_head: true"),
        ({"streams.mono.probability": 0.6, "streams.mono.replaces_image": True}, "are 1.1 together, allowed at most 1"),
        ({"streams.regions.train.max_regoins": 3}, "unknown key 'streams.regions.train.max_regoins'; did you mean"),
    ],
)
def test_wrong_settings_of_streams_name_the_key(data, changes, message):
    settings = stream_settings(data)
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        section = settings
        for key in path:
            section = section[key]
        section[last] = value
    with pytest.raises(ConfigError, match=message):
        build(Config, settings)


def test_text_longer_than_the_encoder_is_told_by_stream(data):
    settings = stream_settings(data)
    settings["streams"]["parallel"]["train"]["is_translation_modelling"] = True
    settings["streams"]["parallel"]["max_tokens"] = 26
    with pytest.raises(ValueError, match="streams.parallel.max_tokens comes to 52 is more than the encoder's 50"):
        ImageText.from_config(build(Config, settings))


def test_a_broken_region_ends_the_run_with_its_line(data, tmp_path, capsys):
    settings = stream_settings(data, epochs=1)
    line = json.loads((data / "regions.data").read_text().splitlines()[0])
    line["elems"] = [line["elems"][0] | {"bb": [40, 0, 20, 40]}]
    (tmp_path / "bad.data").write_text((json.dumps(line) + "\n") * 8)
    settings["streams"]["regions"]["train"]["files"] = [str(tmp_path / "bad.data")]
    dump_yaml(settings, tmp_path / "c.yaml")
    assert run.main(["--config", str(tmp_path / "c.yaml"), "--output_dir", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "bad.data:" in said and "box outside the image; found [40, 0, 20, 40]; the image has 40 x 40 pixels" in said
