"""Translation of short texts by any Hugging Face sequence-to-sequence model that lies in a local folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.language_codes import language_tokens, model_code
from utils.precision import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class TranslatorConfig:
    """Which model translates between which languages, and how."""

    model: str = ""  # folder with a sequence-to-sequence model and its tokenizer: M2M100, NLLB, mBART-50, Marian, T5
    source_language: str = "en"
    target_languages: list[str] = field(default_factory=lambda: ["id", "ru", "es", "tr"])
    language_codes: dict[str, str] = field(default_factory=dict)  # the model's names for languages, over our table
    prefix: str = (
        ""  # put before every text: {source}, {target} are English names, {code} is the model's for the target
    )
    num_beams: int = 5
    max_tokens: int = 128  # longer texts are cut, translations end there
    batch_tokens: int = 4096  # source tokens of a batch, padding included
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        for name in ("num_beams", "max_tokens", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not self.target_languages:
            raise ValueError("target_languages is empty; name at least one, as target_languages=[de,fr]")
        if self.source_language in self.target_languages:
            raise ValueError(f"target_languages holds the source language '{self.source_language}'")
        try:
            self.prefix_for("en", "en")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"prefix '{self.prefix}': allowed places are {{source}}, {{target}}, {{code}}") from error

    def prefix_for(self, target_name: str, code: str, source_name: str = "") -> str:
        return self.prefix.format(source=source_name, target=target_name, code=code)


class Translator:
    """Translates lists of texts; the same list gives the same translations, whatever came before."""

    def __init__(self, config: TranslatorConfig, device: torch.device, names: Mapping[str, str]) -> None:
        """`names` are the English names of languages, for a prefix."""
        self.config, self.device = config, device
        self.tokenizer, self.model = _load(config.model, device, DTYPES[config.precision])
        writing = self.model.generation_config
        writing.num_beams, writing.do_sample = config.num_beams, False
        writing.max_length, writing.max_new_tokens = None, config.max_tokens
        known = language_tokens(self._has_token)
        ids = self.tokenizer.convert_tokens_to_ids([*known, *config.language_codes.values()])
        ids = {token for token in ids if token is not None} - {self.tokenizer.unk_token_id}
        self.language_ids = torch.tensor(sorted(ids), dtype=torch.int64, device=device)
        self.first_token: dict[str, int | None] = {}
        self.prefixes: dict[str, str] = {}
        for language in (config.source_language, *config.target_languages):
            found = model_code(language, self._has_token, config.language_codes)
            if found is None and known:
                raise ValueError(
                    f"{config.model}: has no token for the language '{language}'; found: {', '.join(known[:8])} ...; "
                    f"name it with language_codes={{{language}: TOKEN}}"
                )
            code, token = found or (config.language_codes.get(language, language), None)
            self.first_token[language] = self.tokenizer.convert_tokens_to_ids(token) if token else None
            self.prefixes[language] = config.prefix_for(
                names.get(language, language), code, names.get(config.source_language, config.source_language)
            )
            if language == config.source_language and token:
                self.tokenizer.src_lang = code
        if not known and len(config.target_languages) > 1 and len({self.prefixes[t] for t in self.targets}) == 1:
            raise ValueError(
                f"{config.model}: has no tokens for languages, so it cannot be told which of "
                f"{', '.join(self.targets)} to write; name one target language, or a prefix with {{target}} or {{code}}"
            )

    @property
    def targets(self) -> list[str]:
        return self.config.target_languages

    def _has_token(self, token: str) -> bool:
        # Asked token by token: M2M100's tokenizer leaves its language tokens out of its vocabulary.
        return self.tokenizer.convert_tokens_to_ids(token) not in (None, self.tokenizer.unk_token_id)

    def translate(self, texts: Sequence[str], wanted: Sequence[Sequence[str]]) -> list[dict[str, str]]:
        """For each text its translations into the languages wanted of it."""
        found: list[dict[str, str]] = [{} for _ in texts]
        by_prefix: dict[str, list[str]] = {}
        for target in self.targets:
            by_prefix.setdefault(self.prefixes[target], []).append(target)
        for prefix, targets in by_prefix.items():  # mostly one: then every text is encoded once for all languages
            chosen = [row for row in range(len(texts)) if any(target in wanted[row] for target in targets)]
            for rows, ids, mask in self._batches([prefix + texts[row] for row in chosen]):
                batch = [chosen[row] for row in rows]
                for target, places, words in self._translate_batch(ids, mask, targets, [wanted[row] for row in batch]):
                    for place, text in zip(places, words):
                        found[batch[place]][target] = text
        return found

    def _batches(self, texts: list[str]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Rows, ids (B, L) and mask (B, L) of batches of similar lengths; which batches depends on the texts alone."""
        if not texts:
            return
        ids = self.tokenizer(texts, truncation=True, max_length=self.config.max_tokens)["input_ids"]
        order = sorted(range(len(texts)), key=lambda row: (-len(ids[row]), row))
        while order:
            longest = len(ids[order[0]])
            size = max(self.config.batch_tokens // longest, 1)
            rows, order = order[:size], order[size:]
            batch = torch.full((len(rows), longest), self.tokenizer.pad_token_id)  # (B, L)
            mask = torch.zeros(len(rows), longest, dtype=torch.int64)
            for k, row in enumerate(rows):
                batch[k, : len(ids[row])] = torch.tensor(ids[row])
                mask[k, : len(ids[row])] = 1
            yield rows, batch.to(self.device), mask.to(self.device)

    @torch.inference_mode()
    def _translate_batch(
        self, ids: Tensor, mask: Tensor, targets: list[str], wanted: list[Sequence[str]]
    ) -> Iterator[tuple[str, list[int], list[str]]]:
        """Target, places in the batch and translations: the encoder runs once for all targets."""
        from transformers.modeling_outputs import BaseModelOutput

        hidden = self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, L, D)
        for target in targets:
            places = [place for place, languages in enumerate(wanted) if target in languages]
            if not places:
                continue
            first = self.first_token[target]
            written = self.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden[places]),
                attention_mask=mask[places],
                **({} if first is None else {"forced_bos_token_id": first}),
            )
            # Not every tokenizer counts its language tokens as special ones.
            written = written.masked_fill(torch.isin(written, self.language_ids), self.tokenizer.pad_token_id)
            yield target, places, self.tokenizer.batch_decode(written, skip_special_tokens=True)


def _load(folder: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of reading weights: a line on every rank
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no such model folder; needed: a Hugging Face folder with config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises anything from KeyError to RuntimeError for a broken folder
        words = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(f"{folder}: not a sequence-to-sequence model with its tokenizer; {words}") from error
    return tokenizer, model.to(device=device, dtype=dtype).eval()
