"""A whole command as one plan: which file, which settings over it, how many processes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Set
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

from compat import cclm, ccrk_flags, chinese_clip_flags, r2d2, zerovl, zerovl_probe
from compat.config_names import OUR_CONFIG, choose, original_default, our_defaults
from compat.flags import Translation, nested, split_fewshot, translate_run_flags
from compat.processes import Processes
from utils.config import ConfigError
from utils.config_tree import Node, fill_placeholders, join, parse_override, plain, read_file, read_tree
from utils.registry import nearest
from utils.remote import is_remote, local_copy

COMMAND_LINE = "command line"
FEWSHOT_SUFFIX = "_fewshot"
# Whose YAML files are read: modules with is_original(tree) and
# translate_config(tree, path, world_size, placeholders, task).
ORIGINALS = (cclm, r2d2)


@dataclass
class Plan:
    """A command after translation: the tree to build the configuration from, and what is no setting."""

    tree: Node
    processes: Processes
    notices: list[str] = field(default_factory=list)
    actions: set[str] = field(default_factory=set)


def place_output(arguments: Namespace) -> str | None:
    """Let a run whose output folder is an address work in a local folder; the address, which stands for itself."""
    address = arguments.output_dir
    if not address or not is_remote(address):
        return None
    # The whole address: two runs of the same last name must not share a folder.
    arguments.output_dir = f"output/{address.rstrip('/').replace('://', '/')}"
    return address


def split_chain(arguments: Namespace, chains: Mapping[str, tuple[str, str, str]]) -> list[list[str]]:
    """The words to append to a command for each run that it comes to: none for a task that is one run.

    A chain names the first task, the second and the folder of the second. --config and the settings of --checkpoint
    are the first one's, --bs, --epoch and --lr the second one's; key=value settings are for both. --load_ckpt_from
    takes the place of the first run, and an evaluation needs only the second.
    """
    if arguments.task not in chains:
        return [[]]
    first, second, folder = chains[arguments.task]
    output = copy(arguments)
    output.output_dir = arguments.output_dir or "output"
    place_output(output)
    own = ["--task", second, "--output_dir", f"{arguments.output_dir or 'output'}/{folder}", "--load_ckpt_from="]
    if arguments.evaluate:
        return [own]
    weights = arguments.load_ckpt_from or f"{output.output_dir}/checkpoints/last"
    chained = [*own, "--config=", "--checkpoint", weights]
    if arguments.load_ckpt_from:
        return [chained]
    return [["--task", first, "--bs=-1", "--epoch=-1", "--lr=0"], chained]


def settle(arguments: Namespace, processes: Processes, default_config: Mapping[str, str], root: Path) -> Plan:
    """Everything that the command says, in the order file < flags < key=value."""
    task = _task_name(arguments, default_config)
    placeholders = split_fewshot(arguments.fewshot) if arguments.fewshot else {}
    notices: list[str] = [processes.notice] if processes.notice else []
    own, theirs = zerovl.split_words(arguments.settings)
    named = str(_locate(arguments.config, root)) if arguments.config else None
    if (original := zerovl.original_tree(named, theirs)) is not None:
        path, tree, words = Path(arguments.config), zerovl.translate_tree(original, theirs, notices), own
    else:
        path, words = find_config(arguments, task, default_config, root, notices), arguments.settings
        tree = _read(path, processes.nproc * processes.nnodes, placeholders, task, notices)
    world = processes.nproc * processes.nnodes
    if arguments.gmt:
        tree = _use_translated_tests(tree, path)
    notices += _notices_of_unread_flags(arguments, task)
    tree, actions = _lay_flags_over(tree, arguments, task, world, notices)
    tree = join(tree, [parse_override(word) for word in words])
    tree = fill_placeholders(tree, placeholders)
    _refuse_unfilled(tree)
    notices += _notice_of_unused_shots(tree, placeholders)
    return Plan(tree, processes, notices, actions)


def settle_tool(arguments: Namespace) -> Node:
    """The settings of a tool: its file, if one is named, under flags and key=value."""
    tree, words = _tool_file(arguments)
    given = {
        "output_dir": arguments.output_dir,
        "remote_output": arguments.remote_output,
        "checkpoint": arguments.checkpoint,
        "seed": arguments.seed,
        "batch_size": arguments.bs,
        "images": arguments.image,
        "texts": arguments.text,
    }
    flags = Translation({key: value for key, value in given.items() if value is not None})
    return join(join(tree, flags.tree(COMMAND_LINE)), [parse_override(word) for word in words])


def _tool_file(arguments: Namespace) -> tuple[Node, list[str]]:
    """The settings of a tool's file, and the key=value words over it; ZeroVL's linear probe has settings of its own."""
    if arguments.task == zerovl_probe.TASK:
        own, theirs = zerovl_probe.split_words(arguments.settings)
        original = zerovl_probe.original_file(arguments.config)
        if original is not None:
            return nested(zerovl_probe.settings_of(original, theirs), original.place), own
    tree = read_tree(arguments.config) if arguments.config else Node({}, COMMAND_LINE)
    return tree, arguments.settings


def split_settings(arguments: Namespace, names: Set[str]) -> tuple[Namespace, Namespace]:
    """The command as a tool with these settings reads it, and as the run reads it that the tool looks at."""
    of_tool, of_run = copy(arguments), copy(arguments)
    of_tool.config = of_tool.checkpoint = of_tool.seed = of_tool.bs = of_run.output_dir = None
    of_tool.settings = [word for word in arguments.settings if word.partition("=")[0].strip() in names]
    of_run.settings = [word for word in arguments.settings if word not in of_tool.settings]
    return of_tool, of_run


def settle_looked_at(arguments: Namespace, processes: Processes, default_config: Mapping[str, str], root: Path) -> Plan:
    """The plan of the run that a tool looks at; --task names the tool, so a file without a task gets any."""
    if not arguments.config:
        raise ConfigError(f"{COMMAND_LINE}: --task {arguments.task} needs --config, the settings of a run")
    arguments = copy(arguments)
    arguments.task = None
    plan = settle(arguments, processes, default_config, root)
    plan.tree.value.setdefault("task", Node(next(iter(default_config)), COMMAND_LINE))
    return plan


def find_config(
    arguments: Namespace, task: str | None, default_config: Mapping[str, str], root: Path, notices: list[str]
) -> Path:
    """The file to read: the one named, ours for an original's name, the few-shot sibling, or the task's default."""
    path = _named_config(arguments, task, default_config, root, notices)
    # One checkpoint per language is evaluated on the test sets of all of them, which stand in the task's own file.
    if arguments.evaluate and "--checkpoint_fmt" in arguments.ft_para:
        return path
    if (
        not arguments.fewshot
        or not path.is_file()
        or path.stem.endswith(FEWSHOT_SUFFIX)
        or "{lang}" in path.read_text()
    ):
        return path
    sibling = path.with_name(path.stem + FEWSHOT_SUFFIX + path.suffix)
    if sibling.is_file():
        return sibling
    if sibling.name not in OUR_CONFIG:
        raise ConfigError(f"{COMMAND_LINE}: --fewshot needs {sibling}, which does not exist")
    notices.append(f"{sibling} is not here; using {OUR_CONFIG[sibling.name][0]}, which holds the same settings")
    return _locate(OUR_CONFIG[sibling.name][0], root)


def _named_config(
    arguments: Namespace, task: str | None, default_config: Mapping[str, str], root: Path, notices: list[str]
) -> Path:
    """The file of --config, or what stands for it."""
    # Flags of CCRK's own tell its commands from CCLM's, which have the same names.
    prefers = "ccrk" if arguments.ft_para or arguments.pret_para or arguments.model == "ccrk" else ""
    prefers = "cclm" if (task or "").startswith("pretrain_cclm") else prefers

    def count(name: str) -> int:
        return count_data_files(root / name)

    if arguments.config:
        path = _locate(local_copy(arguments.config), root)
        ours = OUR_CONFIG.get(path.name)
        if path.is_file() or not ours:
            return path
        chosen = choose(ours, count, prefers=prefers)
        notices.append(f"{arguments.config} is not here; using {chosen}, which holds the same settings")
        return _locate(chosen, root)
    theirs = original_default(task or "", arguments.model)
    if theirs is not None:
        notices.append(f"using {theirs}, the task's file in the original's place")
        return theirs
    candidates = our_defaults(task or "", arguments.model, default_config, root)
    if not candidates:
        raise ConfigError(f"{COMMAND_LINE}: task '{task}' has no default configuration; name one with --config")
    return _locate(choose(candidates, count, prefers=prefers), root)


def count_data_files(path: Path) -> int:
    """How many of the data files that a configuration names are here."""
    data = plain(read_tree(path)).get("data", {})
    sections = [data.get(split) or {} for split in ("train", "val", "test")]
    files = [section.get("files") or [] for section in sections if isinstance(section, dict)]
    names = [name for group in files for name in (group.values() if isinstance(group, dict) else group)]
    return sum(isinstance(name, str) and Path(name).exists() for name in names)


def _notice_of_unused_shots(tree: Node, placeholders: Mapping[str, str]) -> list[str]:
    """Some few-shot files have one number of shots only, so that a number on the command line changes nothing."""
    shots = placeholders.get("shots")
    files = (plain(tree).get("data", {}).get("train") or {}).get("files")
    if shots is None or shots in str(files):
        return []
    return [f"--fewshot: the training file is {files}; the number of shots, {shots}, is not used"]


def _refuse_unfilled(tree: Node) -> None:
    """Few-shot files name places for a language and a number of shots, which only the command line knows."""
    if isinstance(tree.value, dict):
        for key, node in tree.value.items():
            _refuse_unfilled(Node(key, node.place))
            _refuse_unfilled(node)
    elif isinstance(tree.value, list):
        for node in tree.value:
            _refuse_unfilled(node)
    elif isinstance(tree.value, str) and any(place in tree.value for place in ("{lang}", "{shots}")):
        raise ConfigError(f"{tree.place}: '{tree.value}' has a place to fill; give --fewshot LANGUAGE,SHOTS as de,100")


def _locate(named: str | Path, root: Path) -> Path:
    """The path as given, or below the repository when it is not below the working folder."""
    path = Path(named)
    return root / path if not path.exists() and (root / path).exists() else path


def _task_name(arguments: Namespace, default_config: Mapping[str, str]) -> str | None:
    task = arguments.task
    if arguments.pret_type:
        task = f"pretrain_{arguments.pret_type}"
    if task is not None and task not in default_config:
        close = nearest(task, default_config)
        hint = f"did you mean '{close}'? " if close else ""
        raise ConfigError(f"{COMMAND_LINE}: unknown task '{task}'; {hint}allowed: {', '.join(default_config)}, list")
    return task


def _read(path: Path, world: int, placeholders: Mapping[str, str], task: str | None, notices: list[str]) -> Node:
    tree = read_file(path)
    for system in ORIGINALS:
        if system.is_original(tree):
            translated, said = system.translate_config(tree, path, world, placeholders, task)
            notices += said
            return translated
    return read_tree(path)


def _use_translated_tests(tree: Node, path: Path) -> Node:
    """The tree with `data.translated_test` in the place of `data.test`."""
    data = tree.value.get("data", Node({}, ""))
    files = data.value.get("translated_test") if isinstance(data.value, dict) else None
    if files is None or not files.value:
        raise ConfigError(f"{path}: --gmt needs 'data.translated_test', the test captions translated to English")
    data = replace(data, value={**data.value, "test": files})
    return replace(tree, value={**tree.value, "data": data})


def _notices_of_unread_flags(arguments: Namespace, task: str | None) -> list[str]:
    notices = []
    if arguments.load_ckpt_from and task != "nlvr_domain":
        notices.append(f"--load_ckpt_from is read by the task nlvr_domain only; {task} starts from --checkpoint")
    return notices


def _lay_flags_over(
    tree: Node, arguments: Namespace, task: str | None, world: int, notices: list[str]
) -> tuple[Node, set[str]]:
    """The tree under all flags, and the actions that they ask for."""
    is_pretraining = (task or "").startswith("pretrain")
    layers = [(COMMAND_LINE, translate_run_flags(**_setting_flags(arguments, task)))]
    if arguments.pret_para and is_pretraining:
        layers.append((f"{COMMAND_LINE} (--pret_para)", ccrk_flags.translate_pretraining(arguments.pret_para, world)))
    if arguments.ft_para and not is_pretraining:
        layers.append((f"{COMMAND_LINE} (--ft_para)", ccrk_flags.translate_finetuning(arguments.ft_para)))
    if arguments.trainer_flags:
        layers.append((COMMAND_LINE, chinese_clip_flags.translate(arguments.trainer_flags, world)))
    for given, flag, fits in (
        (arguments.pret_para, "--pret_para", is_pretraining),
        (arguments.ft_para, "--ft_para", not is_pretraining),
    ):
        if given and not fits:
            notices.append(f"{flag} does not belong to the task {task}; it is not used")
    actions: set[str] = set()
    for place, layer in layers:
        tree = join(tree, layer.tree(place))
        notices += layer.notices
        actions |= layer.actions
    return tree, actions


def _setting_flags(arguments: Namespace, task: str | None) -> dict[str, object]:
    names = ("output_dir", "checkpoint", "bs", "epoch", "lr", "seed")
    return {"task": task, **{name: getattr(arguments, name) for name in names}}
