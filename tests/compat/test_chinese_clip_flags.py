"""The command lines of Chinese-CLIP's trainer and its scripts."""

import os
import subprocess

import pytest

import rosetta
import run
from compat.chinese_clip_flags import translate
from compat.command import settle
from compat.processes import Processes
from configs.schema import Config
from tasks import DEFAULT_CONFIG
from utils.config import build

SCRIPTS = sorted((rosetta.ROOT / "run_scripts").glob("*_*_vit-*.sh"))


def settled(words, processes=1):
    plan = settle(run.parse(["--task", "chinese_clip", *words.split()]), Processes(nproc=processes), DEFAULT_CONFIG,
                  rosetta.ROOT)  # fmt: skip
    return build(Config, plan.tree), plan.notices


def test_the_trainer_s_flags_become_settings():
    config, _ = settled(
        "--train-data d/train --val-data d/valid --batch-size 32 --max-epochs 5 --max-steps 90 --lr 3e-5 --wd 0.01 "
        "--warmup 7 --beta2 0.9 --eps 1e-7 --context-length 24 --seed 5 --precision fp32 --mask-ratio 0.5 --logs l "
        "--name n --resume w.pt --log-interval 3 --valid-step-interval 150 --valid-epoch-interval 2 --use-augment "
        "--save-epoch-frequency 2 --save-step-frequency 40 --grad-checkpointing --num-workers 2 --kd_loss_weight 0.3",
        processes=4,
    )
    data, train, optim = config.data, config.train, config.optim
    assert (data.train.name, data.train.files, data.val.files) == ("pairs", {"zh": "d/train"}, {"zh": "d/valid"})
    assert (data.batch_size, data.max_tokens, data.num_workers) == (128, 24, 2)
    assert data.train_transform.name == "clip_augment" and config.seed == 5
    assert (train.epochs, train.max_steps, train.precision, train.log_every_steps) == (5, 90, "fp32", 3)
    assert (train.eval_every_steps, train.eval_every_epochs) == (150, 2)
    assert (train.save_every_epochs, train.save_every_steps) == (2, 40)
    assert (optim.lr, optim.weight_decay, optim.betas, optim.eps) == (3e-5, 0.01, [0.9, 0.9], 1e-7)
    assert config.schedule.warmup == 7 and config.init.checkpoint == "w.pt" and config.output_dir == "l/n"
    image, text = config.model.image_encoder, config.model.text_encoder
    assert image.mask_ratio == 0.5 and image.recomputes_layers and text.recomputes_layers


@pytest.mark.parametrize("flag", ["--valid-step-interval", "--valid-epoch-interval", "--save-step-frequency"])
@pytest.mark.parametrize("value", [-1, 0])
def test_intervals_below_one_mean_never(flag, value):
    settings = translate({flag.removeprefix("--"): value}, 1).settings
    assert list(settings.values()) == [0]


def test_the_towers_choose_the_configuration():
    config, _ = settled("--vision-model RN50 --text-model RBT3-chinese --freeze-vision --use-bn-sync --mask-ratio 0.5")
    assert config.model.image_encoder.name == "resnet" and config.model.text_encoder.num_layers == 3
    assert config.model.image_encoder.is_frozen and config.model.image_encoder.sync_batch_norm
    assert config.optim.frozen == [r"^model\.image_projection\."] and config.optim.eps == 1e-8
    mixed, _ = settled("--vision-model ViT-B-32 --text-model RBT3-chinese")
    assert (mixed.model.image_encoder.patch_size, mixed.model.text_encoder.num_layers) == (32, 3)


def test_ways_to_gather_accumulate_and_distil():
    config, notices = settled("--accum-freq 4 --distillation --teacher-model-name t.pt --kd_loss_weight 0.3", 2)
    assert (config.train.accumulate, config.train.accumulate_decoupled) == (4, True)
    assert config.objectives["nce"].gather == "exact" and any("local_slice" in line for line in notices)
    teacher = config.objectives["distill_images"]
    assert (teacher.teacher, teacher.weight, teacher.gather) == ("t.pt", 0.3, "exact")
    alone, _ = settled("--skip-aggregate --distillation --teacher-model-name t.pt")
    assert alone.objectives["nce"].gather == alone.objectives["distill_images"].gather == "none"


def test_without_validation_data_there_is_no_validation():
    config, _ = settled("--train-data d/train")
    assert config.data.val is None and config.data.test is None


@pytest.mark.parametrize(
    "words, message",
    [
        ("--batch-size many", "--batch-size must be a whole number, found 'many'"),
        ("--train-data", "--train-data needs a value"),
        ("--vision-model ViT-B-61", "did you mean 'ViT-B-16'"),
        ("--train-dat x", "unknown flag --train-dat"),
    ],
)
def test_a_wrong_flag_is_told_before_anything_runs(words, message, capsys):
    with pytest.raises(SystemExit) as left:
        run.parse(["--task", "chinese_clip", *words.split()])
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_distillation_needs_a_teacher():
    with pytest.raises(ValueError, match="--distillation needs --teacher-model-name"):
        settled("--distillation")


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_every_script_settles_its_recipe(script, tmp_path):
    (tmp_path / "python").write_text('#!/bin/sh\nshift\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(tmp_path / "python"), "GPUS_PER_NODE": "2", "RANK": "0"}
    done = subprocess.run([script, "data", "--seed", "3"], env=environment, capture_output=True, text=True, check=True)
    arguments = run.parse(done.stdout.split())
    plan = settle(arguments, Processes(nproc=8), DEFAULT_CONFIG, rosetta.ROOT)
    config = build(Config, plan.tree)
    assert arguments.nproc == 2 and config.seed == 3
    is_coco = "coco" in script.name
    assert config.data.batch_size == (8192 if is_coco else 1024) and config.optim.lr == (3e-5 if is_coco else 5e-5)
    assert config.init.checkpoint == "data/pretrained_weights/clip_cn_vit-b-16.pt"
    assert config.model.image_encoder.mask_ratio == (0.5 if "flip" in script.name else 0.0)
    name = {"muge": "MUGE", "flic": "Flickr30k-CN", "coco": "COCO-CN"}[script.name[:4]]
    assert config.data.train.files == {"zh": f"data/datasets/{name}/lmdb/train"}
