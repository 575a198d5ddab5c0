"""Chinese-CLIP's tokenizer, through its Python API's defaults and through its data pipeline."""

from __future__ import annotations

import json
from pathlib import Path

from dataset.original_bert import clean_chinese, load_original_bert
from dataset.text import load_tokenizer

ASSET = Path(__file__).resolve().parents[3] / "assets/tokenizers/chinese-clip"


def run_tokenizer(folder: Path) -> None:
    own = folder / "vocab.txt"
    tokenizer = load_original_bert(own) if own.is_file() else load_tokenizer(ASSET)
    for case in json.loads((folder / "cases.json").read_text(encoding="utf-8")):
        text = case["text"]
        assert tokenizer.pieces(text) == case["tokens"], text
        for key, cleaned in (("ids_52", text), ("ids_24", text), ("dataset_ids_52", clean_chinese(text))):
            [ids] = tokenizer.encode_batch([cleaned], int(key.rpartition("_")[2]))
            assert ids == case[key], (key, text)


KINDS = {("chinese_clip", "tokenizer"): run_tokenizer}
