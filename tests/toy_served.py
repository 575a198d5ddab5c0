"""The output folder of a run with fresh tiny weights, as serving and exporting read it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from configs.schema import Config
from models.model import Model
from tests.toy_ccrk import ROOT, toy_settings, write_toy_data
from utils.checkpoint import write_weights
from utils.config import build, dump_yaml


def write_run(folder: Path, *, num_images: int = 8, seed: int = 0, objective: str = "itc", **model: Any) -> Path:
    """`folder`/out with config.yaml and weights, and `folder`/data with the pictures; `model` changes its settings."""
    write_toy_data(folder / "data", num_images=num_images)
    tree = toy_settings(folder / "data")
    tree["model"] |= model
    tree["objectives"] = {objective: {}}
    settings = build(Config, tree)
    torch.manual_seed(seed)
    place = folder / "out" / "checkpoints" / "last"
    place.mkdir(parents=True)
    write_weights(Model(settings.model).state_dict(), place / "model.safetensors")
    dump_yaml(settings, folder / "out" / "config.yaml")
    return folder / "out"


HOSTILE = "<img src=x onerror=window.hacked=1>.png"  # as a file name and as a caption


def write_gallery(folder: Path) -> list[str]:
    """Pictures and captions for a page, one of them hostile; the words that serve them."""
    images = folder / "data" / "images"
    (images / HOSTILE).write_bytes((images / "0.png").read_bytes() + b" ")
    names = sorted(path.name for path in images.iterdir())
    captions = [{"image": name, "captions": {"en": f"picture {name}", "zh": f"图片 {name}"}} for name in names]
    (folder / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
    return [f"images={json.dumps(str(images))}", f"captions={folder}/captions.json", f"index_dir={folder}/index"]


@contextmanager
def served(folder: Path, *words: str) -> Iterator[tuple[str, subprocess.Popen, Path]]:
    """The address of a server on a free port, its process, and the file with what it says; ended by SIGTERM."""
    command = [sys.executable, str(ROOT / "run.py"), "--task", "serve", "--checkpoint", str(folder / "out"), "port=0"]
    said = folder / f"said-{len(list(folder.glob('said-*')))}.txt"
    with said.open("w") as file:
        process = subprocess.Popen([*command, *words], cwd=ROOT, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 90
        while not (found := re.search(r"open (http://\S+)", said.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {said.read_text()[-2000:]}")
            time.sleep(0.1)
        yield found.group(1), process, said
    finally:
        process.terminate()
        process.wait(30)
