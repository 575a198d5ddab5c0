import sys

import pytest

from utils.registry import Registry


def test_a_class_is_imported_only_when_asked_for():
    sys.modules.pop("wave", None)
    table = Registry("sound", {"wave": "wave:Wave_read"})
    assert table.names() == ["wave"] and "wave" not in sys.modules
    assert table.load("wave").__name__ == "Wave_read" and "wave" in sys.modules


def test_an_unknown_name_is_answered_with_the_nearest_and_the_list():
    table = Registry("image encoder", {"swin": "x:Swin", "vit": "x:ViT"})
    with pytest.raises(ValueError, match=r"unknown image encoder 'swim'; did you mean 'swin'\? allowed: swin, vit"):
        table.load("swim")


def test_a_name_cannot_be_entered_twice():
    table = Registry("thing", {"a": "x:A"})
    with pytest.raises(ValueError, match="in the table already: x:A"):
        table.add("a", "y:B")


@pytest.mark.parametrize("target", ["module", "module:", ":Class", "module:not a name"])
def test_a_target_that_names_no_class_is_refused(target):
    with pytest.raises(ValueError, match="not of the form 'module:Class'"):
        Registry("thing", {"a": target})


def test_a_target_whose_class_is_absent_says_so():
    with pytest.raises(ImportError, match="module json has no 'Missing'"):
        Registry("thing", {"a": "json:Missing"}).load("a")
