from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from utils.config import ConfigError, build, dump_yaml, load_config, read_yaml, to_tree
from utils.config_tree import fill_placeholders, plain, read_tree
from utils.registry import Registry


class Tower:
    @dataclass
    class Config:
        name: str = "tower"
        image_size: int = 224
        patch_size: int = 16

        def __post_init__(self) -> None:
            if self.image_size % self.patch_size:
                raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")


class Plain:
    @dataclass
    class Config:
        width: int = 8


TOWERS = Registry("tower", {"tower": f"{__name__}:Tower", "plain": f"{__name__}:Plain"})


@dataclass
class Optim:
    lr: float = 1e-4
    weight_decay: float = 0.01
    kind: Literal["adamw", "lars"] = "adamw"


@dataclass
class Schedule:
    name: Literal["linear", "cosine"] = "linear"
    warmup: int | float = 0.1


@dataclass
class Settings:
    steps: int
    schedule: Schedule = field(default_factory=Schedule)
    tower: Annotated[Any, TOWERS] = field(default_factory=Tower.Config)
    chosen: Annotated[Any, TOWERS] | None = None
    optim: Optim = field(default_factory=Optim)
    parts: dict[str, Annotated[Any, TOWERS]] = field(default_factory=dict)
    languages: list[str] = field(default_factory=list)
    scale: tuple[float, float] = (0.2, 1.0)
    stop: int | None = None
    where: Path = Path("here")
    amount: int | str = 1
    flag: bool = False
    fusion: Optim | None = None


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str, *overrides: Any) -> Settings:
    return load_config(Settings, write(folder, "c.yaml", text), overrides)


def message(folder: Path, text: str, *overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return str(caught.value).replace(str(folder) + "/", "")


def test_types_are_read_as_the_schema_says(tmp_path):
    text = """
    steps: 1e3
    optim: {lr: "3e-5", weight_decay: 0, kind: lars}
    languages: [en, no]
    scale: [0.5, 1]
    stop: 7
    where: some/where
    amount: half
    """
    got = load(tmp_path, text)
    assert got.steps == 1000 and isinstance(got.steps, int)
    assert got.optim == Optim(lr=3e-5, weight_decay=0.0, kind="lars") and isinstance(got.optim.weight_decay, float)
    assert got.languages == ["en", "no"] and got.scale == (0.5, 1.0) and got.stop == 7
    assert got.where == Path("some/where") and got.amount == "half"


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "steps: 1\noptim:\n  weight_decy: 1\n",
            "c.yaml:3: unknown key 'optim.weight_decy'; did you mean 'weight_decay'?",
        ),
        ("steps: 1\noptim:\n  zzz: 1\n", "c.yaml:3: unknown key 'optim.zzz'; allowed: lr, weight_decay, kind"),
        ("steps: many\n", "c.yaml:1: 'steps' must be a whole number, found the string 'many'"),
        ("steps: 1.5\n", "c.yaml:1: 'steps' must be a whole number, found the number 1.5"),
        ("steps: true\n", "c.yaml:1: 'steps' must be a whole number, found true"),
        ("steps: 1\nflag: yes\n", "c.yaml:2: 'flag' must be true or false, found the string 'yes'"),
        ("steps: 1\noptim: {lr: .nan}\n", "c.yaml:2: 'optim.lr' must be a number, found the number nan"),
        (
            "steps: 1\noptim:\n  kind: adam\n",
            "c.yaml:3: 'optim.kind' cannot be the string 'adam'; did you mean 'adamw'? allowed: adamw, lars",
        ),
        ("steps: 1\noptim: 3\n", "c.yaml:2: 'optim' must be a section of settings, found the number 3"),
        ("steps: 1\nlanguages: en\n", "c.yaml:2: 'languages' must be a list (a string each), found the string 'en'"),
        ("steps: 1\nlanguages:\n- en\n- 4\n", "c.yaml:4: 'languages[1]' must be a string, found the number 4"),
        ("steps: 1\nscale: [1]\n", "c.yaml:2: 'scale' must have 2 entries, found 1"),
        (
            "steps: 1\ntower:\n  name: towr\n",
            "c.yaml:3: 'tower': unknown tower 'towr'; did you mean 'tower'? allowed: tower, plain",
        ),
        ("steps: 1\nchosen:\n  image_size: 3\n", "c.yaml:2: 'chosen' has no 'name'; allowed names: tower, plain"),
        (
            "steps: 1\n\ntower:\n  name: tower\n  image_size: 30\n",
            "c.yaml:3: tower: image_size 30 is not a multiple of patch_size 16",
        ),
        ("steps: [1\n", "c.yaml:2: not valid YAML"),
        ("steps: 1\nsteps: 2\n", "c.yaml:2: not valid YAML: found duplicate key"),
        ("- 1\n", "c.yaml: expected 'key: value' settings, found a list"),
        ("optim: {}\n", "'steps' is missing; it has no default"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path, text, expected):
    assert expected in message(tmp_path, text)


def test_a_mistake_on_the_command_line_is_told_as_one(tmp_path):
    said = message(tmp_path, "steps: 1", "optim.lr=fast")
    assert said == "command line (optim.lr=...): 'optim.lr' must be a number, found the string 'fast'"
    assert "expected 'section.key=value', found 'optim.lr'" in message(tmp_path, "steps: 1", "optim.lr")


def test_an_absent_file_is_answered_with_the_nearest(tmp_path):
    write(tmp_path, "retrieval.yaml", "steps: 1")
    with pytest.raises(ConfigError, match=r"retreival.yaml: no such file; did you mean '.*/retrieval.yaml'"):
        load_config(Settings, tmp_path / "retreival.yaml")
    with pytest.raises(ConfigError, match="is a folder, not a YAML file"):
        load_config(Settings, tmp_path)


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(ConfigError, match="not a YAML file in UTF-8"):
        load_config(Settings, tmp_path / "c.yaml")


