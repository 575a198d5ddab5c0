"""The only entry: turns a command into settings, starts the processes it asks for, trains and evaluates.

Exit status: 0 done; 1 failed; 2 the command or a setting is wrong; 75 stopped by a signal after saving: the same
command continues.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch

    from compat.command import Plan
    from compat.processes import Processes
    from configs.schema import Config
    from tasks.task import Task

ROOT = Path(__file__).resolve().parent
WRONG_USE, FAILED, STOPPED = 2, 1, 75
# The value of these may itself begin with dashes.
WHOLE_STRING_FLAGS = ("--pret_para", "--ft_para")
EPILOG = """\
exit status: 0 done; 1 failed; 2 the command or a setting is wrong; 75 stopped by SIGTERM or SIGINT after saving:
run the same command again to continue.
examples:
  run.py --task itr_multi30k --checkpoint ccrk_3m.th --bs 64 --epoch 10 --output_dir output/multi30k
  run.py --task xflickrco --checkpoint english.th --fewshot de,100 --output_dir output/de optim.weight_decay=0.05
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command in one line and leaves with status 2."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments:"):
            from utils.registry import nearest

            flags = [flag for action in self._actions for flag in action.option_strings]
            word = message.split(":", 1)[1].split()[0].split("=")[0]
            close = nearest(word, flags)
            message = f"unknown flag {word}; " + (f"did you mean {close}?" if close else "see --help")
        self.exit(WRONG_USE, f"run.py: {message}\n")


def make_parser() -> Parser:
    """Every flag of the originals' run.py, and ours."""
    parser = Parser(
        "run.py",
        description="Train and evaluate cross-lingual image-text models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to do")
    what.add_argument("--task", help="a row of the task table; 'list' prints the table")
    what.add_argument("--config", help="YAML file, ours or an original system's; absent: the task's default")
    what.add_argument("--output_dir", help="folder for everything that the run writes")
    what.add_argument("--evaluate", action="store_true", help="evaluate the test split, no training")
    what.add_argument("--restart", action="store_true", help="start over instead of continuing from output_dir")
    what.add_argument("--dry_run", action="store_true", help="check everything, print the settings, build nothing")
    what.add_argument(
        "settings", nargs="*", metavar="key=value", help="any setting of the configuration, as optim.lr=1e-5"
    )
    values = parser.add_argument_group("settings with a name of their own")
    values.add_argument("--checkpoint", help="weights to start from: ours, or a released file of an original system")
    values.add_argument("--bs", type=int, metavar="N", help="training batch over all processes")
    values.add_argument("--epoch", type=int, metavar="N", help="epochs to train")
    values.add_argument("--lr", type=float, help="learning rate")
    values.add_argument("--seed", type=int, help="seed of everything random")
    values.add_argument("--fewshot", metavar="LANG[,SHOTS]", help="few-shot language and number of shots, as de,100")
    values.add_argument("--gmt", action="store_true", help="test on captions machine-translated to English")
    values.add_argument(
        "--output_hdfs", metavar="URL", help="remote folder (hdfs://, s3://) that gets a copy of the results"
    )
    values.add_argument(
        "--to", metavar="LAYOUT", help="with --task export: ccrk_pretrain, ccrk_finetune or the same of cclm"
    )
    start = parser.add_argument_group("processes")
    start.add_argument(
        "--dist", metavar="WHERE", help="1 all GPUs here, all nodes, f4 / l4 first / last four GPUs, gpuN"
    )
    start.add_argument("--nproc", type=int, metavar="N", help="processes on this machine")
    start.add_argument("--nnodes", type=int, metavar="N", help="machines")
    start.add_argument("--node_rank", "--rank", type=int, metavar="N", help="number of this machine")
    start.add_argument("--master_addr", metavar="HOST", help="the first machine")
    start.add_argument("--port", type=int, help="port on the first machine")
    start.add_argument("--device", metavar="LIST", help="GPUs to use: 0,2,3 or cN for 0 ... N-1")
    start.add_argument("--debug", action="store_true", help="autograd anomaly detection and full tracebacks")
    old = parser.add_argument_group("flags of the original systems")
    old.add_argument("--model", default="cclm-base-ft", help="accepted; it only named a folder of configs")
    old.add_argument("--pret_type", metavar="X", help="choose the task pretrain_X")
    old.add_argument("--pret_para", default="", metavar="FLAGS", help="the original pre-training flags, as one string")
    old.add_argument("--ft_para", default="", metavar="FLAGS", help="the original fine-tuning flags, as one string")
    old.add_argument("--load_ckpt_from", help="weights for nlvr_domain, skipping its first stage")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """The command's flags; settings may stand anywhere between them."""
    words = list(argv)
    for flag in WHOLE_STRING_FLAGS:
        while flag in words[:-1]:
            place = words.index(flag)
            words[place : place + 2] = [f"{flag}={words[place + 1]}"]
    parser = make_parser()
    arguments = parser.parse_intermixed_args(words)
    if arguments.task is None and arguments.config is None:
        parser.error("--task is missing; --task list prints what there is")
    return arguments


