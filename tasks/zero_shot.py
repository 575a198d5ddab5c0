"""`--task zero_shot`: pictures are given the class whose prompts they are nearest to.

Letters: M images, C classes, P prompts, E embedding.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.class_folder import ClassFolder
from dataset.extraction import clean_or_empty
from dataset.original_bert import clean_chinese
from dataset.transforms import Resize
from tasks.encode_files import AnyPrecision, encode_pictures, encode_tokens
from tasks.tool import Tool, ToolConfig
from utils import distributed
from utils.progress import Progress

ROOT = Path(__file__).resolve().parent.parent
SEED_IN_FILES = 123  # what the original writes; nothing is drawn
PLACE = "{}"


@dataclass(frozen=True)
class Prompts:
    """Sentences with {} in the place of a class name."""

    name: str
    sentences: list[str]


class ZeroShot(Tool):
    """Top-1 and top-5, and the probabilities as ELEVATER reads them: <save_dir>/<dataset>.json."""

    @dataclass
    class Config(ToolConfig):
        data: str = ""  # a folder for each class, in the order of label_file
        label_file: str = ""  # a class name on each line
        dataset: str = "imagenet"  # names the file of predictions, and chooses the prompts
        prompts: str = "assets/zero_shot_prompts.json"  # {lists: {name: [...]}, dataset_to_list: {...}, default_list}
        prompt_list: str = ""  # one of the lists; empty: the data set's
        index: str = ""  # JSON list: the order of the rows of predictions
        save_dir: str = ""  # empty: output_dir
        vision_model: str = ""  # the original's name of the tower, for the file of predictions
        model_config: str = ""
        logit_scale: float = 100.0  # what cosines are multiplied by; 0: the model's own
        batch_size: int = 64
        text_batch_size: int = 256
        context_length: int = 0  # tokens of a prompt; 0: as many as the model was trained with
        precision: AnyPrecision = "fp32"
        num_workers: int = 0

        def __post_init__(self) -> None:
            if not (self.data and self.label_file and self.checkpoint):
                raise ValueError("data (a folder for each class), label_file and --checkpoint are needed")
            if self.logit_scale < 0 or min(self.batch_size, self.text_batch_size) < 1 or self.num_workers < 0:
                raise ValueError("logit_scale and num_workers must not be negative, batch sizes at least 1")

    def run(self) -> dict[str, Any]:
        """Shares of right answers; every rank takes its share of the pictures."""
        config = self.config
        names, prompts = read_names(config.label_file), read_prompts(config.prompts, config.dataset, config.prompt_list)
        images = ClassFolder(config.data)
        if images.num_classes > len(names):
            found = f"{images.num_classes} classes, the last is '{images.classes[-1]}'"
            raise ValueError(f"{config.data}: {found}, but {config.label_file} names {len(names)}")
        device = distributed.device_for_rank()
        loaded = self.load(config.checkpoint, config.model_config or None, device=str(device))
        if not loaded.model.has_common_space:
            raise ValueError(f"{config.checkpoint}: this model has no embeddings (model.projections)")
        classes = self._class_vectors(loaded, names, prompts, device)  # (C, E)
        scale = config.logit_scale or 1 / loaded.model.temperature().item()
        probability = self._probabilities(loaded, images, classes * scale, device)
        result = accuracy(probability, torch.tensor(images.labels))
        result |= {"images": len(images), "classes": len(names), "prompts": prompts.name}
        if distributed.is_main():
            self._write(loaded, probability)
        return result

    def summary(self, result: dict[str, Any]) -> str:
        """The line that the original prints, and the wider measure."""
        return f"zeroshot-top1: {result['top1']}\nzeroshot-top5: {result['top5']}\n"

    def _class_vectors(self, loaded: Any, names: list[str], prompts: Prompts, device: torch.device) -> Tensor:
        """Unit vectors (C, E): the mean over the prompts of a class."""
        inputs = loaded.inputs
        texts = [sentence.replace(PLACE, name) for name in names for sentence in prompts.sentences]
        words = [clean_or_empty(clean_chinese(text), inputs.config.max_words) for text in texts]
        tokens = inputs.tokenizer.encode_batch(words, self.config.context_length or inputs.config.max_tokens)
        vectors = encode_tokens(
            loaded, tokens, device, self.config.precision, batch_size=self.config.text_batch_size
        )  # (C P, E)
        return F.normalize(vectors.view(len(names), len(prompts.sentences), -1).mean(dim=1), dim=1)

    def _probabilities(self, loaded: Any, images: ClassFolder, classes: Tensor, device: torch.device) -> Tensor:
        """(M, C) of all pictures, in the order of the folder."""
        own = list(range(distributed.rank(), len(images), distributed.world_size()))
        size = self.config.batch_size
        parts = [own[start : start + size] for start in range(0, len(own), size)]
        transform = loaded.inputs.transform
        encoded = encode_pictures(
            loaded,
            images,
            parts,
            device,
            self.config.precision,
            batch_size=size,
            workers=self.config.num_workers,
            # Folders of classes are read with torchvision's loader in the original, which gives RGB.
            transform=transform.of_rgb() if isinstance(transform, Resize) else transform,
        )
        found = []
        with Progress(len(own), "images", is_shown=distributed.is_main()) as progress:
            for vectors in encoded:
                found.append((vectors @ classes.T).softmax(dim=1).cpu())
                progress.advance(len(vectors))
        probability = torch.zeros(len(images), len(classes))
        for places, part in distributed.gather_objects((own, torch.cat(found) if found else None)):
            if places:
                probability[places] = part
        return probability

    def _write(self, loaded: Any, probability: Tensor) -> None:
        """ELEVATER's file of predictions."""
        config, rows = self.config, probability.double().round(decimals=6).tolist()
        if config.index:
            rows = [rows[place] for place in read_order(config.index, len(rows))]
        count = lambda part: sum(p.numel() for p in part.parameters())  # noqa: E731
        image_parts = [part for part in (loaded.model.image_encoder, loaded.model.image_projection) if part is not None]
        num_params = count(loaded.model)
        content = {
            "model_name": f"CN-CLIP-{config.vision_model}" if config.vision_model else Path(config.checkpoint).name,
            "dataset_name": config.dataset,
            "num_trainable_params": 0,
            "num_params": num_params,
            "num_visual_params": sum(map(count, image_parts)),
            "num_backbone_params": num_params,
            "n_shot": 0,
            "rnd_seeds": [SEED_IN_FILES],
            "predictions": [rows],
        }
        folder = Path(config.save_dir or config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{config.dataset}.json.partial"
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, folder / f"{config.dataset}.json")


