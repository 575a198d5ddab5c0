"""Chinese-CLIP's Python API: a program of its users changes one line, `import compat.chinese_clip as clip`.

model, preprocess = clip.load_from_name("ViT-B-16", device="cpu", download_root="weights")
similarity = model.get_similarity(preprocess(picture)[None], clip.tokenize(["a picture of a cat"]))

Nothing is downloaded: a name stands for its released file below download_root. Weights stay as they are in the file,
where the original rounds them to 16 bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compat.chinese_clip_layouts import with_other_attention
from compat.chinese_clip_sizes import RELEASED, model_section, named_config
from utils.config import build
from utils.registry import Registry

DEFAULT_ROOT = "~/.cache/clip"
# This is a face over the whole house, which nothing of ours imports; it takes the floors above by name.
PARTS = Registry(
    "part of the API",
    {
        "model": "models.model:Model",
        "face": "models.clip_face:ClipFace",
        "mean": "models.image_encoder:CLIP_MEAN",
        "std": "models.image_encoder:CLIP_STD",
        "channels_first": "dataset.transforms:channels_first",
        "load_tokenizer": "dataset.text:load_tokenizer",
        "load_weights": "rosetta:load_weights",
        "load_public_weights": "rosetta:load_public_weights",
        "root": "rosetta:ROOT",
    },
)
HUBS = {False: "https://huggingface.co/OFA-Sys/{}", True: "https://www.modelscope.cn/models/AI-ModelScope/{}"}


def available_models() -> list[str]:
    """Names that `load_from_name` knows."""
    return list(RELEASED)


def load_from_name(
    name: str | os.PathLike,
    device: str | torch.device | None = None,
    download_root: str | os.PathLike | None = None,
    vision_model_name: str | None = None,
    text_model_name: str | None = None,
    input_resolution: int | None = None,
    use_modelscope: bool = False,
) -> tuple[Any, Callable[[Image.Image], Tensor]]:
    """The model (models.clip_face.ClipFace) of a released name or of a file, and what makes its pixels of a picture;
    without a device on a GPU if there is one.

    A file needs the names of its towers and its resolution, as in the original. FileNotFoundError says where a released
    file is expected and where to get it.
    """
    if str(name) in RELEASED:
        released = RELEASED[str(name)]
        path = Path(download_root or DEFAULT_ROOT).expanduser() / released.file
        if not path.is_file():
            hub = HUBS[use_modelscope].format(released.repository)
            raise FileNotFoundError(f"{path} is not here; nothing is downloaded: get {released.file} from {hub}")
        towers, size = (released.vision_model, released.text_model), None
    elif os.path.isfile(name):
        if not (vision_model_name and text_model_name and input_resolution):
            raise ValueError(f"{name}: give vision_model_name, text_model_name and input_resolution of a file")
        path, towers, size = Path(name), (vision_model_name, text_model_name), input_resolution
    else:
        raise ValueError(f"no file and no model '{name}'; available: {', '.join(available_models())}")
    config = named_config(*towers)
    config["image_resolution"] = size or config["image_resolution"]
    kind = PARTS.load("model")
    model = kind(build(kind.Config, model_section(config)))
    PARTS.load("load_weights")(model, path)
    return PARTS.load("face")(model).eval().to(device or default_device()), image_transform(config["image_resolution"])


def load(
    model: Any,
    device: str | torch.device | None = None,
    clip_path: str | os.PathLike | None = None,
    bert_path: str | os.PathLike | None = None,
    use_flash_attention: bool = False,
) -> Any:
    """The model started from files of OpenAI's CLIP and of a BERT, on a GPU if there is one and no device is named;
    attention is fast without a flag.
    """
    for path in (clip_path, bert_path):
        if path and not Path(path).exists():
            raise FileNotFoundError(f"{path} does not exist")
    if clip_path or bert_path:
        PARTS.load("load_public_weights")(model.model, text=str(bert_path or ""), image=str(clip_path or ""))
    return model.to(device or default_device())


def default_device() -> str:
    """Where a model goes that is not told where."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def tokenize(texts: str | Sequence[str], context_length: int = 52) -> Tensor:
    """Ids (T, L) int64 with begin and end marks, padded with 0; longer texts lose their end."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    ids = torch.zeros(len(texts), context_length, dtype=torch.int64)
    for row, pieces in enumerate(_tokenizer().encode_batch(texts, context_length)):
        ids[row, : len(pieces)] = torch.tensor(pieces)
    return ids


def image_transform(image_size: int = 224) -> Callable[[Image.Image], Tensor]:
    """What makes (3, S, S) of a picture: resized in its own mode, bicubic, aspect ratio not kept; RGB; normalised."""
    mean, std = (torch.tensor(PARTS.load(name))[:, None, None] for name in ("mean", "std"))
    channels_first = PARTS.load("channels_first")

    def transform(image: Image.Image) -> Tensor:
        resized = image.resize((image_size, image_size), Image.Resampling.BICUBIC).convert("RGB")
        return (torch.from_numpy(channels_first(np.asarray(resized))) / 255 - mean) / std

    return transform


def convert_state_dict(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict in the layout of flash attention if it is in the standard one, and the other way round."""
    return with_other_attention(state_dict)


@cache
def _tokenizer() -> Any:
    return PARTS.load("load_tokenizer")(PARTS.load("root") / "assets/tokenizers/chinese-clip")
