"""The linear probe: it learns, goes on where it was stopped, and encodes pictures once where nothing is drawn."""

import numpy as np
import pytest
import torch

import rosetta
from dataset.image_steps import ImageSteps
from dataset.transforms import Resize
from tasks.linear_probe import LinearProbe, Probe
from tests.toy_pairs import png, write_run

COLOURS = [(220, 20, 20), (20, 220, 20), (20, 20, 220)]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for number, colour in enumerate(COLOURS):
            (folder / split / f"n{number}").mkdir(parents=True)
            for k in range(count):
                near = tuple(int(value) for value in np.clip(np.array(colour) + generator.integers(-20, 20, 3), 0, 255))
                (folder / split / f"n{number}" / f"{k}.png").write_bytes(png(near))
    return folder


def probe(run_folder, data, output, **settings):
    defaults = {"train_transform": Resize.Config(), "batch_size": 12, "epochs": 6, "lr": 100.0, "precision": "fp32"}
    config = LinearProbe.Config(
        checkpoint=str(run_folder), data=str(data), output_dir=str(output), **defaults | settings
    )
    return LinearProbe(config, rosetta.load).run()


def weights(output):
    return torch.load(output / "probe.pt", weights_only=True)["classifier"]


def test_colours_are_told_apart(run_folder, data, tmp_path):
    found = probe(run_folder, data, tmp_path, epochs=30)
    assert found["val"]["acc1"] > 60 and found["val"]["acc5"] == 100
    assert found["images"] == {"train": 24, "val": 12}


def test_pictures_are_encoded_once_where_nothing_is_drawn(run_folder, data, tmp_path, monkeypatch):
    counted = []
    encode = LinearProbe._encode
    monkeypatch.setattr(LinearProbe, "_encode", lambda self, *words: counted.append(1) or encode(self, *words))
    probe(run_folder, data, tmp_path / "fixed")
    assert len(counted) == 2  # train and val
    probe(run_folder, data, tmp_path / "fixed", epochs=7)
    assert len(counted) == 2  # both from the disk
    random = ImageSteps.Config(steps=["random_resize_crop"], scale=[0.5, 1.0])
    probe(run_folder, data, tmp_path / "random", train_transform=random, epochs=3)
    assert len(counted) == 2 + 1 + 3


@pytest.mark.parametrize("is_random", [False, True])
def test_a_stopped_command_ends_with_the_same_weights(run_folder, data, tmp_path, monkeypatch, is_random):
    steps = ImageSteps.Config(steps=["random_resize_crop", "autoaug"], scale=[0.5, 1.0])
    settings = {"train_transform": steps if is_random else Resize.Config(), "epochs": 3}
    probe(run_folder, data, tmp_path / "whole", **settings)
    step, calls = Probe.step, []

    def stop_at_fifth(self, *words):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(self, *words)

    monkeypatch.setattr(Probe, "step", stop_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        probe(run_folder, data, tmp_path / "stopped", **settings)
    probe(run_folder, data, tmp_path / "stopped", **settings)
    assert len(calls) == 5 + 2  # the third epoch only
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())


def test_both_splits_need_the_same_classes(run_folder, data, tmp_path):
    (data / "val/n9").mkdir()
    with pytest.raises(ValueError, match="the same classes; only in one of them: n9"):
        probe(run_folder, data, tmp_path)
    (data / "val/n9").rmdir()
