"""Tensors of a TorchScript archive are those that torch.jit.load finds, read without running the archive."""

import pickle
import warnings
import zipfile

import pytest
import torch
from torch import nn

from utils.checkpoint import CheckpointError
from utils.script_archive import is_script_archive, read_script_archive


class Tower(nn.Module):
    """What OpenAI's archives hold: halves and floats, nested parts, batch norms, counts as buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 2, bias=False).half()
        self.bn1 = nn.BatchNorm2d(4)
        self.proj = nn.Parameter(torch.randn(3, 4).t())  # columns are rows in the file
        self.resblocks = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        self.register_buffer("vocab_size", torch.tensor(7))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.bn1(self.conv1(images).float())


@pytest.fixture
def archive(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(Tower()).save(tmp_path / "ViT-B-16.pt")
    return tmp_path / "ViT-B-16.pt"


def test_tensors_equal_those_of_torch_s_own_loader(archive):
    assert is_script_archive(archive)
    found, expected = read_script_archive(archive), torch.jit.load(archive).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in expected.items())


def test_a_plain_weights_file_is_none(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "plain.pt")
    assert not is_script_archive(tmp_path / "plain.pt")


def test_an_archive_that_names_a_function_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        archive.writestr("bad/data.pkl", pickle.dumps(print))
        archive.writestr("bad/constants.pkl", pickle.dumps(()))
    with pytest.raises(CheckpointError, match="names builtins.print"):
        read_script_archive(tmp_path / "bad.pt")
