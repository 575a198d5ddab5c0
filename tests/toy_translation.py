"""Tiny random translation models in Hugging Face folders, and files of captions for them to translate."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import sentencepiece
import torch

CAPTIONS = (
    "a red bus on the street",
    "two dogs",
    "a man rides a brown horse in the snow",
    "three children play with a ball near the old house",
    "blue sky",
    "a cat sleeps on a green sofa",
)
SIZES = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}


def learn_pieces() -> bytes:
    """A sentencepiece model learnt from the captions."""
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_writer=model, vocab_size=60, model_type="bpe", minloglevel=2
    )
    return model.getvalue()


def write_m2m100(folder: Path, seed: int = 0) -> Path:
    """A folder with a model whose language tokens are `__de__` and the like."""
    from transformers import M2M100Tokenizer

    folder.mkdir(parents=True)
    (folder / "pieces.model").write_bytes(learn_pieces())
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "pieces.model"))
    words = ["<s>", "<pad>", "</s>", "<unk>"]
    words += [word for word in (pieces.id_to_piece(k) for k in range(len(pieces))) if word not in words]
    (folder / "words.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    tokenizer = M2M100Tokenizer(str(folder / "words.json"), str(folder / "pieces.model"))
    tokenizer.save_pretrained(folder)
    return _write_model(folder, tokenizer.encoder_size + 100 + 8, seed)


def write_nllb(folder: Path, seed: int = 0) -> Path:
    """A folder with a model whose language tokens are `deu_Latn` and the like."""
    from transformers import NllbTokenizer

    letters = sorted(set("".join(CAPTIONS)) - {" "}) + ["\u2581"]
    vocabulary = {word: k for k, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters])}
    tokenizer = NllbTokenizer(vocab=vocabulary, merges=[])
    tokenizer.save_pretrained(folder)
    return _write_model(folder, len(tokenizer), seed)


def write_marian_like(folder: Path, seed: int = 0) -> Path:
    """A folder with a model that has no language tokens."""
    from transformers import PreTrainedTokenizerFast

    from dataset.text import train_bpe

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe([*CAPTIONS, ">>de<< >>fr<<"], 120).tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
    )
    tokenizer.save_pretrained(folder)
    return _write_model(folder, len(tokenizer), seed)


def _write_model(folder: Path, vocab_size: int, seed: int) -> Path:
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    torch.manual_seed(seed)
    model = M2M100ForConditionalGeneration(M2M100Config(vocab_size=vocab_size, **SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.6)
    model.generation_config.max_length = 12
    model.save_pretrained(folder)
    return folder


def write_captions(path: Path, num_records: int = 12) -> Path:
    """JSON lines with English captions; some have German already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(num_records):
        caption = {"en": f"{CAPTIONS[number % len(CAPTIONS)]} {'abc'[number % 3]}"}
        if number % 4 == 3:
            caption["de"] = "schon da"
        lines.append(json.dumps({"image": f"{number}.jpg", "caption": caption}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
