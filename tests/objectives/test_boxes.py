import pytest
import torch

from objectives.boxes import box_losses, generalised_iou, to_corners

TARGET = torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.25, 0.25, 0.5, 0.5]])
EVERY = torch.tensor([True, True])


def test_a_box_beside_another_has_the_negative_share_of_the_gap():
    first, second = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 4.0, 1.0])
    assert generalised_iou(first, second).item() == pytest.approx(-0.5)  # hull 4, union 2, overlap 0


def test_right_boxes_cost_nothing():
    assert [loss.item() for loss in box_losses(TARGET, TARGET, EVERY)] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_rows_that_do_not_count_have_no_gradient():
    predicted = (TARGET + 0.1).requires_grad_()
    sum(box_losses(predicted, TARGET, torch.tensor([True, False]))).backward()
    assert predicted.grad[0].abs().sum() > 0 and (predicted.grad[1] == 0).all()


def test_a_batch_without_regions_costs_nothing():
    predicted = torch.rand(2, 4, requires_grad=True)
    losses = box_losses(predicted, TARGET, torch.tensor([False, False]))
    sum(losses).backward()
    assert [loss.item() for loss in losses] == [0.0, 0.0] and (predicted.grad == 0).all()


def test_a_box_of_negative_size_takes_out_the_overlap_term_with_finite_gradients():
    predicted = torch.tensor([[0.5, 0.5, -0.1, 0.2], [0.2, 0.2, 0.3, 0.3]], requires_grad=True)
    distance, giou = box_losses(predicted, TARGET, EVERY)
    (distance + giou).backward()
    assert giou.item() == 0 and distance.item() > 0 and predicted.grad.isfinite().all()


def test_boxes_without_area_give_finite_losses():
    empty = torch.tensor([[0.5, 0.5, 0.0, 0.0]], requires_grad=True)
    sum(box_losses(empty, empty.detach().clone(), EVERY[:1])).backward()
    assert empty.grad.isfinite().all()


def test_corners_lie_half_a_size_from_the_centre():
    assert to_corners(TARGET[:1]).tolist() == [pytest.approx([0.3, 0.4, 0.7, 0.6])]
