"""Learn a byte-pair tokenizer from captions: `python3 -m dataset.build_tokenizer FILE ... --output FOLDER`.

FILE is anything that training reads: JSON lines or JSON lists whose records have `caption` (a text, a list of texts
or an object of languages) or `sentences`. Writes FOLDER/tokenizer.json, for `data.tokenizer` and
`model.text_encoder.vocab_size`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from dataset.files import BadRecord, DataError, Files
from dataset.readers import Records
from dataset.text import clean_caption, train_bpe

log = logging.getLogger(__name__)


def captions(files: Sequence[str], max_words: int = 80) -> Iterator[str]:
    """Every cleaned caption of the files, in their order; DataError if there is none."""
    records = Records(list(files), Files(), None)
    found = 0
    for number in range(len(records)):
        try:
            record = records.read(number)
        except BadRecord as error:
            log.warning("skipped %s: %s", records.where(number), error)
            continue
        for text in _texts(record.get("caption", record.get("sentences"))):
            if cleaned := _clean(text, max_words):
                found += 1
                yield cleaned
    if not found:
        raise DataError(f"no captions in {', '.join(files)}; records need 'caption' or 'sentences'")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _clean(text: str, max_words: int) -> str:
    try:
        return clean_caption(text, max_words)
    except ValueError:  # nothing is left of it
        return ""


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python3 -m dataset.build_tokenizer", description=__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--output", required=True, help="folder for tokenizer.json")
    parser.add_argument("--vocab_size", type=int, default=4000)
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        tokenizer = train_bpe(captions(arguments.files), arguments.vocab_size)
        tokenizer.save(arguments.output)
    except (DataError, OSError, ValueError) as error:
        log.error("%s", error)
        return 2
    log.info("%s/tokenizer.json: %d pieces", arguments.output, tokenizer.vocab_size)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