def test_a_file_holds_only_what_differs_from_its_bases(tmp_path):
    (tmp_path / "base").mkdir()
    write(tmp_path, "base/one.yaml", "steps: 1\noptim: {lr: 1.0, weight_decay: 1.0}\n")
    write(tmp_path, "base/two.yaml", "base: one.yaml\noptim: {lr: 2.0}\nstop: 5\n")
    got = load(tmp_path, "base: [base/two.yaml]\nsteps: 3\n", "stop=6", {"optim": {"kind": "lars"}})
    assert (got.steps, got.stop) == (3, 6) and got.optim == Optim(lr=2.0, weight_decay=1.0, kind="lars")


def test_an_inherited_mistake_is_told_where_it_was_written(tmp_path):
    write(tmp_path, "base.yaml", "steps: 1\noptim:\n  learning: 3\n")
    assert message(tmp_path, "base: base.yaml\noptim: {lr: 1}\n").startswith(
        "base.yaml:3: unknown key 'optim.learning'"
    )


def test_absent_and_circular_bases_are_told(tmp_path):
    assert "c.yaml:1: base file no.yaml does not exist" in message(tmp_path, "base: no.yaml\n")
    assert "a file cannot inherit from itself" in message(tmp_path, "base: c.yaml\n")


def test_another_name_inherits_nothing_of_the_section(tmp_path):
    write(tmp_path, "base.yaml", "steps: 1\ntower: {name: tower, image_size: 32}\n")
    assert load(tmp_path, "base: base.yaml\ntower: {name: plain}\n").tower == Plain.Config()
    assert load(tmp_path, "base: base.yaml\ntower: plain\n").tower == Plain.Config()
    assert load(tmp_path, "base: base.yaml\n", "tower.name=plain").tower == Plain.Config()
    assert load(tmp_path, "base: base.yaml\ntower: tower\n").tower.image_size == 32
    assert load(tmp_path, "base: base.yaml\ntower: {patch_size: 8}\n").tower == Tower.Config("tower", 32, 8)


def test_a_section_without_a_name_is_the_default_choice(tmp_path):
    assert load(tmp_path, "steps: 1", "tower.image_size=48").tower == Tower.Config(image_size=48)


def test_a_section_that_only_has_a_name_keeps_what_it_inherits(tmp_path):
    write(tmp_path, "base.yaml", "steps: 1\nschedule: {name: linear, warmup: 0.5}\n")
    assert load(tmp_path, "base: base.yaml\n", "schedule.name=cosine").schedule == Schedule("cosine", 0.5)


def test_a_name_that_comes_back_does_not_bring_its_old_settings(tmp_path):
    write(tmp_path, "base.yaml", "steps: 1\ntower: {name: tower, image_size: 32}\n")
    assert load(tmp_path, "base: base.yaml\n", "tower.name=plain", "tower.width=3").tower == Plain.Config(3)
    assert load(tmp_path, "base: base.yaml\n", "tower.name=plain", "tower.name=tower").tower == Tower.Config()


def test_in_a_table_of_choices_the_key_is_the_name_and_nothing_takes_it_away(tmp_path):
    write(tmp_path, "base.yaml", "steps: 1\nparts: {tower: {image_size: 32}, plain: {}}\n")
    got = load(tmp_path, "base: base.yaml\nparts: {plain: }\n")
    assert got.parts == {"tower": Tower.Config(image_size=32)}


def test_later_overrides_win_and_words_on_the_command_line_need_no_quotes(tmp_path):
    got = load(
        tmp_path, "steps: 1\nfusion: {lr: 2}", "steps=2", "steps=3", "languages=de,no,10", "where=10", "fusion=null"
    )
    assert got.steps == 3 and got.languages == ["de", "no", "10"] and got.where == Path("10") and got.fusion is None
    assert load(tmp_path, "steps: 1", "scale=[0.5,0.75]").scale == (0.5, 0.75)
    assert load(tmp_path, "steps: 1\namount: x", "amount=2").amount == 2


def test_what_is_written_reads_back_equal(tmp_path):
    text = "steps: 1\noptim: {lr: 1e-5}\ntower: plain\nparts: {plain: {width: 3}}\n"
    text += "languages: ['no', 'null', '1e3', '\u4e2d']\n"
    first = load(tmp_path, text)
    dump_yaml(first, tmp_path / "d.yaml")
    second = load_config(Settings, tmp_path / "d.yaml")
    assert second == first and second.tower == Plain.Config() and second.languages == ["no", "null", "1e3", "\u4e2d"]
    assert to_tree(first)["tower"] == {"name": "plain", "width": 8}
    assert read_yaml(tmp_path / "d.yaml") == to_tree(first)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml", "d.yaml"]


def test_a_plain_dict_builds_too():
    assert build(Settings, {"steps": 2, "optim": {"lr": 1}}).optim.lr == 1.0
    with pytest.raises(ConfigError, match="settings: unknown key 'step'; did you mean 'steps'?"):
        build(Settings, {"step": 2})


def test_placeholders_are_filled_where_known(tmp_path):
    tree = read_tree(
        write(tmp_path, "c.yaml", "files: {'{lang}': ['{lang}/train_{shots}.jsonl', '{other}']}\nsteps: 1\n")
    )
    filled = plain(fill_placeholders(tree, {"lang": "de", "shots": "100"}))
    assert filled == {"files": {"de": ["de/train_100.jsonl", "{other}"]}, "steps": 1}
