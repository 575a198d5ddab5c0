"""extraction: vectors of pictures and texts in files, as Chinese-CLIP's extract_features.py goes, and --task
extract_features.

The plain way decodes base64 records of the LMDB and resizes with Pillow in the process, pads every text to 52 tokens,
keeps all tokens up to the end of the image tower, and writes JSON lines in fp32, in batches of 32 as its README has it.
Both ways have the same weights and threads; starting and loading are not timed.
"""

from __future__ import annotations

import base64
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from bench import plain
from bench.common import Options, Result, agree, as_by_default, caption_lengths, histogram, interleaved, rates
from bench.image_pipeline import encode_photo
from compat.chinese_clip_sizes import model_section, named_config
from configs.schema import Config
from dataset.inference import Inference
from dataset.lmdb_pairs import NUM_IMAGES
from dataset.original_bert import clean_chinese
from dataset.vectors import read_vectors
from models.model import Model
from tasks.build_lmdb import BuildLmdb
from tasks.extract import ExtractFeatures
from utils.allocator import keep_freed_memory
from utils.config import build

BATCH, PADDED, MEAN_LENGTH = 32, 52, 14  # the README's batch; tokens of the models; of captions in Chinese
TINY = {"image_resolution": 32, "vision_layers": 2, "vision_width": 64, "vision_patch_size": 16, "embed_dim": 16,
        "text_hidden_size": 32, "text_intermediate_size": 64, "text_num_attention_heads": 2,
        "text_num_hidden_layers": 2}  # fmt: skip
KINDS = ("image", "text")
GOALS = {"fp32": "1.5x", "bf16": "3x"}


def run(options: Options) -> list[Result]:
    """Rows of pictures and texts, in fp32 and bf16."""
    keep_freed_memory()
    config = named_config("ViT-B-16", "RoBERTa-wwm-ext-base-chinese") | (TINY if options.is_small else {})
    counts = dict(zip(KINDS, (6, 10) if options.is_small else (32, 192), strict=True))
    loaded = make_loaded(config)
    lengths = caption_lengths(counts["text"], MEAN_LENGTH, PADDED)
    seconds: dict[str, list[dict[str, float]]] = {"plain": [], "fp32": [], "bf16": []}
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        folder = Path(place)
        write_data(folder, counts["image"], lengths)
        ways: dict[str, Callable[[], object]] = {
            "plain": as_by_default(lambda: seconds["plain"].append(plain_way(loaded, folder))),
            "fp32": lambda: seconds["fp32"].append(our_way(loaded, folder, "fp32")),
            "bf16": lambda: seconds["bf16"].append(our_way(loaded, folder, "bf16")),
        }
        interleaved(ways, options.repeats, is_repeated=True)
        words = {key: compare(folder, *key) for key in ((kind, precision) for kind in KINDS for precision in GOALS)}
    # The first run warms up, and each timed one follows one of its own kind.
    times = {(way, kind): [run[kind] for run in runs[2::2]] for way, runs in seconds.items() for kind in KINDS}
    notes = [f"extraction: {histogram(lengths)}; the plain way pads to {PADDED}"]
    return [
        rates(
            "extraction",
            f"{counts[kind]} {kind}s of an LMDB folder or JSON lines to vectors in a file, {precision}",
            words[kind, precision],
            (counts[kind], f"{kind}s"),
            (times["plain", kind], times[precision, kind]),
            goal=GOALS[precision],
            notes=notes,
        )
        for kind, precision in words
    ]


def make_loaded(config: dict[str, Any]) -> SimpleNamespace:
    """A model with fresh weights and what prepares its data, as rosetta.load gives them."""
    torch.manual_seed(0)
    model = Model(build(Model.Config, model_section(config))).eval()
    data = {"tokenizer": "assets/tokenizers/chinese-clip", "max_tokens": PADDED, "max_words": 1000}
    data["test_transform"] = {"name": "resize", "in_own_mode": True}
    settings = build(Config, {"task": "chinese_clip", "model": model_section(config), "data": data})
    return SimpleNamespace(model=model, inputs=Inference(settings.data, config["image_resolution"]))