def main(argv: list[str]) -> int:
    """Does what the command says; the exit status."""
    arguments = parse(argv)
    if arguments.task == "list":
        print(task_table())
        return 0
    from utils.config import ConfigError

    try:
        if arguments.task == "export":
            return export(arguments)
        plan, config = settle_command(arguments)
        if arguments.dry_run:
            print(as_yaml(config), end="")
            return 0
        if plan.processes.are_many and not is_worker():
            return start_processes(argv, plan.processes)
        choose_devices(plan.processes)
        return execute(config, plan.actions, arguments, argv)
    except (ConfigError, FileNotFoundError) as error:
        return leave(error, WRONG_USE, arguments)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        return leave(error, FAILED, arguments)


def export(arguments: argparse.Namespace) -> int:
    """Write a checkpoint in an original system's layout."""
    from rosetta import export_weights

    missing = [flag for flag in ("checkpoint", "to", "output_dir") if getattr(arguments, flag) is None]
    if missing:
        say(f"--task export needs --{', --'.join(missing)}", kind="error")
        return WRONG_USE
    print(export_weights(arguments.checkpoint, arguments.to, arguments.output_dir, arguments.config))
    return 0


def settle_command(arguments: argparse.Namespace) -> tuple[Plan, Config]:
    """The checked configuration of a command, and what else it asks for."""
    from compat.command import settle
    from tasks import DEFAULT_CONFIG
    from utils.config import ConfigError, build
    from utils.results import check_remote

    plan = settle(arguments, find_processes(arguments), DEFAULT_CONFIG, ROOT)
    for notice in plan.notices:
        say(notice)
    from configs.schema import Config

    config, num_processes = build(Config, plan.tree), plan.processes.nproc * plan.processes.nnodes
    if config.data.batch_size < num_processes:
        raise ConfigError(f"data.batch_size {config.data.batch_size} cannot be shared among {num_processes} processes")
    check_remote(arguments.output_hdfs)
    return plan, config


def find_processes(arguments: argparse.Namespace) -> Processes:
    """What `--dist` and its kin come to on this machine; inside a worker, what its launcher started."""
    from compat.processes import Processes, choose_nodes, choose_processes

    if is_worker():
        return Processes(nproc=int(os.environ["WORLD_SIZE"]))
    wanted = (arguments.dist, arguments.nproc, arguments.device, arguments.nnodes)
    if all(flag is None for flag in wanted):
        return Processes()
    import torch

    from utils.distributed import slurm_nodes

    slurm = slurm_nodes(dict(os.environ)) if arguments.dist == "all" else None
    nodes = choose_nodes(
        dist=arguments.dist,
        nnodes=arguments.nnodes,
        node_rank=arguments.node_rank,
        master_addr=arguments.master_addr,
        port=arguments.port,
        environment=os.environ,
        slurm=(slurm.nnodes, slurm.node_rank, slurm.master_addr) if slurm else None,
    )
    return choose_processes(
        dist=arguments.dist,
        device=arguments.device,
        nproc=arguments.nproc,
        nodes=nodes,
        visible=list(range(torch.cuda.device_count())),
    )


