"""Translation by Hugging Face models: the words that the library writes for one text alone, in the right language."""

import pytest
import torch

from models.language_codes import MBART50, NLLB, model_code
from models.translator import Translator, TranslatorConfig
from tests.toy_translation import CAPTIONS, write_m2m100, write_marian_like, write_nllb

WRITE = {"m2m100": write_m2m100, "nllb": write_nllb, "marian": write_marian_like}
NAMES = {"en": "English", "de": "German", "fr": "French"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: str(write(root / name)) for name, write in WRITE.items()}


def translator(folder, *targets, **settings):
    config = TranslatorConfig(model=folder, target_languages=list(targets), num_beams=3, max_tokens=12, **settings)
    return Translator(config, torch.device("cpu"), NAMES)


def plain_translation(folder, text, source, target_token):
    """What the library writes for one text, without batches, padding or a shared encoder."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer.src_lang = source
    first = tokenizer.convert_tokens_to_ids(target_token)
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=12)
    (ids,) = model.generate(**inputs, forced_bos_token_id=first, num_beams=3, max_new_tokens=12, max_length=None)
    assert ids[1] == first
    languages = [code for code in NLLB.values()] + [f"__{code}__" for code in NLLB]
    dropped = set(tokenizer.convert_tokens_to_ids(languages)) - {tokenizer.unk_token_id}
    return tokenizer.decode([int(token) for token in ids if int(token) not in dropped], skip_special_tokens=True)


@pytest.mark.parametrize("name, source, tokens", [
    ("m2m100", "en", {"de": "__de__", "fr": "__fr__"}),
    ("nllb", "eng_Latn", {"de": "deu_Latn", "fr": "fra_Latn"}),
])  # fmt: skip
def test_batches_say_what_single_texts_say(folders, name, source, tokens):
    found = translator(folders[name], "de", "fr", batch_tokens=40).translate(CAPTIONS, [["fr", "de"]] * len(CAPTIONS))
    for text, each in zip(CAPTIONS, found):
        for target, token in tokens.items():
            assert each[target] == plain_translation(folders[name], text, source, token)
    assert len({each["de"] for each in found}) > 1 and any(each["de"] != each["fr"] for each in found)


def test_only_wanted_languages_come_back(folders):
    each = translator(folders["m2m100"], "de", "fr")
    full = each.translate(CAPTIONS, [["de", "fr"]] * len(CAPTIONS))
    wanted = [["de"], [], ["fr"], ["fr"], ["de"], []]
    found = each.translate(CAPTIONS, wanted)
    assert found == [{target: one[target] for target in targets} for one, targets in zip(full, wanted)]


def test_each_text_is_encoded_once_for_all_languages(folders):
    each = translator(folders["m2m100"], "de", "fr", "zh", batch_tokens=1)
    calls = []
    each.model.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    each.translate(CAPTIONS, [["de", "fr", "zh"]] * len(CAPTIONS))
    assert len(calls) == len(CAPTIONS)


def test_a_batch_holds_no_more_tokens_than_asked(folders):
    each = translator(folders["nllb"], "de", batch_tokens=30)
    shapes = [tuple(ids.shape) for _, ids, _ in each._batches(list(CAPTIONS))]
    assert sum(rows for rows, _ in shapes) == len(CAPTIONS)
    assert all(rows == 1 or rows * length <= 30 for rows, length in shapes)


def test_codes_are_those_of_each_family():
    m2m100 = {"__de__", "__zh__", "de"}.__contains__
    nllb = {"deu_Latn", "zho_Hans", "zho_Hant", "de"}.__contains__
    assert model_code("de", m2m100, {}) == ("de", "__de__")
    assert model_code("de", nllb, {}) == ("deu_Latn", "deu_Latn")
    assert model_code("de", {"de_DE", "de"}.__contains__, {}) == ("de_DE", "de_DE")
    assert model_code("zh", nllb, {"zh": "zho_Hant"}) == ("zho_Hant", "zho_Hant")
    assert model_code("zz", m2m100, {"zz": "__zh__"}) == ("zh", "__zh__")
    assert model_code("de", {"de"}.__contains__, {}) is None  # a word, no language
    assert all(code[3] == "_" and code[4:].istitle() for code in NLLB.values()) and len(set(NLLB.values())) == len(NLLB)
    assert set(MBART50) <= set(NLLB)


def test_our_codes_are_those_of_the_public_tokenizers():
    from transformers.models.mbart50 import tokenization_mbart50
    from transformers.models.nllb import tokenization_nllb

    assert set(NLLB.values()) <= set(tokenization_nllb.FAIRSEQ_LANGUAGE_CODES)
    assert set(MBART50.values()) <= set(tokenization_mbart50.FAIRSEQ_LANGUAGE_CODES)


def test_a_model_without_language_tokens_takes_one_language_or_a_prefix(folders):
    with pytest.raises(ValueError, match="cannot be told which of de, fr to write"):
        translator(folders["marian"], "de", "fr")
    found = translator(folders["marian"], "de", "fr", prefix=">>{code}<< ").translate(["two dogs"], [["de", "fr"]])
    assert set(found[0]) == {"de", "fr"}
    alone = translator(folders["marian"], "de", prefix="translate {source} to {target}: ")
    assert alone.prefixes["de"] == "translate English to German: "
    assert set(alone.translate(["two dogs"], [["de"]])[0]) == {"de"}


def test_what_a_model_cannot_do_is_told(folders, tmp_path):
    with pytest.raises(ValueError, match=r"has no token for the language 'xx'.*language_codes=\{xx: TOKEN\}"):
        translator(folders["nllb"], "xx")
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        translator(str(tmp_path), "de")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not a sequence-to-sequence model"):
        translator(str(tmp_path), "de")
    with pytest.raises(ValueError, match="target_languages holds the source language"):
        TranslatorConfig(target_languages=["de", "en"])
    with pytest.raises(ValueError, match="allowed places are"):
        TranslatorConfig(prefix="{language}: ")
