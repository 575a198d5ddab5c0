"""R2D2's distillations: what they come to where that is known, the ramp, the queue between steps, several processes."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from objectives.contrastive import Contrastive
from objectives.distillation import FeatureGuidedDistillation, TargetGuidedDistillation
from objectives.step import Step
from tests.ranks import run_on_ranks
from utils.distributed import all_reduce_sum

MODEL = SimpleNamespace(config=SimpleNamespace(embed_dim=8), text_encoder=SimpleNamespace(width=6))


def make_step(num_pairs=6, seed=0, rows=slice(None)):
    torch.manual_seed(seed)
    image, text, other_image, other_text = F.normalize(torch.randn(4, num_pairs, 8), dim=2)
    pooled, other_pooled = torch.randn(2, num_pairs, 6)
    image_id = torch.arange(num_pairs) // 2 + 100 * seed  # every picture twice
    sides = [SimpleNamespace(embed=x[rows].clone().requires_grad_()) for x in (image, text)]
    teacher = SimpleNamespace(image=other_image[rows], text=other_text[rows], pooled_text=other_pooled[rows])
    batch = SimpleNamespace(image_id=image_id[rows], image_of_text=torch.arange(len(image_id[rows])))
    step = Step(SimpleNamespace(temperature=lambda: torch.tensor(0.1)), batch, *sides, teacher=teacher)
    step.pooled_texts = pooled[rows]
    return step


def make_objective(kind=TargetGuidedDistillation, **settings):
    defaults = {"queue_size": 10, "ramp_epochs": 0} if kind is TargetGuidedDistillation else {}
    objective = kind(kind.Config(**defaults | settings))
    objective.prepare(MODEL)
    return objective


def test_without_teacher_s_share_and_queue_it_is_the_contrastive_loss_against_the_teacher_s_vectors():
    step = make_step()
    found = make_objective(alpha=0.0)(step)
    expected = 0
    for side, other in (("images", "text"), ("texts", "image")):
        against = make_step()
        against.images = SimpleNamespace(embed=getattr(step, side).embed)
        against.texts = SimpleNamespace(embed=getattr(step.teacher, other))
        row_loss = (against.images.embed @ against.texts.embed.T / 0.1).log_softmax(dim=1)
        right = (step.image_id[:, None] == step.image_id[None]).float()
        expected += -(row_loss * right / right.sum(dim=1, keepdim=True)).sum(dim=1).mean() / 2
    torch.testing.assert_close(found, expected)


def test_where_teacher_and_student_agree_and_alpha_is_0_it_is_the_contrastive_loss():
    step = make_step()
    step.teacher = SimpleNamespace(image=step.images.embed.detach(), text=step.texts.embed.detach())
    torch.testing.assert_close(make_objective(alpha=0.0)(step), Contrastive(Contrastive.Config())(step))


def test_a_batch_meets_the_queue_of_earlier_batches_only():
    objective, step = make_objective(), make_step()
    first, again = objective(step), objective(step)
    assert torch.equal(first, again)
    objective._waiting.pop()
    objective.after_step()
    assert objective.queue.image_id[:6].tolist() == step.image_id.tolist()
    assert not torch.equal(objective(step), first)


def test_pictures_of_the_queue_are_right_answers_only_where_asked_for():
    losses = []
    for matches_queue in (False, True):
        objective, other = make_objective(matches_queue=matches_queue, alpha=0.0), make_step(seed=1)
        objective.queue.put(other.teacher.image, other.teacher.text, make_step().image_id)
        losses.append(objective(make_step()))
    assert not torch.isclose(*losses)


def test_the_teacher_s_share_rises_over_the_first_epoch():
    objective, shares = make_objective(alpha=0.4, ramp_epochs=1.0), []
    objective.before_training(4.0)
    for _ in range(6):
        shares.append(float(objective.alpha))
        objective.after_step()
    assert shares == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])


def test_several_texts_per_image_are_refused():
    step = make_step()
    step.images.embed = step.images.embed[:3]
    with pytest.raises(ValueError, match="one text per image, found 6 of 3 images"):
        make_objective()(step)


def test_the_centre_follows_the_teacher_s_mean_after_the_loss():
    objective, step = make_objective(FeatureGuidedDistillation, centre_momentum=0.75), make_step()
    objective(step)
    assert not objective.centre.any()
    objective.after_step()
    torch.testing.assert_close(objective.centre, 0.25 * step.teacher.pooled_text.mean(dim=0))


def check_ranks(number):
    """Two steps on two processes with unequal shares: losses, gradients, queue and centre are those of one process."""
    shares = [slice(0, 4), slice(4, None)]
    for kind in (TargetGuidedDistillation, FeatureGuidedDistillation):
        split, whole = make_objective(kind), make_objective(kind)
        for seed in range(2):
            step, every = make_step(seed=seed, rows=shares[number]), make_step(seed=seed)
            loss = split(step)
            expected = alone(whole, every)
            torch.testing.assert_close(all_reduce_sum(loss) / 2, expected)
            if kind is TargetGuidedDistillation:
                loss.backward()
                expected.backward()
                torch.testing.assert_close(step.images.embed.grad / 2, every.images.embed.grad[shares[number]])
            split.after_step()
            whole.after_step()
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(split.state_dict()[name], value)


def alone(objective, step):
    """The objective as if this process were the only one."""
    import objectives.distillation as module

    names = {"gather_rows": lambda x, *_: x, "row_counts": lambda n: [n], "world_size": lambda: 1}
    kept = {name: getattr(module, name) for name in (*names, "all_reduce_sum")}
    for name, value in (names | {"all_reduce_sum": lambda x: x.detach().clone()}).items():
        setattr(module, name, value)
    try:
        return objective(step)
    finally:
        for name, value in kept.items():
            setattr(module, name, value)


def test_two_processes_come_to_what_one_does():
    run_on_ranks(check_ranks, 2)
