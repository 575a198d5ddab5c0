"""The Python face: load a checkpoint of any known system and encode or score images and texts.

import rosetta
model = rosetta.load("output/quickstart")
scores = model.score(["cat.jpg", "dog.jpg"], ["eine Katze", "a dog"])
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from compat.layout import Translation
    from configs.schema import Config, InitConfig
    from dataset.inference import Inference
    from models.model import Model
    from tasks.task import Task
    from utils.run_state import Progress

log = logging.getLogger(__name__)
Images = Sequence[Any]
ROOT = Path(__file__).resolve().parent
# The originals' names for the files of a run, and what stands there in a run of ours.
ORIGINAL_NAMES = {"checkpoint_best.pth": "best", "checkpoint_*.pth": "last", "model_state_*.th": "last"}


def load(path: str | os.PathLike, config: str | os.PathLike | None = None, *, device: str = "cpu") -> Rosetta:
    """The model of an output folder, a checkpoint folder of ours, or a released CCLM / CCRK file.

    config: the YAML that describes the model; by default the `config.yaml` beside or above the checkpoint, else the
    released system's own. Raises FileNotFoundError or ValueError that says what was found and what is allowed.
    """
    from models.model import Model
    from utils.remote import local_copy

    weights = find_weights(local_copy(path))
    settings = settings_of(weights, config)
    model = Model(settings.model)
    load_weights(model, weights)
    return Rosetta(model.eval().to(device), settings)


class Rosetta:
    """A loaded model with its tokenizer and image transform; images are paths, PIL images, arrays or tensors."""

    def __init__(self, model: Model, config: Config) -> None:
        from dataset.inference import Inference

        self.model, self.config = model, config
        self._inputs = Inference(config.data, config.model.image_encoder.image_size)

    @property
    def inputs(self) -> Inference:
        """What prepares images and texts for the model."""
        return self._inputs

    def encode_image(self, images: Images) -> Tensor:
        """Unit vectors (M, E)."""
        import torch

        self._require_common_space()
        with torch.inference_mode():
            return self.model.embed_image(self._inputs.images(images).to(self._device))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (T, E)."""
        import torch

        self._require_common_space()
        with torch.inference_mode():
            return self._encode_text(texts).embed

    def score(self, images: Images, texts: Sequence[str]) -> dict[str, Tensor]:
        """The same as `score_pairs`, for every image with every text: (M, T) each."""
        import torch

        every = torch.cartesian_prod(torch.arange(len(images)), torch.arange(len(texts)))
        scores = self.score_pairs(images, texts, every)
        return {name: values.view(len(images), len(texts)) for name, values in scores.items()}

    def score_pairs(self, images: Images, texts: Sequence[str], pairs: Tensor) -> dict[str, Tensor]:
        """Numbers (P,) of pairs (P, 2) of image and text, on the CPU: `similarity`, the cosine; `probability`, its
        softmax over the texts that meet the same image, sharpened by the model's temperature.

        With a fusion stack also `match`, the probability that they belong together: the mean of `match_text` and
        `match_image` where there are two stacks (R2D2).
        """
        import torch

        self._require_common_space()
        with torch.inference_mode():
            image, text = self._encode_image(images), self._encode_text(texts)
            similarity = (image.embed @ text.embed.T).float().cpu()[pairs[:, 0], pairs[:, 1]]
            scores = {"similarity": similarity, "probability": self._softmax_by_image(similarity, pairs)}
            return scores | (self._match(image.tokens, text, pairs) if self.model.has_fusion else {})

    def _softmax_by_image(self, similarity: Tensor, pairs: Tensor) -> Tensor:
        weight = ((similarity - similarity.max()) / self.model.temperature().float().cpu()).exp()
        total = weight.new_zeros(int(pairs[:, 0].max()) + 1).index_add(0, pairs[:, 0], weight)
        return weight / total[pairs[:, 0]]

    def _match(self, tokens: Tensor, texts: Any, pairs: Tensor) -> dict[str, Tensor]:
        from tasks.rerank import score_stacks

        order = pairs[:, 0].argsort(stable=True)
        scores = score_stacks(self.model, lambda own: tokens[own], texts, pairs[order], is_probability=True)
        scores = scores.cpu()[order.argsort()]  # (P, S)
        stacks = zip(("match_text", "match_image"), scores.T) if scores.shape[1] > 1 else ()
        return {"match": scores.mean(dim=1), **dict(stacks)}

    def _require_common_space(self) -> None:
        if not self.model.has_common_space:
            raise ValueError(
                f"this model was trained for the task {self.config.task} and has no embeddings (model.projections); "
                "use run.py --evaluate"
            )

    def _encode_image(self, images: Images) -> Any:
        return self.model.encode_image(self._inputs.images(images).to(self._device))

    def _encode_text(self, texts: Sequence[str]) -> Any:
        batch = self._inputs.texts(texts)
        return self.model.encode_text(batch.ids.to(self._device), batch.lengths)

    @property
    def _device(self) -> Any:
        return next(self.model.parameters()).device


