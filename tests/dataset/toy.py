"""Small things that the data tests share: a tokenizer, pictures, and a place to write them."""

import base64
import io
import json

import numpy as np
from PIL import Image

from dataset.samples import Preprocessing
from dataset.text import TextTokenizer
from dataset.transforms import Resize


class WordTokenizer(TextTokenizer):
    """A word is the number made from its letters."""

    def __init__(self):
        self.bos_id, self.pad_id, self.eos_id, self.mask_id, self.vocab_size = 0, 1, 2, 99, 100

    def encode_pieces(self, texts):
        return [[4 + sum(map(ord, word)) % 95 for word in text.split()] for text in texts]


def picture(seed=0, size=(24, 18), kind="PNG"):
    """The bytes of an encoded picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 3, size[0] // 3, 3)).astype(np.uint8)
    packed = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(packed, kind)
    return packed.getvalue()


def base64_of(data):
    return base64.b64encode(data).decode()


def write_lines(path, records):
    """JSON lines; a string is written as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def preprocessing(**settings):
    return Preprocessing(WordTokenizer(), Resize(Resize.Config(), 8), **settings)
