"""The only entry: turns a command into settings, starts the processes it asks for, trains and evaluates.

Exit status: 0 done; 1 failed; 2 the command or a setting is wrong; 75 stopped by a signal after saving: the same
command continues.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

try:
    from compat.command_line import WRONG_USE, parse
    from utils.allocator import keep_freed_memory
except ModuleNotFoundError as error:  # as a rule another Python than the environment's
    print(f"run.py: error: {error} for {sys.executable}; see Install in README.md", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    import argparse

    import torch

    from compat.command import Plan
    from compat.processes import Processes
    from configs.schema import Config
    from tasks.task import Task
    from tasks.tool import Tool

ROOT = Path(__file__).resolve().parent
FAILED, STOPPED = 1, 75


def main(argv: list[str]) -> int:
    """Does what the command says; the exit status."""
    arguments = parse(argv)
    if arguments.task == "list":
        from tasks.table import task_table

        print(task_table())
        return 0
    from compat.command import split_chain
    from tasks import CHAINS

    chain = [[*argv, *words] for words in split_chain(arguments, CHAINS)]
    if len(chain) == 1 or not is_worker():
        return do_all(chain)
    from utils import distributed

    # A launcher's processes meet once: they stay together over all runs.
    distributed.setup(distributed.device_for_rank())
    try:
        status = do_all(chain)
    except SystemExit:
        distributed.shutdown()
        raise
    distributed.shutdown(is_joint=not status)
    return status


def do_all(commands: list[list[str]]) -> int:
    """One command after the other until one fails; the exit status."""
    return next((status for argv in commands if (status := do(parse(argv), argv))), 0)


def do(arguments: argparse.Namespace, argv: list[str]) -> int:
    """One run, tool or export; its exit status."""
    from tasks import CHAINS, TASKS, TOOLS
    from utils.config import ConfigError, to_yaml
    from utils.registry import unknown_name_message

    try:
        if arguments.task == "export":
            return export(arguments)
        if arguments.task in TOOLS:
            return run_tool(arguments, argv)
        names = [*TASKS.names(), *TOOLS.names(), *CHAINS, "export", "list"]
        if arguments.task not in (None, *names):
            raise ConfigError(f"command line: {unknown_name_message('task', arguments.task, names)}")
        plan, config = settle_command(arguments)
        if arguments.dry_run and not is_worker():
            print(to_yaml(config), end="")
        if arguments.dry_run and not arguments.forecast:
            return 0
        if not arguments.forecast:
            from tasks.prepare import prepare

            is_fetching = not arguments.restart and os.environ.get("LOCAL_RANK", "0") == "0"
            remote = arguments.remote_output if is_fetching else None
            prepare(config, say, is_evaluation=arguments.evaluate, remote_output=remote)
        if plan.processes.are_many and not is_worker():
            return start_processes(argv, plan.processes)
        choose_devices(plan.processes)
        if arguments.forecast:
            from forecast import told_by_main

            with process_group(config.seed) as device:
                print(told_by_main(config, device, mark="# " if arguments.dry_run else ""), end="")
            return 0
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


def run_tool(arguments: argparse.Namespace, argv: list[str]) -> int:
    """Do what a row of the tool table does; the exit status."""
    from compat.command import place_output
    from rosetta import load
    from tasks import TOOLS
    from utils import distributed
    from utils.config import to_yaml
    from utils.remote import sent_when_left
    from utils.results import check_remote, upload, write_json

    kind = TOOLS.load(arguments.task)
    arguments.remote_output = place_output(arguments)
    config = tool_config(kind, arguments)
    if arguments.dry_run:
        print(to_yaml(config), end="")
        return 0
    for address in (arguments.output_hdfs, arguments.remote_output):
        check_remote(address)
    processes = find_processes(arguments)
    if processes.are_many and not is_worker():
        return start_processes(argv, processes)
    choose_devices(processes)
    output_dir = Path(config.output_dir)
    with (
        process_group(config.seed),
        sent_when_left(arguments.remote_output, output_dir, is_main=distributed.is_main()),
    ):
        tool = kind(config, load)
        result = tool.run()
        if distributed.is_main():
            if result:
                output_dir.mkdir(parents=True, exist_ok=True)
                write_json(output_dir / "metrics.json", result)
            print(tool.summary(result), end="")
            if arguments.output_hdfs:
                upload(output_dir, arguments.output_hdfs)
    return 0 if tool.succeeded(result) else FAILED


def tool_config(kind: type[Tool], arguments: argparse.Namespace) -> Any:
    """The settings of a tool: its own, with those of the training run that it looks at."""
    from compat.command import settle_looked_at, settle_tool, split_settings
    from tasks import DEFAULT_CONFIG
    from utils.config import build

    if not kind.reads_run_config:
        return build(kind.Config, settle_tool(arguments))
    from configs.schema import Config

    of_tool, of_run = split_settings(arguments, {field.name for field in fields(kind.Config)} - {"run"})
    plan = settle_looked_at(of_run, find_processes(arguments), DEFAULT_CONFIG, ROOT)
    for notice in plan.notices:
        say(notice)
    config, run = build(kind.Config, settle_tool(of_tool)), build(Config, plan.tree)
    config.output_dir = config.output_dir or f"{run.output_dir}/{arguments.task}"
    config.run, config.seed = run, run.seed
    return config


@contextmanager
def process_group(seed: int) -> Iterator[torch.device]:
    """This process's device, as one of its group, with a log and seeded random numbers."""
    from utils import distributed
    from utils.logger import setup_logging
    from utils.random_state import seed_random_state

    device = distributed.device_for_rank()
    is_new = distributed.setup(device)
    setup_logging(is_main=distributed.is_main())
    try:
        seed_random_state(seed)
        yield device
    finally:
        if is_new:
            distributed.shutdown()