def is_worker() -> bool:
    """Whether a launcher (ours or torchrun) started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def start_processes(argv: list[str], processes: Processes) -> int:
    """Run this program as several processes; their common exit status."""
    import logging

    from utils.distributed import launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the failed process has told why
    choose_devices(processes)
    return launch(
        [str(ROOT / "run.py"), *argv],
        nproc=processes.nproc,
        nnodes=processes.nnodes,
        node_rank=processes.node_rank,
        master_addr=processes.master_addr,
        port=processes.port,
    )


def choose_devices(processes: Processes) -> None:
    """Let this process and its children see the chosen GPUs only."""
    if processes.devices is not None:
        seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(seen[i] if seen else str(i) for i in processes.devices)


def execute(config: Config, actions: set[str], arguments: argparse.Namespace, argv: list[str]) -> int:
    """Train or evaluate in this process, alone or as one of several."""
    import torch

    from utils import distributed
    from utils.logger import setup_logging
    from utils.random_state import seed_random_state

    started = time.time()
    torch.autograd.set_detect_anomaly(arguments.debug)
    device = distributed.device_for_rank()
    distributed.setup(device)
    setup_logging(is_main=distributed.is_main())
    try:
        output_dir = Path(config.output_dir)
        if distributed.is_main():
            prepare_output(output_dir, config, argv, restart=arguments.restart)
        distributed.barrier()
        seed_random_state(config.seed)
        task = build_task(config, device, is_evaluation=arguments.evaluate)
        if "save_initial" in actions:
            save_initial(task, output_dir)
            return 0
        metrics = task_metrics(task, config, device, is_evaluation=arguments.evaluate)
        if distributed.is_main():
            finish(output_dir, metrics, time.time() - started, arguments.output_hdfs)
    finally:
        distributed.shutdown()
    return 0


def build_task(config: Config, device: torch.device, *, is_evaluation: bool) -> Task:
    """The task with its first weights on the device; what cannot be built is a mistake in the settings."""
    from rosetta import initialise
    from tasks import TASKS
    from utils.config import ConfigError

    try:
        splits = ("test",) if is_evaluation else ("train", "val", "test")
        task = TASKS.load(config.task).from_config(config, splits)
        for note in initialise(task, config, is_evaluation=is_evaluation):
            say(note)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    return task.to(device)


def prepare_output(output_dir: Path, config: Config, argv: list[str], *, restart: bool) -> None:
    """The output folder with the resolved settings and what the run was made with."""
    from utils.config import dump_yaml
    from utils.environment import describe_run
    from utils.results import write_json

    output_dir.mkdir(parents=True, exist_ok=True)
    if restart:
        shutil.rmtree(output_dir / "checkpoints", ignore_errors=True)
        for name in ("metrics.jsonl", "metrics.json", "gallery.json", "report.html"):
            (output_dir / name).unlink(missing_ok=True)
    dump_yaml(config, output_dir / "config.yaml")
    command = [sys.executable, "run.py", *argv]
    write_json(output_dir / "environment.json", describe_run(command, data_files(config), ROOT))


def data_files(config: Config) -> list[str]:
    """Every file and folder that the data sections name."""
    paths: list[str] = []
    for section in (config.data.train, config.data.val, config.data.test):
        files = section.files if section is not None else []
        for entry in files.values() if isinstance(files, dict) else files:
            paths += [entry] if isinstance(entry, str) else entry
    return sorted(set(paths))


def save_initial(task: Task, output_dir: Path) -> None:
    """The model as it stands before the first step."""
    from utils.checkpoint import write_weights
    from utils.distributed import is_main

    if is_main():
        write_weights(task.model.state_dict(), output_dir / "init_model.safetensors")


def task_metrics(task: Task, config: Config, device: torch.device, *, is_evaluation: bool) -> dict[str, Any]:
    """The final metrics tree: of training, or of the test split alone."""
    from trainer import Trainer

    if is_evaluation:
        return {"test": task.evaluate("test"), "train_seconds": 0.0}
    trainer = Trainer(
        config.train, task, config.optim, config.schedule, output_dir=config.output_dir, seed=config.seed, device=device
    )
    return trainer.fit()


def finish(output_dir: Path, metrics: dict[str, Any], seconds: float, remote: str | None) -> None:
    """Final numbers, the page, the table, and the copy in the remote folder."""
    from utils.report import build_report, format_table
    from utils.results import upload, write_json

    metrics["total_seconds"] = round(seconds, 1)
    for name in ("chance", "dual_encoder", "rank_spread"):
        if name in metrics["test"]:
            metrics[name] = metrics["test"].pop(name)
    write_json(output_dir / "metrics.json", metrics)
    build_report(output_dir)
    print(format_table(metrics))
    if remote:
        upload(output_dir, remote)


def as_yaml(config: Config) -> str:
    """The resolved settings as a file that --config reads."""
    from utils.config import dump_yaml

    with tempfile.TemporaryDirectory() as folder:
        dump_yaml(config, Path(folder) / "config.yaml")
        return (Path(folder) / "config.yaml").read_text(encoding="utf-8")


def leave(error: Exception, status: int, arguments: argparse.Namespace) -> int:
    """Tell an error in one line (with --debug also where it came from); its exit status."""
    if arguments.debug:
        traceback.print_exception(error)
    say(str(error) or type(error).__name__, kind="error")
    return status


def task_table() -> str:
    """Every task with the settings it starts from."""
    from tasks import DEFAULT_CONFIG, TASKS

    width = max(len(name) for name in TASKS.names())
    target_width = max(len(TASKS.target(name)) for name in TASKS.names())
    rows = [("task", "class", "default config")]
    rows += [(name, TASKS.target(name), DEFAULT_CONFIG.get(name, "-")) for name in TASKS.names()]
    return "\n".join(f"{name:{width}}  {target:{target_width}}  {config}" for name, target, config in rows)


def say(text: str, kind: str = "note") -> None:
    """One line for the person who typed the command; only the first process speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"run.py: {kind}: {' '.join(text.split())}", file=sys.stderr, flush=True)


def leave_on_signal(*_: object) -> NoReturn:
    """Before training has begun (which saves first) there is nothing to keep."""
    os._exit(STOPPED)


if __name__ == "__main__":
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, leave_on_signal)
    sys.exit(main(sys.argv[1:]))
