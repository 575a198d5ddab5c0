"""Zero-shot classification: agreement with the model's own vectors, layouts of folders, wrong files."""

import json

import pytest
import torch
import torch.nn.functional as F

import rosetta
from dataset.class_folder import ClassFolder
from dataset.files import DataError
from tasks.zero_shot import ZeroShot, accuracy, read_names, read_order, read_prompts
from tests.toy_pairs import png, write_run

NAMES = ["red", "green", "blue"]
COLOURS = [(220, 20, 20), (20, 220, 20), (20, 20, 220)]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("zero_shot"))


def write_classes(folder, names=("000", "001", "002")):
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(2):
            (folder / name / f"{number}.png").write_bytes(png(COLOURS[int(name) % 3], size=(20 + number, 16)))
    return folder


@pytest.fixture
def project(tmp_path):
    write_classes(tmp_path / "test")
    (tmp_path / "label.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    prompts = {"lists": {"two": ["{}", "a {} number"]}, "default_list": "two", "dataset_to_list": {}}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    return tmp_path


def zero_shot(run_folder, project, **settings):
    names = {"data": str(project / "test"), "label_file": str(project / "label.txt"), "dataset": "toy"}
    names |= {"prompts": str(project / "prompts.json"), "save_dir": str(project), "checkpoint": str(run_folder)}
    return ZeroShot(ZeroShot.Config(**names | settings), rosetta.load).run()


@pytest.mark.parametrize("logit_scale", [100.0, 0.0])
def test_probabilities_are_those_of_mean_prompts(run_folder, project, logit_scale):
    result = zero_shot(run_folder, project, logit_scale=logit_scale, batch_size=4, text_batch_size=2)
    loaded = rosetta.load(run_folder)
    prompts = [torch.stack([loaded.encode_text([t])[0] for t in (name, f"a {name} number")]) for name in NAMES]
    classes = F.normalize(torch.stack([each.mean(dim=0) for each in prompts]), dim=1)
    images = loaded.encode_image([project / f"test/00{c}/{k}.png" for c in range(3) for k in range(2)])
    expected = (images @ classes.T * (logit_scale or 1 / loaded.model.temperature().item())).softmax(dim=1)
    [found] = json.loads((project / "toy.json").read_text())["predictions"]
    torch.testing.assert_close(torch.tensor(found), expected, atol=2e-5, rtol=0)
    assert result["top1"] == pytest.approx(
        (expected.argmax(dim=1) == torch.arange(3).repeat_interleave(2)).double().mean()
    )


def test_rows_are_written_in_the_order_of_the_index(run_folder, project):
    zero_shot(run_folder, project)
    [plain] = json.loads((project / "toy.json").read_text())["predictions"]
    (project / "index.json").write_text("[5, 0, 1, 2, 3, 4]")
    zero_shot(run_folder, project, index=str(project / "index.json"))
    [ordered] = json.loads((project / "toy.json").read_text())["predictions"]
    assert ordered == [plain[k] for k in (5, 0, 1, 2, 3, 4)]


def test_a_numbered_class_without_pictures_moves_no_other(tmp_path):
    assert ClassFolder(str(write_classes(tmp_path, ["000", "002"]))).labels == [0, 0, 2, 2]


def test_named_classes_are_in_the_order_of_their_names(tmp_path):
    for name in ("n02", "n01"):
        (tmp_path / name / "deeper").mkdir(parents=True)
        (tmp_path / name / "deeper/x.png").write_bytes(png((1, 2, 3)))
    (tmp_path / "n01/notes.txt").write_text("no picture")
    folder = ClassFolder(str(tmp_path))
    assert folder.ids == ["n01/deeper/x.png", "n02/deeper/x.png"] and folder.labels == [0, 1]


def test_top_five_counts_the_first_five():
    probability = torch.tensor([[0.3, 0.2, 0.15, 0.14, 0.13, 0.08]]).repeat(3, 1)
    assert accuracy(probability, torch.tensor([0, 4, 5])) == pytest.approx({"top1": 1 / 3, "top5": 2 / 3})


def test_more_classes_than_names_are_refused(run_folder, project):
    (project / "label.txt").write_text("red\ngreen\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"3 classes, the last is '002', but .*label.txt names 2"):
        zero_shot(run_folder, project)


def test_wrong_files_are_told(project):
    with pytest.raises(ValueError, match="no list 'three'; allowed: two"):
        read_prompts(str(project / "prompts.json"), "toy", "three")
    (project / "prompts.json").write_text('{"lists": {"a": ["no place"]}, "default_list": "a"}')
    with pytest.raises(ValueError, match="needs sentences with {} in the class's place; found .'no place'"):
        read_prompts(str(project / "prompts.json"), "toy", "")
    (project / "label.txt").write_text("red\n\nblue\n")
    with pytest.raises(ValueError, match=r"label.txt:2: an empty class name"):
        read_names(str(project / "label.txt"))
    (project / "index.json").write_text("[0, 0]")
    with pytest.raises(ValueError, match="must be a list that holds each of 0 ... 1 once"):
        read_order(str(project / "index.json"), 2)
    with pytest.raises(DataError, match="holds no folders"):
        ClassFolder(str(project / "test/000"))


def test_the_bundled_prompts_can_be_read():
    for name in ("", "chinese", "english", "one", "name"):
        assert read_prompts("assets/zero_shot_prompts.json", "imagenet", name).sentences