def settle_command(arguments: argparse.Namespace) -> tuple[Plan, Config]:
    """The checked configuration of a command, and what else it asks for."""
    from compat.command import place_output, settle
    from tasks import DEFAULT_CONFIG
    from utils.config import ConfigError, build
    from utils.results import check_remote

    arguments.remote_output = place_output(arguments)
    plan = settle(arguments, find_processes(arguments), DEFAULT_CONFIG, ROOT)
    for notice in plan.notices:
        say(notice)
    from configs.schema import Config

    config, num_processes = build(Config, plan.tree), plan.processes.nproc * plan.processes.nnodes
    sizes = {"data.batch_size": config.data.batch_size}
    for name, stream in config.streams.items():
        sizes |= {f"streams.{name}.{key}": size for key, size in stream.shared_sizes.items()}
    for key, size in sizes.items():
        if size < num_processes:
            raise ConfigError(f"{key} {size} cannot be shared among {num_processes} processes")
    for address in (arguments.output_hdfs, arguments.remote_output):
        check_remote(address)
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

    from tasks.prepare import data_files
    from utils import distributed, run_folder
    from utils.checkpoint import write_weights
    from utils.remote import sent_when_left

    started, output_dir = time.time(), Path(config.output_dir)
    torch.autograd.set_detect_anomaly(arguments.debug)
    with ExitStack() as stack:
        device = stack.enter_context(process_group(config.seed))
        if distributed.is_main():
            stack.enter_context(run_folder.sole_writer(output_dir))
            if arguments.restart:
                run_folder.clear(output_dir)
            command = [sys.executable, "run.py", *argv]
            for note in run_folder.begin(output_dir, config, command, data_files(config), ROOT):
                say(note)
        stack.enter_context(sent_when_left(arguments.remote_output, output_dir, is_main=distributed.is_main()))
        distributed.barrier()
        task = build_task(config, device, is_evaluation=arguments.evaluate)
        if "save_initial" in actions:
            if distributed.is_main():
                write_weights(task.model.state_dict(), output_dir / "init_model.safetensors")
            return 0
        metrics = task_metrics(task, config, device, is_evaluation=arguments.evaluate)
        if distributed.is_main():
            finish(output_dir, metrics, time.time() - started, arguments.output_hdfs)
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


def task_metrics(task: Task, config: Config, device: torch.device, *, is_evaluation: bool) -> dict[str, Any]:
    """The final metrics tree: of training, or of the test split alone."""
    from rosetta import read_progress
    from trainer import Trainer
    from utils.config import ConfigError

    if is_evaluation:
        return {"test": task.evaluate("test"), "train_seconds": 0.0}
    place = {"output_dir": config.output_dir, "seed": config.seed, "device": device}
    try:
        trainer = Trainer(config.train, task, config.optim, config.schedule, **place)
    except (ValueError, OSError) as error:  # data or settings that no step can be made of
        raise ConfigError(str(error)) from error
    return trainer.fit(read_progress(config))


def finish(output_dir: Path, metrics: dict[str, Any], seconds: float, remote: str | None) -> None:
    """Final numbers, the page, the table, and the copy in the remote folder."""
    from utils.report import build_report, format_table
    from utils.results import upload, write_json

    metrics["total_seconds"] = round(seconds, 1)
    for name in ("chance", "dual_encoder", "mean_without_en", "rank_spread"):
        if name in metrics["test"]:
            metrics[name] = metrics["test"].pop(name)
    write_json(output_dir / "metrics.json", metrics)
    build_report(output_dir)
    print(format_table(metrics))
    if remote:
        upload(output_dir, remote)


def leave(error: Exception, status: int, arguments: argparse.Namespace) -> int:
    """Tell an error in one line (with --debug also where it came from); its exit status."""
    if arguments.debug:
        traceback.print_exception(error)
    told = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:  # without its number, and the file first
        told = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    say(told, kind="error")
    return status


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
    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
