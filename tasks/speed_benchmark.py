"""`--task speed_benchmark`: how long a model's parts take in torch and as ONNX files, at the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from models.model import Model
from tasks.onnx_graphs import Part, Sample, known_values, open_session
from tasks.tool import Tool, ToolConfig
from utils import distributed
from utils.optional import require
from utils.precision import Precision, autocast
from utils.timing import time_calls

REQUIREMENTS = "requirements-serve.txt"
Times = dict[str, dict[str, float]]  # what -> mean, sd, min, ... in milliseconds


@dataclass
class TimingConfig(ToolConfig):
    """How often, how much at once, and where."""

    model_config: str = ""  # YAML that describes the model; none: the one beside the checkpoint
    context_length: int = 0  # the longest text; none: what the model has positions for
    batch_size: int = 1
    num_runs: int = 100
    num_warmup_runs: int = 10
    device: Literal["cpu", "cuda"] = "cpu"
    torch_precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise ValueError("checkpoint is empty; name the model, as --checkpoint output/quickstart")
        for name, least in {"batch_size": 1, "num_runs": 1, "num_warmup_runs": 0, "context_length": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}")

    def longest_text(self, model: Model) -> int:
        """context_length, or the model's own limit; ValueError where the model has fewer positions."""
        longest = self.context_length or model.text_encoder.longest
        if not 2 <= longest <= model.text_encoder.longest:
            raise ValueError(
                f"context_length {longest} is not possible; this model has positions for 2 to "
                f"{model.text_encoder.longest} tokens"
            )
        return longest


class SpeedBenchmark(Tool):
    """Times torch and the named files beside each other."""

    @dataclass
    class Config(TimingConfig):
        onnx_image: str = ""
        onnx_text: str = ""
        onnx_score: str = ""

        @property
        def files(self) -> dict[Part, list[str]]:
            """The files of every part; both towers are timed in torch without one, too."""
            named: dict[Part, str] = {"image": self.onnx_image, "text": self.onnx_text, "score": self.onnx_score}
            return {part: [path] if path else [] for part, path in named.items() if path or part != "score"}

    def run(self) -> dict[str, Any]:
        """Milliseconds of every part; one process does it all."""
        if distributed.world_size() > 1:
            raise ValueError("speed_benchmark runs in one process; leave out --nproc and --dist")
        require("onnxruntime", REQUIREMENTS)
        model = self.load(self.config.checkpoint, self.config.model_config or None).model
        if not model.has_common_space:
            raise ValueError(f"{self.config.checkpoint}: has no embeddings to time (model.projections)")
        if "score" in self.config.files and not model.has_fusion:
            raise ValueError("onnx_score: this model has no fusion stack; allowed: onnx_image, onnx_text")
        return {"milliseconds": time_parts(model, self.config.files, self.config)}

    def summary(self, result: dict[str, Any]) -> str:
        """The table."""
        return times_table(result["milliseconds"], self.config)


def time_parts(model: Model, files: dict[Part, list[str]], config: TimingConfig) -> Times:
    """Torch's own form and every file at the same inputs: full texts, so that padding plays no part."""
    lengths = [config.longest_text(model)] * config.batch_size
    values = known_values(model, Sample.draw(model, lengths), is_normalised=True)
    model = model.to(config.device)
    placed = {name: value.clone().to(config.device) for name, value in values.items()}
    own = torch.arange(len(lengths))
    with torch.inference_mode():
        texts = model.encode_text(placed["text"], lengths)

    def score() -> None:
        model.pair_logits(model.image_side(placed["image_tokens"]), model.text_side(texts), own, own)

    calls: dict[Part, Callable[[], object]] = {
        "image": lambda: (model.encode_image if model.has_fusion else model.embed_image)(placed["image"]),
        "text": lambda: model.encode_text(placed["text"], lengths),
        "score": score,
    }
    synchronise = torch.cuda.synchronize if config.device == "cuda" else lambda: None
    runs, times = (config.num_runs, config.num_warmup_runs, synchronise), {}
    for part, paths in files.items():
        with torch.inference_mode(), autocast(config.torch_precision, torch.device(config.device)):
            times[f"{part} torch {config.torch_precision}"] = time_calls(calls[part], *runs)
        for path in paths:
            call = open_session(path, config.device)
            times[f"{part} {path.rpartition('/')[2]}"] = time_calls(lambda call=call: call(values), *runs)
    return times


def times_table(times: Times, config: TimingConfig) -> str:
    """A line per part and form."""
    names, width = list(next(iter(times.values()))), max(map(len, times)) + 2
    lines = [f"milliseconds for {config.batch_size} on {config.device}, {config.num_runs} runs"]
    lines.append(" " * width + "".join(f"{name:>9}" for name in names))
    lines += [f"{what:<{width}}" + "".join(f"{row[name]:>9.2f}" for name in names) for what, row in times.items()]
    return "\n".join(lines) + "\n"
