"""A model as ONNX graphs: the towers and the fused score, written by torch's exporter and held against the model.

The model runs texts packed, which depends on the data; graphs run them padded (models/padded.py). Letters as in style,
P pairs, S stacks.
"""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from models.model import Model
from models.padded import ImageTower, PairScore, TextTower

Part = Literal["image", "text", "score"]
SHORT_NAME = {"image": "img", "text": "txt", "score": "score"}  # in file names, as Chinese-CLIP has them
DTYPE = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass
class Sample:
    """Inputs of all graphs (P images, P texts): pixels (P, 3, H, W), ids (P, L) with their lengths."""

    image: Tensor
    text: Tensor
    lengths: list[int]

    @classmethod
    def draw(cls, model: Model, lengths: list[int], seed: int = 0) -> Sample:
        """As many random images and texts as lengths, padded to the longest."""
        generator = torch.Generator().manual_seed(seed)
        size, config = model.image_encoder.config.image_size, model.text_encoder.config
        ids = torch.randint(config.vocab_size - 1, (len(lengths), max(lengths)), generator=generator)
        ids += ids >= config.pad_id  # any word but the padding
        is_padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]  # (P, L)
        pixels = torch.randn(len(lengths), 3, size, size, generator=generator)
        return cls(pixels, ids.masked_fill(is_padding, config.pad_id), lengths)


@dataclass
class Graph:
    """One graph: its module, how inputs and outputs are called, and which of their sides may have any length."""

    part: Part
    module: nn.Module
    inputs: dict[str, dict[int, str]]
    outputs: list[str]


def make_graphs(model: Model, parts: list[Part], *, is_normalised: bool) -> list[Graph]:
    """The wanted graphs; the towers give their tokens where a score is to be had from them."""
    prefix, has_score = "" if is_normalised else "unnorm_", "score" in parts
    options = {"is_normalised": is_normalised, "gives_tokens": has_score}
    batch, words = {0: "batch"}, {0: "batch", 1: "length"}
    towers = {
        "image": (ImageTower(model, **options), {"image": batch}, [f"{prefix}image_features", "image_tokens"]),
        "text": (TextTower(model, **options), {"text": words}, [f"{prefix}text_features", "text_tokens"]),
    }
    graphs = [
        Graph(part, module, inputs, outputs if has_score else outputs[:1])
        for part, (module, inputs, outputs) in towers.items()
        if part in parts
    ]
    if has_score:
        inputs = {"image_tokens": batch, "text_tokens": words, "text": words}
        graphs.append(Graph("score", PairScore(model), inputs, ["match", "match_logits"]))
    return graphs


def known_values(model: Model, sample: Sample, *, is_normalised: bool) -> dict[str, Tensor]:
    """What every input and output of the graphs is, by the model's own packed form."""
    with torch.inference_mode():
        image, text = model.encode_image(sample.image), model.encode_text(sample.text, sample.lengths)
        values = {"image": sample.image, "text": sample.text, "image_tokens": image.tokens}
        values |= {"text_tokens": text.padded(), "image_features": image.embed, "text_features": text.embed}
        if not is_normalised:
            values["unnorm_image_features"] = model.project_image(image.tokens)
            values["unnorm_text_features"] = model.project_text(text)
        if model.has_fusion:
            own = torch.arange(len(sample.lengths))
            logits = model.pair_logits(model.image_side(image.tokens), model.text_side(text), own, own)
            values |= {"match_logits": logits, "match": logits.softmax(dim=2)[..., 1].mean(dim=1)}
    return values


def write_graph(
    graph: Graph,
    example: dict[str, Tensor],
    path: Path,
    *,
    precision: str,
    opset: int,
    max_length: int,
    is_split: bool,
    notes: dict[str, str],
) -> None:
    """Write a graph, whole or not at all; is_split: its weights go to `<path>.data`, for more than 2 GB must.

    notes become properties of the file.
    """
    sides = {"batch": torch.export.Dim("batch"), "length": torch.export.Dim("length", max=max_length)}
    module = copy.deepcopy(graph.module).to(DTYPE[precision]).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name")  # several inputs share a side, and its name
        program = torch.onnx.export(
            module,
            tuple(example[name].clone() for name in graph.inputs),  # exporting refuses tensors of inference mode
            dynamo=True,
            opset_version=opset,
            input_names=list(graph.inputs),
            output_names=graph.outputs,
            dynamic_shapes=[{place: sides[side] for place, side in free.items()} for free in graph.inputs.values()],
            verbose=False,
        )
    program.model.metadata_props.update(notes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        program.save(str(Path(folder) / path.name), external_data=is_split)
        for written in sorted(Path(folder).iterdir(), reverse=True):  # weights first, then what names them
            os.replace(written, path.parent / written.name)
    if not is_split:
        Path(f"{path}.data").unlink(missing_ok=True)  # of an earlier file of this name


def open_session(path: str | Path, device: str) -> Callable[[dict[str, Tensor]], list[np.ndarray]]:
    """A function that runs a file with onnxruntime; FileNotFoundError if there is none."""
    import onnxruntime

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such ONNX file; --task export_onnx writes them")
    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    found = onnxruntime.get_available_providers()
    if wanted not in found:
        raise ValueError(f"device {device}: onnxruntime has no {wanted} here; found: {', '.join(found)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
    names = [value.name for value in session.get_inputs()]
    return lambda values: session.run(None, {name: values[name].numpy() for name in names})


def largest_difference(
    graph: Graph, run: Callable[[dict[str, Tensor]], list[np.ndarray]], samples: list[dict[str, Tensor]], pad_id: int
) -> dict[str, float]:
    """For every output the largest difference from the model, as a share of the largest value."""
    found = dict.fromkeys(graph.outputs, 0.0)
    for values in samples:
        for name, array in zip(graph.outputs, run(values), strict=True):
            expected, given = values[name], torch.from_numpy(array)
            if name == "text_tokens":  # padded places mean nothing
                given = given * (values["text"] != pad_id)[..., None]
            share = (given - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
            found[name] = max(found[name], float(share.nan_to_num(float("inf"))))
    return found