def find_weights(path: Path) -> Path:
    """The weights file of an output folder, a checkpoint folder or the file itself."""
    if path.is_file():
        return path
    named = [path.parent / "checkpoints" / name for pattern, name in ORIGINAL_NAMES.items() if path.match(pattern)]
    for candidate in (*named, path / "checkpoints/best", path / "checkpoints/last", path):
        if (candidate / "model.safetensors").is_file():
            return candidate / "model.safetensors"
    raise FileNotFoundError(
        f"{path}: no weights; expected a file, a checkpoint folder with model.safetensors, or an output folder"
    )


def settings_of(weights: Path, config: str | os.PathLike | None = None) -> Config:
    """The settings that describe the model of a weights file: those named, those of the run that wrote it, else those
    of the system that it comes from, in the file's own sizes where these tell themselves.
    """
    from configs.schema import Config, load_settings
    from utils.config import load_config

    own = config or find_config(weights)
    if own is not None:
        return load_settings(own)
    from compat.weights import released_config, released_sizes, tensors_of
    from utils.checkpoint import read_weights

    state = tensors_of(read_weights(weights))
    released = released_config(state)
    if released is None:
        raise ValueError(
            f"{weights}: no config.yaml beside these weights, and they are of no known system; name a config"
        )
    sizes = released_sizes(state)
    return load_config(Config, ROOT / released, {"model": sizes} if sizes else None)


def find_config(weights: Path) -> Path | None:
    """The config.yaml of the run that wrote the weights, if there is one."""
    folders = list(weights.resolve().parents)[:4]
    return next((folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()), None)


def load_weights(
    model: Model,
    path: str | os.PathLike,
    allow_missing: Sequence[str] = (),
    *,
    only: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
) -> list[str]:
    """Fill the model from a checkpoint of any known layout; returns notes on what was left out and why.

    Raises ValueError that lists every missing, unexpected or misshapen key that has no explanation; allow_missing names
    beginnings of our keys that may stay fresh, `only` beginnings of those that are filled, all others then stay.
    `rename` changes beginnings of the file's own keys first.
    """
    from compat.weights import recognise, tensors_of, what_fits
    from utils.checkpoint import read_weights
    from utils.config import to_tree

    state = renamed(tensors_of(read_weights(path)), rename or {})
    origin, tree = f"{path} ({recognise(state)})", to_tree(model.config)
    try:
        translation = _translate(state, tree, origin)
        if only:
            chosen = {name: value for name, value in translation.state.items() if name.startswith(tuple(only))}
            translation.state = chosen
            allow_missing = [name for name in model.state_dict() if not name.startswith(tuple(only))]
        may_miss = (*allow_missing, *translation.fresh)
        notes = _fill(model, translation.state, origin, may_miss, translation.unexpected)
    except ValueError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        told = what_fits(state, path)
        raise ValueError(where + (f"{error}; {told}" if told else str(error))) from error
    notes += [f"{name} stays fresh" for name in translation.fresh]
    return notes + [f"{name} left out: {reason}" for name, reason in translation.left_out.items()]


def _translate(state: dict[str, Tensor], tree: dict[str, Any], origin: str) -> Translation:
    from compat.weights import translate

    try:
        return translate(state, tree)
    except ValueError as error:
        raise ValueError(f"{origin} does not fit this model; {error}") from error


def renamed(state: Mapping[str, Tensor], rename: Mapping[str, str]) -> dict[str, Tensor]:
    """The state with other beginnings of names; every rule must find one, and no two names may become one."""
    for old, new in rename.items():
        if not any(name.startswith(old) for name in state):
            raise ValueError(f"init.rename: no key begins with '{old}'; keys are like {', '.join(list(state)[:3])}")
        changed = [new + name.removeprefix(old) if name.startswith(old) else name for name in state]
        if len(set(changed)) < len(changed):
            raise ValueError(f"init.rename: '{old}' -> '{new}' gives two keys the same name")
        state = dict(zip(changed, state.values(), strict=True))
    return dict(state)


def load_checkpoint(task: Task, source: Path, init: InitConfig, *, is_evaluation: bool) -> list[str]:
    """`load_weights` as `init` says; an evaluation has no use for a part without weights."""
    allowed = [] if is_evaluation else init.allow_missing
    return load_weights(task.model, source, allowed, only=init.only, rename=init.rename)


def load_public_weights(model: Model, *, text: str = "", image: str = "") -> list[str]:
    """Start towers from public weights: a Hugging Face directory for the text side, a Swin or ViT file for the image
    side.
    """
    from compat.weights import image_tower, tensors_of, text_tower
    from utils.checkpoint import read_weights
    from utils.config import to_tree
    from utils.script_archive import is_script_archive, read_script_archive

    tree, state, notes = to_tree(model.config), {}, []
    for source, tower in ((_weights_in(Path(text)) if text else "", text_tower), (image, image_tower)):
        if source:
            read = read_script_archive if is_script_archive(source) else read_weights
            translation = tower(tensors_of(read(source)), tree)
            state |= translation.state
            notes += [f"{source}: {name} left out: {reason}" for name, reason in translation.left_out.items()]
    fresh = sorted(set(model.state_dict()) - set(state))
    _fill(model, state, text or image, tuple(fresh), [])
    return [*notes, f"fresh: {', '.join(sorted({name.rpartition('.')[0] for name in fresh}))}"]


