import pytest
import torch
import torch.nn.functional as F

from objectives.contrastive import top_one_accuracy
from objectives.teacher import ImageDistillation, distillation_loss


def test_rows_of_one_direction_cost_nothing_whatever_their_length():
    student = F.normalize(torch.randn(4, 8), dim=1)
    assert torch.allclose(distillation_loss(student, 7 * student), torch.zeros(4), atol=1e-6)
    assert torch.allclose(distillation_loss(student, -student), torch.full((4,), 2.0), atol=1e-6)


@pytest.mark.parametrize("width", [5, 8, 19])
def test_another_width_is_stretched_as_a_picture_is(width):
    student, teacher = torch.randn(4, 8), torch.randn(4, width)
    picture = F.interpolate(student[None, None], size=(4, width), mode="bilinear", align_corners=False)[0, 0]
    expected = 1 - F.cosine_similarity(teacher, picture, dim=1)
    assert torch.allclose(distillation_loss(student, teacher), expected, atol=1e-6)


def test_a_teacher_must_be_named():
    with pytest.raises(ValueError, match="name a checkpoint"):
        ImageDistillation.Config()


def test_accuracy_counts_rows_whose_nearest_column_is_right():
    rows, columns = torch.eye(3), torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0.5]])
    found = top_one_accuracy(rows, columns, torch.tensor([7, 7, 5]), torch.tensor([7, 8, 5, 7]))
    assert found.item() == pytest.approx(2 / 3)  # the first row's nearest column is the second