def write_data(folder: Path, num_images: int, lengths: list[int]) -> None:
    """Photographs and texts of random characters in the original's layout, with the LMDB folder."""
    pictures = (base64.b64encode(encode_photo((500, 375), seed)).decode() for seed in range(num_images))
    (folder / "all_imgs.tsv").write_text("".join(f"{100 + k}\t{content}\n" for k, content in enumerate(pictures)))
    draw = np.random.default_rng(0)
    texts = ("".join(map(chr, draw.integers(0x4E00, 0x9000, length - 2))) for length in lengths)
    lines = [{"text_id": k, "text": text, "image_ids": [100 + k % num_images]} for k, text in enumerate(texts)]
    (folder / "all_texts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    BuildLmdb(BuildLmdb.Config(data_dir=str(folder), splits=["all"]), None).run()


def our_way(loaded: Any, folder: Path, precision: str) -> dict[str, float]:
    """Seconds by kind of record."""
    outputs = {f"{kind}_output": str(folder / f"{precision}_{kind}.npy") for kind in KINDS}
    config = ExtractFeatures.Config(
        image_data=str(folder / "lmdb/all/imgs"),
        text_data=str(folder / "all_texts.jsonl"),
        checkpoint="in memory",
        precision=precision,
        **outputs,
    )
    result = ExtractFeatures(config, lambda *_, **__: loaded).run()
    return {kind: max(result[kind]["seconds"], 0.01) for kind in KINDS}  # it counts in hundredths


def compare(folder: Path, kind: str, precision: str) -> str:
    """Both ways' vectors, which are of unit length."""
    own, expected = (read_vectors(folder / name, kind) for name in (f"{precision}_{kind}.npy", f"plain_{kind}.jsonl"))
    if own.ids != expected.ids:
        raise ValueError(f"{kind}s: the ways name different ids")
    values = torch.from_numpy(own.values), torch.from_numpy(expected.values)
    return agree(*values, 1e-5 if precision == "fp32" else 3e-2, f"{precision} {kind} vectors")


def plain_way(loaded: Any, folder: Path) -> dict[str, float]:
    """The same by the original's loop."""
    seconds = {}
    for kind, batches, encode in (
        ("image", plain_images(folder, loaded.inputs.transform.image_size), plain_image_vectors),
        ("text", plain_texts(folder, loaded.inputs.tokenizer), plain_text_vectors),
    ):
        start = time.perf_counter()
        with open(folder / f"plain_{kind}.jsonl", "w") as file:
            for ids, batch in batches:
                for key, vector in zip(ids, F.normalize(encode(loaded.model, batch), dim=-1).tolist(), strict=True):
                    file.write(json.dumps({f"{kind}_id": key, "feature": vector}) + "\n")
        seconds[kind] = time.perf_counter() - start
    return seconds


def plain_images(folder: Path, size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Ids and normalised pixels (m, 3, S, S) in the order of the keys."""
    mean, std = (torch.tensor(each)[:, None, None] for each in ((0.48145466, 0.4578275, 0.40821073),
                                                                (0.26862954, 0.26130258, 0.27577711)))  # fmt: skip
    with lmdb.open(str(folder / "lmdb/all/imgs"), readonly=True, lock=False) as database, database.begin() as reader:
        ids, pixels = [], []
        for key, content in reader.cursor():
            if key == NUM_IMAGES:
                continue
            picture = Image.open(io.BytesIO(base64.urlsafe_b64decode(content)))
            picture = picture.resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
            grey = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float() / 255
            ids.append(int(key))
            pixels.append((grey - mean) / std)
            if len(ids) == BATCH:
                yield ids, torch.stack(pixels)
                ids, pixels = [], []
    if ids:
        yield ids, torch.stack(pixels)


def plain_image_vectors(model: Model, images: Tensor) -> Tensor:
    """All tokens (m, 1 + N, D) through every layer; (m, E)."""
    tower: VisionTransformer = model.image_encoder.backbone
    patch = tower.patch_embed.proj
    x = F.conv2d(images, patch.weight, patch.bias, patch.stride).flatten(2).transpose(1, 2)  # (m, N, D)
    x = tower.norm_pre(torch.cat([tower.cls_token.expand(len(x), -1, -1), x], dim=1) + tower.pos_embed)
    for block in tower.blocks:
        split = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.num_heads, -1))  # (m, 1 + N, 3, H, D / H)
        found = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in split.unbind(2)))
        x = x + block.attn.proj(found.transpose(1, 2).flatten(2))
        hidden = block.mlp.fc1(block.norm2(x))
        x = x + block.mlp.fc2(hidden * torch.sigmoid(1.702 * hidden))
    return model.image_projection(tower.norm(x)[:, 0])


def plain_texts(folder: Path, tokenizer: Any) -> Iterator[tuple[list[int], Tensor]]:
    """Ids and padded tokens (t, 52), one text after the other."""
    records = [json.loads(line) for line in (folder / "all_texts.jsonl").read_text().splitlines()]
    for start in range(0, len(records), BATCH):
        batch = records[start : start + BATCH]
        ids = torch.zeros(len(batch), PADDED, dtype=torch.int64)
        for row, record in enumerate(batch):
            [pieces] = tokenizer.encode_batch([clean_chinese(record["text"])], PADDED)
            ids[row, : len(pieces)] = torch.tensor(pieces)
        yield [record["text_id"] for record in batch], ids


def plain_text_vectors(model: Model, ids: Tensor) -> Tensor:
    """(t, E) of padded tokens (t, L)."""
    mask = (ids != 0).float()
    return plain.project_text(model, plain.encode_text(model.text_encoder, ids, mask), mask)


ROWS = {"extraction": run}
