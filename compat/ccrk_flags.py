"""CCRK's own flags, given through `--pret_para` and `--ft_para`, as settings of ours."""

from __future__ import annotations

from typing import Any

from compat.flags import SWITCH, Translation, parse_flag_string
from utils.config import ConfigError

PRETRAINING_FLAGS: dict[str, type | None] = {
    "language_chosen": str,
    "caption_num": int,
    "neg_sample_type": int,
    "need_divm": float,
    "itc_allgather": int,
    "cclm_easy": int,
    "vicreg": int,
    "sample_lan_file": str,
    "imgbsz": int,
    "train_file": str,
    "lr": float,
    "save0": SWITCH,
    "checkpoint": str,
    "seed": int,
    "epoch": int,
}

FINETUNING_FLAGS: dict[str, type | None] = {
    "eval_not_cross": SWITCH,
    "wo_cl": SWITCH,
    "model_cap": str,
    "checkpoint_fmt": str,
    "all_lan_eval": SWITCH,
    "text_encoder": str,
    "zs": SWITCH,
    "calcu": SWITCH,
}

# How the one caption of an image is drawn that matching and masked language modelling see.
POSITIVE_TEXT = {0: "uniform", 1: "probability", 2: "similarity"}
EVERY_PAIR = 1_000_000_000  # more candidates than any gallery has: it is scored whole
# Without --all_lan_eval the original's `--evaluate` covers these only.
EVALUATED_LANGUAGES = ["en", "de", "ja", "zh"]


def translate_pretraining(text: str, world_size: int) -> Translation:
    """The settings of `--pret_para`; batch sizes there are per process."""
    given = parse_flag_string(text, PRETRAINING_FLAGS, "--pret_para")
    result = Translation()
    settings = result.settings
    if given.get("language_chosen"):
        settings["data.train.languages"] = _words(given["language_chosen"])
    if given.get("train_file"):
        settings["data.train.files"] = _words(given["train_file"])
    if "caption_num" in given:
        settings["data.train.caption_num"] = given["caption_num"]
    if given.get("imgbsz"):
        settings["data.batch_size"] = given["imgbsz"] * world_size
    for flag, key in (
        ("lr", "optim.lr"),
        ("checkpoint", "init.checkpoint"),
        ("seed", "seed"),
        ("epoch", "train.epochs"),
    ):
        if given.get(flag):
            settings[key] = given[flag]
    _translate_objectives(given, result)
    if given.get("save0"):
        result.actions.add("save_initial")
    return result


def _translate_objectives(given: dict[str, Any], result: Translation) -> None:
    """Objectives, their gathering and what they log."""
    settings = result.settings
    contrastive = "itc" if _switch(given, "cclm_easy") else "one_to_k"
    if contrastive == "itc":
        settings |= {"objectives.one_to_k": None, "objectives.itc": {"gather": "local_slice"}}
        if "caption_num" not in given:
            result.notices.append("--cclm_easy is meant for one caption per image: add --caption_num 1")
    if "neg_sample_type" in given:
        kind = given["neg_sample_type"]
        if kind not in POSITIVE_TEXT:
            raise ConfigError(f"command line: --pret_para: --neg_sample_type must be 0, 1 or 2, found {kind}")
        settings["objectives.itm.positive_text"] = POSITIVE_TEXT[kind]
    if "need_divm" in given and contrastive == "one_to_k":
        settings["objectives.one_to_k.divisor"] = given["need_divm"]
    if "itc_allgather" in given:
        gather = "none" if _switch(given, "itc_allgather") else "local_slice"
        settings[f"objectives.{contrastive}.gather"] = gather
    if _switch(given, "vicreg"):
        settings["objectives.vicreg"] = {"weight": 0.0}  # logged and never part of the loss
    if given.get("sample_lan_file"):
        settings["objectives.itm.language_file"] = given["sample_lan_file"]


def translate_finetuning(text: str) -> Translation:
    """The settings of `--ft_para`."""
    given = parse_flag_string(text, FINETUNING_FLAGS, "--ft_para")
    result = Translation()
    settings = result.settings
    if given.get("eval_not_cross") and given.get("wo_cl"):
        raise ConfigError("command line: --ft_para: --eval_not_cross and --wo_cl exclude each other")
    if given.get("eval_not_cross"):
        settings["evaluation.score"] = "dual"
    if given.get("wo_cl"):
        settings["evaluation.num_candidates"] = EVERY_PAIR
    if given.get("checkpoint_fmt"):
        settings["init.checkpoint_by_language"] = given["checkpoint_fmt"].replace("format", "{language}")
        if not given.get("all_lan_eval"):
            settings["data.languages"] = EVALUATED_LANGUAGES
    if given.get("text_encoder"):
        settings["data.tokenizer"] = given["text_encoder"]
    if given.get("zs"):
        settings |= {"train.epochs": 1, "train.first_evaluation_epoch": 0, "train.eval_every_epochs": 1}
    if given.get("model_cap"):
        result.notices.append("--model_cap named the original's rank files; ranks are written to output_dir here")
    if given.get("calcu"):
        result.notices.append("--calcu has no effect, as in the original")
    return result


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _switch(given: dict[str, Any], name: str) -> bool:
    value = given.get(name, 0)
    if value not in (0, 1):
        raise ConfigError(f"command line: --pret_para: --{name} must be 0 or 1, found {value}")
    return bool(value)
