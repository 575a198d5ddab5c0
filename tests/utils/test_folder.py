"""Folders near and far, in which files appear whole or not at all."""

import pytest

from utils.config import ConfigError
from utils.folder import Folder


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_what_is_written_is_listed_read_and_removed(tmp_path, scheme):
    folder = Folder(f"{scheme}{tmp_path}/deep")
    assert folder.names() == set()
    folder.write("x/.hidden", b"1")
    folder.write("y", b"2")
    folder.write("y", b"3")
    assert folder.names() == {"x/.hidden", "y"} and folder.read("y") == b"3"
    folder.remove("x/.hidden")
    assert folder.names() == {"y"}


def test_a_file_that_is_not_finished_does_not_appear(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write("y", b"old")
    with pytest.raises(RuntimeError), folder.create("y") as file:
        file.write(b"half")
        raise RuntimeError
    assert folder.read("y") == b"old"


def test_an_unknown_scheme_is_named():
    with pytest.raises(ConfigError, match="nowhere://x: cannot be reached"):
        Folder("nowhere://x")
