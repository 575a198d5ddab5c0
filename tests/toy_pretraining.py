"""What a tiny pre-training of R2D2 or PRD2 reads: pairs as JSON lines and tar shards, public towers to start from."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, CLIPConfig, CLIPModel

from tests.toy_r2d2 import CAPTIONS, IMAGE, NAMES, SIZES, TEXT, write_lines, write_world

TASKS = {"pretrain_r2d2": ["model.text_fusion.num_layers=2", "model.image_fusion.num_layers=2"], "pretrain_prd2": []}


def words_of(task: str, *more: str) -> list[str]:
    """The command of a tiny pre-training in the world's folder; its queue is no multiple of the batch."""
    own = ["data.batch_size=6", "objectives.tgd.queue_size=10", "optim.lr=1e-2", "schedule.warmup=1"]
    own += ["train.save_every_steps=2", "train.precision=fp32", "init.text=roberta", "init.image=clip.pt"]
    own += ["data.train.image_root=data/zero/IQR_IQM_ICR_ICM_images", "data.mask.mask_prob=0.4"]
    return ["--task", task, *SIZES, *TASKS[task], *own, "train.epochs=2", *more]


def write_pretraining(folder: Path) -> None:
    """Pairs and towers below `folder`, beside what fine-tuning reads."""
    write_world(folder)
    write_lines(folder / "data/zero/pretrain/pairs.json", pairs())
    (folder / "data/zero/shards").mkdir()
    for number in range(2):
        write_shard(folder, folder / f"data/zero/shards/{number}.tar", range(6 * number, 6 * number + 6))
    write_towers(folder)


def pairs() -> list[dict]:
    """A picture with several texts each."""
    return [
        {
            "image": f"{name}.jpg",
            "image_id": number,
            "query": CAPTIONS[number % len(CAPTIONS)],
            "title": [CAPTIONS[(number + k) % len(CAPTIONS)] for k in (1, 2)],
        }
        for number, name in enumerate(NAMES)
    ]


def write_shard(folder: Path, path: Path, numbers: range) -> None:
    """The same pairs as samples of a tar shard."""
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            record = pairs()[number]
            image = folder / "data/zero/IQR_IQM_ICR_ICM_images" / record.pop("image")
            members = {".jpg": image.read_bytes(), ".json": json.dumps(record, ensure_ascii=False).encode()}
            for ending, content in members.items():
                header = tarfile.TarInfo(f"{number:06}{ending}")
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))


def write_towers(folder: Path) -> None:
    """A Chinese RoBERTa and a CLIP, as their library saves them, in the sizes of the toy model."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    longest = {"vocab_size": TEXT["vocab_size"], "max_position_embeddings": TEXT["max_positions"]}
    BertForMaskedLM(BertConfig(**sizes, **longest, type_vocab_size=2)).save_pretrained(folder / "roberta")
    vision = sizes | {"intermediate_size": 4 * IMAGE["width"], "image_size": 32, "patch_size": 16}
    text = sizes | {"vocab_size": 20, "max_position_embeddings": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    torch.save(clip.state_dict(), folder / "clip.pt")
