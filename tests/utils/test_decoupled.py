"""Decoupled accumulation equals one graph over the whole batch: with dropout, mixup, every contrastive objective."""

import contextlib
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from bench.common import extra_memory
from dataset.batch import ImageTextBatch, TextBatch
from objectives import OBJECTIVES
from objectives.step import ObjectiveConfig
from tasks.image_text import ImageText
from tests.ranks import run_on_ranks
from tests.tiny import VOCAB, build_model, make_texts
from utils.decoupled import Replay, decoupled_backward
from utils.random_state import capture_random_state, restore_random_state

CPU = torch.device("cpu")
OBJECTIVE_TREES = {
    "nce": {"name": "nce"},
    "nce_smooth": {"name": "nce", "smoothing": 0.1},
    "nce_constant": {"name": "nce", "gather": "constant"},
    "itc": {"name": "itc"},
    "one_to_k": {"name": "one_to_k"},
    "exclusive": {"name": "one_to_k", "is_exclusive": True},
    "mixup_nce": {"name": "mixup", "beta": 0.5, "objective": {"name": "nce"}},
    "mixup_one_to_k": {"name": "mixup", "beta": 0.5, "objective": {"name": "one_to_k"}},
}


def objective_config(tree: dict) -> ObjectiveConfig:
    tree = dict(tree)
    if "objective" in tree:
        tree["objective"] = objective_config(tree["objective"])
    return OBJECTIVES.load(tree["name"]).Config(**tree)


def make_task(tree: dict, seed: int = 0, dropout: float = 0.2, *, recomputes: bool = False) -> ImageText:
    sizes = {"name": "bert", "vocab_size": VOCAB, "width": 16, "num_layers": 2, "num_heads": 2, "mlp_width": 32}
    text = {**sizes, "max_positions": 20, "dropout": dropout, "attention_dropout": dropout}
    text["recomputes_layers"] = recomputes
    model = build_model(seed, text_fusion=None, has_masked_language_head=False, text_encoder=text)
    config = objective_config(tree)
    return ImageText(model, {config.name: config}, None, SimpleNamespace(headline="r_mean")).double().train()


