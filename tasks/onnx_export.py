"""`--task export_onnx`: a model of any system as ONNX files, checked with onnxruntime in the same command."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from models.model import Model
from tasks.coreml_export import write_coreml
from tasks.onnx_graphs import (
    SHORT_NAME,
    Graph,
    Part,
    Sample,
    known_values,
    largest_difference,
    make_graphs,
    open_session,
    write_graph,
)
from tasks.speed_benchmark import REQUIREMENTS, TimingConfig, time_parts, times_table
from tasks.tool import Tool
from utils import distributed
from utils.optional import require

PARTS: list[Part] = ["image", "text", "score"]

log = logging.getLogger(__name__)


class ExportOnnx(Tool):
    """Writes the towers, and the fused score of a model that has one, and fails where a file says something else."""

    @dataclass
    class Config(TimingConfig):
        parts: list[Part] = field(default_factory=list)  # none: all that the model has
        precisions: list[Literal["fp32", "fp16"]] = field(default_factory=lambda: ["fp32", "fp16"])
        prefix: str = ""  # how the files' paths begin; none: `model` in output_dir
        is_normalised: bool = False  # vectors of unit length, as they are compared
        opset: int = 18
        split_bytes: int = 1 << 30  # of a larger file the weights go to a file beside it
        tolerance: float = 1e-4  # difference from torch as a share of the largest value
        tolerance_fp16: float = 2e-2
        benchmark: bool = False
        coreml: bool = False  # Core ML packages as well

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.opset < 18:
                raise ValueError(f"opset must be at least 18, which the exporter writes, found {self.opset}")
            if not self.precisions:
                raise ValueError("precisions is empty; allowed: fp32, fp16")
            self.prefix = self.prefix or f"{self.output_dir}/model"

    def run(self) -> dict[str, Any]:
        """Files, their largest differences and, where asked, milliseconds; one process does it all."""
        if distributed.world_size() > 1:
            raise ValueError("export_onnx runs in one process; leave out --nproc and --dist")
        for package in ("onnxscript", "onnxruntime"):
            require(package, REQUIREMENTS)
        for talker in ("onnx_ir", "onnxscript"):  # they tell of every constant that they join or skip
            logging.getLogger(talker).setLevel(logging.WARNING)
        loaded = self.load(self.config.checkpoint, self.config.model_config or None)
        model = loaded.model
        parts = self._parts(model, loaded.config.task)
        graphs = make_graphs(model, parts, is_normalised=self.config.is_normalised)
        longest = self.config.longest_text(model)
        samples = [
            known_values(model, Sample.draw(model, lengths, seed=len(lengths)), is_normalised=self.config.is_normalised)
            for lengths in ([longest], [2, longest, max(longest // 2, 1)])
        ]
        notes = describe(loaded, longest)
        result: dict[str, Any] = {"files": {}, "is_equal": True, "inputs": notes}
        for graph in graphs:
            for precision in self.config.precisions:
                entry = self._export(graph, precision, samples, notes, model)
                result["files"][entry.pop("path")] = entry
                result["is_equal"] &= entry["difference"] <= entry["tolerance"]
        if self.config.coreml:
            result["coreml"] = write_coreml(model, self.config.prefix, parts, longest, REQUIREMENTS)
        if self.config.benchmark:
            files = {graph.part: [str(self._path(graph, each)) for each in self.config.precisions] for graph in graphs}
            result["milliseconds"] = time_parts(model, files, self.config)
        return result

    def summary(self, result: dict[str, Any]) -> str:
        """A line per file, and the table of times."""
        lines = []
        for path, entry in result["files"].items():
            verdict = "equal" if entry["difference"] <= entry["tolerance"] else "DIFFERS"
            lines.append(
                f"{path}  {entry['bytes'] / 2**20:,.1f} MiB  {verdict}: largest difference "
                f"{entry['difference']:.1e}, allowed {entry['tolerance']:.0e}"
            )
        if "milliseconds" in result:
            lines += ["", times_table(result["milliseconds"], self.config)]
        lines += [
            f"{path}  written, not run: Core ML runs on Apple's systems only" for path in result.get("coreml", [])
        ]
        return "\n".join(lines) + "\n"

    def succeeded(self, result: dict[str, Any]) -> bool:
        """Whether every file says what the model says."""
        return result["is_equal"]

    def _parts(self, model: Model, task: str) -> list[Part]:
        """The wanted parts, in the order of PARTS."""
        if not model.has_common_space:
            raise ValueError(
                f"{self.config.checkpoint}: was trained for the task {task} and has no embeddings to export "
                "(model.projections)"
            )
        has_score = model.has_fusion and model.text_fusion.num_images == 1
        if "score" in self.config.parts and not has_score:
            raise ValueError("parts: this model has no fused score of one image and one text; allowed: image, text")
        wanted = self.config.parts or [part for part in PARTS if part != "score" or has_score]
        return [part for part in PARTS if part in wanted]

    def _path(self, graph: Graph, precision: str) -> Path:
        return Path(f"{self.config.prefix}.{SHORT_NAME[graph.part]}.{precision}.onnx")

    def _export(
        self,
        graph: Graph,
        precision: str,
        samples: list[dict[str, torch.Tensor]],
        notes: dict[str, str],
        model: Model,
    ) -> dict[str, Any]:
        started, path = time.monotonic(), self._path(graph, precision)
        width = 4 if precision == "fp32" else 2
        num_bytes = width * sum(parameter.numel() for parameter in graph.module.parameters())
        write_graph(
            graph,
            samples[1],
            path,
            precision=precision,
            opset=self.config.opset,
            max_length=int(notes["context_length"]),
            is_split=num_bytes > self.config.split_bytes,
            notes=notes | {"precision": precision},
        )
        run = open_session(path, self.config.device)
        by_output = largest_difference(graph, run, samples, model.text_encoder.config.pad_id)
        log.info("%s written and checked in %.0f s", path, time.monotonic() - started)
        files = [path, Path(f"{path}.data")]
        return {
            "path": str(path),
            "bytes": sum(file.stat().st_size for file in files if file.is_file()),
            "difference": max(by_output.values()),
            "difference_by_output": by_output,
            "tolerance": self.config.tolerance if precision == "fp32" else self.config.tolerance_fp16,
        }


def describe(loaded: Any, longest: int) -> dict[str, str]:
    """What somebody who runs the files must know of their inputs, as properties of the files."""
    model, data = loaded.model, loaded.config.data
    image = model.image_encoder.config
    notes = {"image_size": image.image_size, "mean": image.mean, "std": image.std}
    notes |= {"pad_id": model.text_encoder.config.pad_id, "context_length": longest, "max_tokens": data.max_tokens}
    notes |= {"max_words": data.max_words, "tokenizer": Path(data.tokenizer).name}
    return {name: str(value) for name, value in notes.items()} | {"temperature": f"{model.temperature().item():.8g}"}
