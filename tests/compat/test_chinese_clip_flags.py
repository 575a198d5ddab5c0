"""The command lines of Chinese-CLIP's trainer and its scripts."""

import os
import subprocess

import pytest

import rosetta
import run
from compat.chinese_clip_flags import FLAGS, translate
from compat.command import settle
from compat.processes import Processes
from configs.schema import Config
from tasks import DEFAULT_CONFIG, TOOLS
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


# The flags of training/params.py, in its order.
PARAMS = (
    "train-data val-data num-workers valid-num-workers logs name log-interval report-training-batch-acc batch-size "
    "valid-batch-size max-steps max-epochs valid-step-interval valid-epoch-interval context-length lr beta1 beta2 eps "
    "wd warmup use-bn-sync use-augment skip-scheduler save-epoch-frequency save-step-frequency resume reset-optimizer "
    "reset-data-offset precision vision-model mask-ratio clip-weight-path freeze-vision text-model bert-weight-path "
    "grad-checkpointing use-flash-attention accum-freq gather-with-grad skip-aggregate debug seed distillation "
    "teacher-model-name kd_loss_weight"
).split()
# Beside another flag, and a value where one is needed, each changes a setting or says what becomes of it.
VALUES = {"vision-model": "RN50", "text-model": "RBT3-chinese", "precision": "fp16", "teacher-model-name": "t.pt",
          "mask-ratio": "0.3", "beta1": "0.3", "beta2": "0.3"}  # fmt: skip
BESIDE = {"use-bn-sync": "--vision-model RN50", "teacher-model-name": "--distillation", "distillation":
          "--teacher-model-name t.pt", "kd_loss_weight": "--distillation --teacher-model-name t.pt", "val-data":
          "--train-data 3", "reset-optimizer": "--resume w.pt", "reset-data-offset": "--resume w.pt"}  # fmt: skip
# Nothing to do: these ask for what is done anyhow, and --debug is run.py's own.
ALWAYS = {"report-training-batch-acc", "debug", "gather-with-grad"}


@pytest.mark.parametrize("flag", PARAMS)
def test_every_flag_of_the_original_is_honoured_or_explained(flag):
    assert flag in FLAGS or flag in ("lr", "seed", "debug")
    beside = BESIDE.get(flag, "")
    is_switch = flag == "debug" or FLAGS.get(flag, int) is None
    words = f"{beside} --{flag}" + ("" if is_switch else f" {VALUES.get(flag, 3)}")
    config, notices = settled(words)
    if flag == "teacher-model-name":
        beside = "--distillation --teacher-model-name other.pt"
    plain, said = settled(beside)
    assert config != plain or notices != said or flag in ALWAYS


def test_a_teacher_s_name_on_modelscope_names_the_file_to_give():
    with pytest.raises(ValueError, match="nothing is downloaded; give clip_cn_vit-h-14.pt"):
        settled("--distillation --teacher-model-name damo/multi-modal_clip-vit-huge-patch14_zh")


def test_distillation_needs_a_teacher():
    with pytest.raises(ValueError, match="--distillation needs --teacher-model-name"):
        settled("--distillation")


def printed(script, tmp_path, **variables):
    """The words that a script hands to run.py."""
    (tmp_path / "python").write_text('#!/bin/sh\nshift\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(tmp_path / "python"), **variables}
    done = subprocess.run([script, "data", "--seed", "3"], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_there_is_a_script_for_every_recipe_of_the_original():
    ends = ["coco-cn", "flickr30k", "flickr30k:_flip", "muge", "muge:_distillation", "muge:_flashattn", "muge:_flip"]
    names = [name.partition(":") for name in ends]
    assert [path.name for path in SCRIPTS] == sorted(f"{a}_finetune_vit-b-16_rbt-base{b}.sh" for a, _, b in names)


def test_the_zero_shot_script_names_the_original_s_places(tmp_path):
    (tmp_path / "python").write_text('#!/bin/sh\necho $CUDA_VISIBLE_DEVICES; shift; printf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    script = rosetta.ROOT / "run_scripts/zeroshot_eval.sh"
    words = [script, "3", "data", "cifar-10", "ViT-B-16", "RoBERTa-wwm-ext-base-chinese", "w.pt", "order.json"]
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(tmp_path / "python")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    gpu, *told = done.stdout.split()
    arguments = run.parse(told)
    arguments.remote_output = None
    config = run.tool_config(TOOLS.load("zero_shot"), arguments)
    assert gpu == "3" and (config.checkpoint, config.dataset, config.index) == ("w.pt", "cifar-10", "order.json")
    assert (config.data, config.label_file) == ("data/datasets/cifar-10/test", "data/datasets/cifar-10/label_cn.txt")
    assert (config.save_dir, config.batch_size) == ("data/save_predictions", 64)


def test_the_original_s_variables_are_taken_from_the_environment(tmp_path):
    variables = {"GPUS_PER_NODE": "2", "batch_size": "16", "lr": "1e-4", "max_epochs": "7", "accum_freq": "3",
                 "context_length": "24", "resume": "own.pt", "output_base_dir": "out", "name": "run",
                 "vision_model": "ViT-L-14", "val_data": "elsewhere", "valid_step_interval": "-1"}  # fmt: skip
    arguments = run.parse(printed(SCRIPTS[0], tmp_path, **variables))
    config = build(Config, settle(arguments, Processes(nproc=2), DEFAULT_CONFIG, rosetta.ROOT).tree)
    assert (config.data.batch_size, config.optim.lr, config.train.epochs, config.train.accumulate) == (32, 1e-4, 7, 3)
    assert (config.data.max_tokens, config.init.checkpoint, config.output_dir) == (24, "own.pt", "out/run")
    assert config.data.val.files == {"zh": "elsewhere"} and config.train.eval_every_steps == 0
    assert config.model.image_encoder.num_layers == 24


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_every_script_settles_its_recipe(script, tmp_path):
    arguments = run.parse(printed(script, tmp_path, GPUS_PER_NODE="2", RANK="0"))
    plan = settle(arguments, Processes(nproc=8), DEFAULT_CONFIG, rosetta.ROOT)
    config = build(Config, plan.tree)
    assert arguments.nproc == 2 and config.seed == 3
    is_coco = "coco" in script.name
    assert config.data.batch_size == (8192 if is_coco else 1024) and config.optim.lr == (3e-5 if is_coco else 5e-5)
    data = f"{os.getcwd()}/data"
    assert config.init.checkpoint == f"{data}/pretrained_weights/clip_cn_vit-b-16.pt"
    assert not config.init.keeps_optimizer and not config.init.keeps_position
    if "distillation" in script.name:
        assert config.objectives["distill_images"].teacher == f"{data}/pretrained_weights/clip_cn_vit-h-14.pt"
    assert config.model.image_encoder.mask_ratio == (0.5 if "flip" in script.name else 0.0)
    name = {"muge": "MUGE", "flic": "Flickr30k-CN", "coco": "COCO-CN"}[script.name[:4]]
    assert config.data.train.files == {"zh": f"{data}/datasets/{name}/lmdb/train"}