def initialise(task: Task, config: Config, *, is_evaluation: bool) -> list[str]:
    """Start from the weights that `init` names; a run that continues has its own, and an evaluation must have some."""
    from utils.remote import local_copy

    init = config.init
    if not is_evaluation:
        load_teacher(task, config)
    if (Path(config.output_dir) / "checkpoints").is_dir() and not is_evaluation:
        return []
    notes = []
    if init.checkpoint or is_evaluation:
        source = find_weights(local_copy(init.checkpoint or config.output_dir))
        notes += [f"weights from {source}", *load_checkpoint(task, source, init, is_evaluation=is_evaluation)]
    elif init.text or init.image:
        text, image = (str(local_copy(path)) if path else "" for path in (init.text, init.image))
        notes += load_public_weights(task.model, text=text, image=image)
    if init.checkpoint_by_language and is_evaluation:
        task.evaluation.before_set = lambda language: load_weights_of(language, task, init)
    return notes


def read_progress(config: Config) -> Progress | None:
    """Optimizer state and position of the run that wrote `init.checkpoint`, as far as `init` keeps them; None if
    neither, or if the run has checkpoints of its own.
    """
    from compat.weights import read_progress as read
    from utils.checkpoint import read_weights
    from utils.config import to_tree
    from utils.remote import local_copy
    from utils.run_state import Progress

    init = config.init
    wanted = {"optimizer's state": init.keeps_optimizer, "position": init.keeps_position}
    if not init.checkpoint or not any(wanted.values()) or (Path(config.output_dir) / "checkpoints").is_dir():
        return None
    source = find_weights(local_copy(init.checkpoint))
    try:
        progress = read(read_weights(source), to_tree(config.model)) or Progress()
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    found = {"optimizer's state": bool(progress.moments), "position": progress.epoch is not None}
    for part in (part for part in wanted if wanted[part] and not found[part]):
        log.warning("%s tells no %s; the run begins with a fresh one", source, part)
    return Progress(
        moments={f"model.{name}": value for name, value in progress.moments.items()} if init.keeps_optimizer else {},
        num_updates=progress.num_updates,
        epoch=progress.epoch if init.keeps_position else None,
        step=progress.step,
    )


def load_teacher(task: Task, config: Config) -> None:
    """Give a task that distils its teacher, which is evaluated only and no part of what is trained or saved."""
    from models.momentum import Teacher
    from utils.remote import local_copy

    for objective in config.objectives.values():
        if objective.name == "distill_images":
            teacher = load(local_copy(objective.teacher), objective.teacher_config or None).model
            task.outside_teacher = Teacher({"model": teacher}, momentum=1.0)


def load_weights_of(language: str, task: Task, init: InitConfig) -> None:
    """The language's own checkpoint; English has none of its own and keeps init.checkpoint."""
    own = Path(init.checkpoint_by_language.replace("{language}", language))
    source = find_weights(Path(init.checkpoint) if language == "en" and init.checkpoint and not own.exists() else own)
    load_checkpoint(task, source, init, is_evaluation=True)
    log.info("%s: weights from %s", language, source)


def export_weights(
    checkpoint: str | os.PathLike, layout: str, output_dir: str | os.PathLike, config: str | os.PathLike | None = None
) -> Path:
    """Write a checkpoint as <output_dir>/<layout>.th, a file as the original system has it; its path.

    layout: a row of compat.weights.EXPORTS, as ccrk_pretrain. Raises ValueError for another one.
    """
    import torch

    from compat.weights import file_content, to_original
    from utils.config import to_tree

    loaded = load(checkpoint, config)
    state = to_original(loaded.model.state_dict(), to_tree(loaded.config.model), layout)
    path = Path(output_dir) / f"{layout}.th"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(file_content(state, to_tree(loaded.config), layout), temporary)
    os.replace(temporary, path)
    return path


def _weights_in(folder: Path) -> Path:
    """The weights of a Hugging Face folder, or the file itself."""
    if folder.is_file():
        return folder
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: expected model.safetensors or pytorch_model.bin in this folder")


def _fill(
    model: Model, state: dict[str, Tensor], path: Any, allow_missing: Sequence[str], unexpected: Sequence[str]
) -> list[str]:
    own = model.state_dict()
    misshapen = [
        f"{n}: found {list(v.shape)}, needed {list(own[n].shape)}"
        for n, v in state.items()
        if n in own and v.shape != own[n].shape
    ]
    missing = [name for name in own if name not in state and not name.startswith(tuple(allow_missing))]
    unexpected = [*unexpected, *(name for name in state if name not in own)]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    listed = [f"{len(names)} {kind}: {', '.join(names[:8])}" for kind, names in problems.items() if names]
    if listed:
        raise ValueError(f"{path} does not fit this model; " + "; ".join(listed))
    model.load_state_dict(state, strict=False)
    return [f"{name} stays fresh" for name in own if name not in state and name not in allow_missing]
