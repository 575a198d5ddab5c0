import pytest
import torch

from utils.lars import Lars
from utils.precision import guarded_step

ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)


def make(value: list[float], **settings) -> tuple[torch.nn.Parameter, Lars]:
    parameter = torch.nn.Parameter(torch.tensor(value))
    return parameter, Lars([parameter], lr=settings.pop("lr", 2.0), **settings)


def test_first_step_is_eta_times_the_norm_against_the_gradient():
    parameter, optimizer = make([3.0, 4.0])
    parameter.grad = torch.tensor([0.0, 10.0])
    guarded_step(optimizer, ONE, ZERO)
    torch.testing.assert_close(parameter.data, torch.tensor([3.0, 4.0 - 2.0 * 0.001 * 5.0]))


def test_a_parameter_of_zeros_takes_the_plain_rate():
    parameter, optimizer = make([0.0, 0.0])
    parameter.grad = torch.tensor([1.0, -1.0])
    guarded_step(optimizer, ONE, ZERO)
    torch.testing.assert_close(parameter.data, torch.tensor([-2.0, 2.0]))


def test_a_bad_step_changes_neither_weights_nor_momentum():
    parameter, optimizer = make([3.0, 4.0])
    parameter.grad = torch.tensor([torch.nan, 1.0])
    guarded_step(optimizer, ONE, ONE)
    assert parameter.data.tolist() == [3.0, 4.0]
    parameter.grad = torch.tensor([0.0, 10.0])
    guarded_step(optimizer, ONE, ZERO)
    torch.testing.assert_close(parameter.data, torch.tensor([3.0, 3.99]))


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match="momentum 0, dampening 0.0"):
        make([1.0], momentum=0, is_nesterov=True)
