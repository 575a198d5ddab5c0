"""Which configuration a command means: an original's file name, a folder of --model, or a task's default.

CCLM and CCRK name their files alike, in a folder that both call cclm-base-ft; where their settings differ, the files of
data that lie here tell whose user is speaking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from utils.config import ConfigError
from utils.registry import nearest

ORIGINAL_FOLDER = "cclm-base-ft"
RETRIEVAL_SETS = {"multi30k": ("en", "de", "fr", "cs", "all"), "coco": ("en", "ja", "zh", "all")}

R2D2_SETS = {"retrieval": ("flickr_cna", "icr", "iqr"), "matching": ("icm", "iqm")}

_BOTH = {"xFlickrCO.yaml": "xflickrco", "xFlickrCO_fewshot.yaml": "xflickrco_fewshot", "WIT.yaml": "wit"} | {
    f"Retrieval_{name}_{part}_ft.yaml": f"retrieval_{name}_{part}"
    for name, parts in RETRIEVAL_SETS.items()
    for part in parts
}
_ONLY_CCLM = {
    "GQA.yaml": "gqa",
    "GQA_fewshot.yaml": "gqa_fewshot",
    "XVNLI.yaml": "xvnli",
    "XVNLI_fewshot.yaml": "xvnli_fewshot",
    "NLVR.yaml": "nlvr",
    "NLVR_fewshot.yaml": "nlvr_fewshot",
    "NLVR_multilingual_pretrain_O1.yaml": "nlvr_pretrain",
}
# Ours in the place of the originals' files that are absent; the first is meant unless something speaks against it.
OUR_CONFIG: dict[str, tuple[str, ...]] = {
    "Pretrain.yaml": ("configs/base/ccrk_pretrain.yaml",),
    "Pretrain_1m.yaml": ("configs/ccrk/pretrain_1m.yaml",),
    "Pretrain_2m.yaml": ("configs/ccrk/pretrain_2m.yaml",),
    "Pretrain_3m.yaml": ("configs/ccrk/pretrain_3m.yaml", "configs/cclm/pretrain_3m.yaml"),
    "Pretrain_4m.yaml": ("configs/cclm/pretrain_4m.yaml",),
    **{name: (f"configs/cclm/{ours}.yaml", f"configs/ccrk/{ours}.yaml") for name, ours in _BOTH.items()},
    **{name: (f"configs/cclm/{ours}.yaml",) for name, ours in _ONLY_CCLM.items()},
    **{
        f"{task}_{name}_{size}.yaml": (f"configs/r2d2/{name}_{size}.yaml",)
        for task, names in R2D2_SETS.items()
        for name in names
        for size in ("base", "large")
    },
}
# What the originals' tasks read without --config, below configs/ or configs/<--model>/ of the working folder.
ORIGINAL_DEFAULT = {
    "pretrain": "Pretrain.yaml",
    "pretrain_cclm_3m": "Pretrain_3m.yaml",
    "pretrain_cclm_4m": "Pretrain_4m.yaml",
    "itr_multi30k": "Retrieval_multi30k_all_ft.yaml",
    "itr_coco": "Retrieval_coco_all_ft.yaml",
    "xflickrco": "xFlickrCO.yaml",
    "wit": "WIT.yaml",
    "xvnli": "XVNLI.yaml",
    "gqa": "GQA.yaml",
    "nlvr": "NLVR.yaml",
    "nlvr_pretrain": "NLVR_multilingual_pretrain_O1.yaml",
}


def original_default(task: str, model: str | None) -> Path | None:
    """The file that an original's task reads without --config, if it lies in the working folder."""
    name = ORIGINAL_DEFAULT.get(task)
    if name is None:
        return None
    folders = [Path("configs")] if name.startswith("Pretrain") else [Path("configs") / (model or ORIGINAL_FOLDER)]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def our_defaults(task: str, model: str | None, default_config: Mapping[str, str], root: Path) -> Sequence[str]:
    """Ours that a task may start from, the likeliest first; --model names one folder of configs/."""
    default = default_config.get(task, "")
    if not default:
        return ()
    name = Path(default).name
    if model not in (None, ORIGINAL_FOLDER):
        folder = root / "configs" / model
        if not folder.is_dir():
            known = sorted(path.name for path in (root / "configs").iterdir() if path.is_dir() and path.name != "base")
            close = nearest(model, known)
            hint = f"did you mean '{close}'? " if close else ""
            raise ConfigError(f"command line: --model {model} is no folder of configs/; {hint}allowed: {known}")
        if not (folder / name).is_file():
            raise ConfigError(f"command line: configs/{model} has no {name} for the task {task}; name a --config")
        return (f"configs/{model}/{name}",)
    if task.startswith("pretrain_cclm"):
        return (default,)
    twin = default.replace("/cclm/", "/ccrk/")
    return (default, twin) if twin != default and (root / twin).is_file() else (default,)


def choose(candidates: Sequence[str], count_files_here: Callable[[str], int], *, prefers: str = "") -> str:
    """The candidate of the system that the command speaks of, else the one with the most data files here."""
    own = [path for path in candidates if prefers and f"/{prefers}/" in path]
    return max(own or candidates, key=count_files_here) if len(own or candidates) > 1 else (own or candidates)[0]