def accuracy(probability: Tensor, labels: Tensor) -> dict[str, float]:
    """Shares of pictures whose class is the first, or among the first five, of probability (M, C)."""
    ranked = probability.topk(min(5, probability.shape[1]), dim=1).indices  # (M, 5)
    is_right = ranked == labels[:, None]
    return {"top1": is_right[:, 0].double().mean().item(), "top5": is_right.any(dim=1).double().mean().item()}


def read_names(path: str) -> list[str]:
    """The class names of a label file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such label file; it names a class on each line")
    names = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    while names and not names[-1]:
        names.pop()
    if "" in names or not names:
        raise ValueError(f"{path}:{names.index('') + 1 if names else 1}: an empty class name")
    return names


def read_prompts(path: str, dataset: str, chosen: str) -> Prompts:
    """The list that is chosen, or that belongs to a data set; ValueError says which lists there are."""
    place = Path(path) if Path(path).is_file() else ROOT / path
    if not place.is_file():
        raise FileNotFoundError(f"{path}: no such file of prompts")
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        lists = content["lists"]
        name = chosen or content.get("dataset_to_list", {}).get(dataset, content["default_list"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: needed: lists, default_list and dataset_to_list; {error!r}") from error
    if name not in lists:
        raise ValueError(f"{path}: no list '{name}'; allowed: {', '.join(lists)}")
    sentences = lists[name]
    wrong = [sentence for sentence in sentences if not isinstance(sentence, str) or PLACE not in sentence]
    if wrong or not sentences:
        raise ValueError(f"{path}: list '{name}' needs sentences with {PLACE} in the class's place; found {wrong[:1]}")
    return Prompts(name, sentences)


def read_order(path: str, num_rows: int) -> list[int]:
    """A JSON list that holds every row's number once."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such index, a JSON list of numbers")
    order = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(order, list) or sorted(order, key=str) != sorted(range(num_rows), key=str):
        raise ValueError(f"{path}: must be a list that holds each of 0 ... {num_rows - 1} once")
    return order