def micro_batch(number: int, num_images: int = 3, captions: int = 2) -> ImageTextBatch:
    lengths = [3 + (number + t) % 4 for t in range(num_images * captions)]
    ids, _ = make_texts(lengths, seed=number)
    generator = torch.Generator().manual_seed(number)
    images = torch.rand(num_images, 3, 32, 32, generator=generator, dtype=torch.float64)
    image_id = torch.arange(num_images) + (number // 2) * num_images  # micro-batches 2n and 2n + 1 show the same ones
    return ImageTextBatch(
        images, image_id, TextBatch(ids, lengths), torch.arange(num_images).repeat_interleave(captions),
        torch.zeros(num_images * captions, dtype=torch.int64),
    )  # fmt: skip


def whole_graph_gradient(task: ImageText, batches: list[ImageTextBatch]) -> tuple[float, dict[str, torch.Tensor]]:
    embeds = [task.embed(batch) for batch in batches]
    joint = {side: torch.cat([each[side] for each in embeds]) for side in ("image", "text")}
    loss = sum(task.joint_losses(batches, joint).values())
    names, parameters = zip(*task.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss.item(), {n: g for n, g in zip(names, gradients, strict=True) if g is not None}


def decoupled_gradient(
    task: ImageText, batches: list[ImageTextBatch], autocast: Callable = contextlib.nullcontext
) -> tuple[float, dict[str, torch.Tensor]]:
    options = {"device": CPU, "autocast": autocast, "scale": torch.tensor(1.0)}
    parts = decoupled_backward(Replay(task), task, batches, **options)
    return sum(parts.values()).item(), {n: p.grad for n, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tree", OBJECTIVE_TREES.values(), ids=OBJECTIVE_TREES)
@pytest.mark.parametrize("step", [0, 3])
def test_gradient_is_that_of_one_graph_over_the_whole_batch(tree, step):
    task, batches = make_task(tree), [micro_batch(number) for number in range(3)]
    task.num_steps = step
    before = capture_random_state(CPU)
    loss, expected = whole_graph_gradient(task, batches)
    restore_random_state(before, CPU)
    found_loss, found = decoupled_gradient(task, batches)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert found.keys() == expected.keys() and "model.temperature.value" in found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_layers_that_are_recomputed_draw_the_same_dropout_three_times():
    batches, found = [micro_batch(number) for number in range(2)], []
    for recomputes in (False, True):
        torch.manual_seed(3)
        found.append(decoupled_gradient(make_task(OBJECTIVE_TREES["one_to_k"], recomputes=recomputes), batches)[1])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("seed", range(4))
def test_gradient_under_bf16_is_as_near_to_that_of_fp32_as_one_graph_s(seed):
    task = make_task(OBJECTIVE_TREES["mixup_nce"], seed, dropout=0).float()
    batches = [micro_batch(number) for number in range(3)]
    for batch in batches:
        batch.images = batch.images.float()

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    torch.manual_seed(seed)
    before = capture_random_state(CPU)
    exact_loss, exact = whole_graph_gradient(task, batches)
    restore_random_state(before, CPU)
    with autocast():
        _, one_graph = whole_graph_gradient(task, batches)
    restore_random_state(before, CPU)
    found_loss, found = decoupled_gradient(task, batches, autocast)
    assert found_loss == pytest.approx(exact_loss, abs=2 * 2**-8 / 0.07)  # 8 bits of a cosine, over the temperature
    whole, ours, truth = (torch.cat([g[name].flatten() for name in exact]) for g in (one_graph, found, exact))
    assert 0 < (ours - truth).norm() <= 1.25 * (whole - truth).norm() < 0.1 * truth.norm()


def test_one_micro_batch_is_the_plain_step():
    task, batch = make_task(OBJECTIVE_TREES["one_to_k"], dropout=0), micro_batch(0)
    sum(task(batch).values()).backward()
    expected = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    task.zero_grad()
    _, found = decoupled_gradient(task, [batch])
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_random_numbers_go_on_as_after_the_first_pass():
    task, batches = make_task(OBJECTIVE_TREES["nce"]), [micro_batch(number) for number in range(2)]
    torch.manual_seed(5)
    with torch.no_grad():
        [task.embed(batch) for batch in batches]
    expected = torch.rand(3)
    torch.manual_seed(5)
    decoupled_gradient(task, batches)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("temperature", [0.001, 0.0002])
def test_gradient_stays_finite_at_the_lowest_temperature(temperature):
    task = make_task(OBJECTIVE_TREES["nce"])
    task.model.temperature.value.data.fill_(temperature)
    loss, found = decoupled_gradient(task, [micro_batch(0), micro_batch(0)])
    assert loss == loss and all(gradient.isfinite().all() for gradient in found.values())


def note_and_reduce(sizes: list[int], bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP's own exchange of a bucket of gradients, its size noted."""
    sizes.append(bucket.buffer().numel())
    return allreduce_hook(None, bucket)


def _ranks_agree_with_one_graph(rank: int, name: str) -> None:
    torch.manual_seed(rank)
    task = make_task(OBJECTIVE_TREES[name], dropout=0)
    wrapped = torch.nn.parallel.DistributedDataParallel(Replay(task))
    sizes: list[int] = []
    wrapped.register_comm_hook(sizes, note_and_reduce)
    batches = [micro_batch(number, num_images=3) for number in range(4)]
    options = {"device": CPU, "autocast": contextlib.nullcontext, "scale": torch.tensor(1.0)}
    decoupled_backward(wrapped, task, batches[2 * rank : 2 * rank + 2], **options)
    assert sum(sizes) == sum(p.numel() for p in task.parameters())  # every gradient travelled once
    found = {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}
    torch.distributed.barrier()
    whole = make_task(OBJECTIVE_TREES[name], dropout=0)
    embeds = [whole.embed(batch) for batch in batches]
    joint = {side: torch.cat([each[side] for each in embeds]) for side in ("image", "text")}
    for objective in whole.objectives.values():
        getattr(objective, "objective", objective).config.gather = "none"
    loss = sum(whole.joint_losses(batches, joint).values())
    loss.backward()
    for n, p in whole.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[n], p.grad, rtol=1e-5, atol=1e-6, msg=f"{n} on rank {rank}")


@pytest.mark.parametrize("name", ["one_to_k", "mixup_nce"])
def test_two_ranks_get_the_gradient_of_the_whole_batch(name):
    run_on_ranks(_ranks_agree_with_one_graph, 2, name)


def test_gradients_travel_once(monkeypatch):
    task, wanted = make_task(OBJECTIVE_TREES["nce"]), []

    @contextlib.contextmanager
    def note(wrapped, is_wanted):
        wanted.append(is_wanted)
        yield

    monkeypatch.setattr("utils.decoupled.gradient_exchange", note)
    decoupled_gradient(task, [micro_batch(number) for number in range(3)])
    assert wanted == [False, False, True]


def test_memory_is_that_of_a_micro_batch():
    """A graph over all of these pictures would hold about half a gigabyte."""
    image = {"name": "vit", "image_size": 32, "patch_size": 4, "width": 32, "num_layers": 1, "num_heads": 2}
    model = build_model(image_encoder=image, text_fusion=None, has_masked_language_head=False)
    config = objective_config(OBJECTIVE_TREES["nce"])
    task = ImageText(model, {"nce": config}, None, SimpleNamespace(headline="r_mean"))
    batches = [micro_batch(number, num_images=32, captions=1) for number in range(64)]
    for batch in batches:
        batch.images = batch.images.float()
    decoupled_gradient(task, batches[:1])
    assert extra_memory(lambda: decoupled_gradient(task, batches)) < 128 * 2**20
