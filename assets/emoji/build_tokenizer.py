"""Learn tokenizer.json from the training captions in ten languages: `python -m assets.emoji.build_tokenizer`."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from dataset.text import clean_caption, train_bpe

FOLDER = Path(__file__).resolve().parent
VOCAB_SIZE = 4000
MAX_WORDS = 40


def training_captions() -> list[str]:
    """Cleaned captions of the training pictures, in the file's order."""
    with zipfile.ZipFile(FOLDER / "emoji_96px.zip") as archive:
        lines = archive.read("annotations/pretrain/train.jsonl").decode("utf-8").splitlines()
    return [clean_caption(text, MAX_WORDS) for line in lines for text in json.loads(line)["caption"].values()]


if __name__ == "__main__":
    train_bpe(training_captions(), VOCAB_SIZE).save(FOLDER)
    print(f"{FOLDER / 'tokenizer.json'}: {VOCAB_SIZE} pieces")
