import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run
from compat.command import find_config, settle
from compat.processes import Processes
from configs.schema import Config
from tasks import CHAINS, DEFAULT_CONFIG, TASKS, TOOLS
from tests.compat.cclm_files import FILES
from utils.config import ConfigError, build
from utils.config_tree import plain

ROOT = Path(run.__file__).parent
MODELS = ("cclm-base-ft", "cclm", "ccrk")


def command(*words, cwd=ROOT):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words], cwd=cwd, env=environment, capture_output=True, text=True
    )


def settled(words, processes=None):
    return settle(run.parse(words.split()), processes or Processes(), DEFAULT_CONFIG, ROOT)


def test_help_comes_at_once():
    started = time.monotonic()
    done = command("--help")
    assert done.returncode == 0 and "--pret_para" in done.stdout and "75 stopped" in done.stdout
    assert time.monotonic() - started < 2  # a machine at rest needs 0.05 s; importing torch alone takes longer


def test_a_python_without_the_packages_is_told_where_to_look():
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "run.py"), "--task", "list"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("run.py: error: No module named 'ruamel' for ") and "README.md" in done.stderr


def test_the_task_list_names_class_and_config():
    done = command("--task", "list")
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert done.returncode == 0 and [row[0] for row in rows] == TASKS.names() + TOOLS.names() + list(CHAINS)
    assert [row[1] for row in rows[: len(TASKS.names())]] == [TASKS.target(name) for name in TASKS.names()]
    assert [row[2] for row in rows] == [DEFAULT_CONFIG.get(row[0], "-") for row in rows]


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "run.py: --task is missing; --task list prints what there is"),
        (["--task", "pretrain", "--chekpoint", "x"], "run.py: unknown flag --chekpoint; did you mean --checkpoint?"),
        (["--task", "pretrain", "--bs", "many"], "run.py: argument --bs: invalid int value: 'many'"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(words, message, capsys):
    with pytest.raises(SystemExit) as left:
        run.main(words)
    assert left.value.code == 2 and capsys.readouterr().err == message + "\n"


@pytest.mark.parametrize(
    "words, message",
    [
        ("--task pretrian", "unknown task 'pretrian'; did you mean 'pretrain'? allowed: pretrain, "),
        ("--task serv", "unknown task 'serv'; did you mean 'serve'? allowed: pretrain, "),
        ("--task wit --config configs/absent.yaml", "configs/absent.yaml: no such file"),
        ("--task wit --fewshot de,many", "--fewshot expects LANGUAGE or LANGUAGE,SHOTS as de,100; found 'de,many'"),
        ("--task wit --fewshot de", "--fewshot needs"),
        ("--task wit --dist 7", "unknown --dist '7'; allowed: 1, all, f4, l4, gpuN"),
        ("--task wit seed", "expected 'section.key=value', found 'seed'"),
        ("--task pretrain --pret_para --caption_num=x", "--pret_para: --caption_num must be a whole number, found 'x'"),
        ("--task wit --bs 0", "--bs must be above 0, found 0"),
    ],
)
def test_a_wrong_command_is_one_line_and_status_2(words, message, capsys):
    assert run.main(words.split()) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("run.py: error: ") and said.count("\n") == 1


def test_settings_stand_anywhere_between_flags():
    parsed = run.parse("a.b=1 --task wit c=2 --evaluate d=-3".split())
    assert parsed.settings == ["a.b=1", "c=2", "d=-3"] and parsed.evaluate and parsed.task == "wit"


def test_a_string_of_flags_may_begin_with_dashes():
    assert run.parse(["--task", "wit", "--ft_para", "--eval_not_cross"]).ft_para == "--eval_not_cross"
    assert run.parse(["--task", "wit", "--rank", "1"]).node_rank == 1


def test_file_then_flags_then_settings(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("seed: 1\noptim: {lr: 1.0}\ndata: {batch_size: 1}\n")
    words = f"--task wit --config {file} --seed 2 --lr 2 --bs 2 optim.lr=3"
    tree = plain(settled(words).tree)
    assert tree["seed"] == 2 and tree["optim"]["lr"] == 3 and tree["data"]["batch_size"] == 2 and tree["task"] == "wit"


def test_few_shots_choose_the_sibling_and_fill_its_names(tmp_path):
    (tmp_path / "x.yaml").write_text("seed: 1\n")
    (tmp_path / "x_fewshot.yaml").write_text("output_dir: 'o/{lang}_{shots}'\n")
    tree = plain(settled(f"--task xflickrco --config {tmp_path}/x.yaml --fewshot de,100").tree)
    assert tree["output_dir"] == "o/de_100"


def test_a_few_shot_file_needs_to_know_language_and_shots():
    with pytest.raises(
        ConfigError, match="xflickrco_fewshot.yaml:5: .* has a place to fill; give --fewshot LANGUAGE,SHOTS"
    ):
        settled("--task xflickrco --fewshot de")
    with pytest.raises(ConfigError, match="'{lang}' has a place to fill"):
        settled("--task xflickrco --config configs/ccrk/xflickrco_fewshot.yaml")


def test_a_number_of_shots_that_no_file_has_a_place_for_is_told():
    assert "the number of shots, 48, is not used" in settled("--task nlvr --fewshot id,48").notices[0]
    assert settled("--task nlvr --fewshot id").notices == settled("--task xvnli --fewshot ar,48").notices == []


def test_flags_that_nothing_reads_are_told():
    notices = settled("--task wit --load_ckpt_from a.th").notices
    assert "--load_ckpt_from is read by the task nlvr_domain only" in notices[0]


def test_model_names_the_folder_of_the_tasks_default():
    sizes = {name: build(Config, settled(f"--task wit --model {name}").tree).data.batch_size for name in MODELS}
    assert sizes == {"cclm-base-ft": 64, "cclm": 64, "ccrk": 32}
    with pytest.raises(ConfigError, match="--model ccrkk is no folder of configs/; did you mean 'ccrk'"):
        settled("--task wit --model ccrkk")


def test_a_task_takes_the_settings_whose_data_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "--task itr_coco --config configs/cclm-base-ft/Retrieval_coco_en_ft.yaml"
    assert "en.1k_test.json" in build(Config, settled(words).tree).data.test.files["en"]  # CCLM's, who made the names
    for name in ("en.train", "en.val", "en.test"):
        (tmp_path / "data/finetune/mscoco").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"data/finetune/mscoco/{name}.json").write_text("[]")
    assert build(Config, settled(words).tree).data.test.folds == {"en": 5, "ja": 5}  # CCRK's names


def test_an_originals_default_file_in_the_working_folder_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/cclm-base-ft").mkdir(parents=True)
    (tmp_path / "configs/cclm-base-ft/WIT.yaml").write_text(FILES["WIT.yaml"].replace("epochs: 5", "epochs: 7"))
    plan = settled("--task wit")
    assert build(Config, plan.tree).train.epochs == 7 and "configs/cclm-base-ft/WIT.yaml" in plan.notices[0]
    (tmp_path / "configs/cclm-base-ft/XVNLI.yaml").write_text(FILES["XVNLI.yaml"])
    plan = settled("--task xvnli --fewshot ar,48")  # its sibling is not there, ours is
    assert build(Config, plan.tree).train.epochs == 60 and "using configs/cclm/xvnli_fewshot.yaml" in plan.notices[1]


def test_a_batch_of_one_process_counts_for_all_of_them():
    words = ["--task", "pretrain", "--pret_para", "--imgbsz 32"]
    plan = settle(run.parse(words), Processes(nproc=2, nnodes=2), DEFAULT_CONFIG, ROOT)
    assert plain(plan.tree)["data"]["batch_size"] == 128


def test_flags_of_the_other_kind_of_task_are_told():
    assert (
        "--ft_para does not belong to the task pretrain; it is not used"
        in settled("--task pretrain --ft_para --zs").notices
    )


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("configs/Pretrain_3m.yaml", "configs/ccrk/pretrain_3m.yaml"),
        ("configs/cclm-base-ft/Retrieval_multi30k_cs_ft.yaml", "configs/cclm/retrieval_multi30k_cs.yaml"),
        ("configs/cclm-base-ft/Retrieval_coco_all_ft.yaml", "configs/cclm/retrieval_coco_all.yaml"),
    ],
)
def test_the_originals_paths_lead_to_our_files(theirs, ours):
    notices = []
    path = find_config(run.parse(["--task", "pretrain", "--config", theirs]), "pretrain", DEFAULT_CONFIG, ROOT, notices)
    assert path.resolve() == ROOT / ours and ours in notices[0]


def test_a_file_of_the_user_at_an_originals_path_is_read_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/Pretrain_3m.yaml").write_text("seed: 5\n")
    assert plain(settled("--task pretrain --config configs/Pretrain_3m.yaml").tree)["seed"] == 5


def test_the_default_config_of_every_task_exists():
    assert set(DEFAULT_CONFIG) == set(TASKS.names())
    for name, path in DEFAULT_CONFIG.items():
        assert (ROOT / path).is_file(), name


def test_missing_default_is_told():
    with pytest.raises(ConfigError, match="task 'wit' has no default configuration; name one with --config"):
        settle(run.parse(["--task", "wit"]), Processes(), {"wit": ""}, ROOT)
