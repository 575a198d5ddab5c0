"""The words of run.py's command line: every flag of the original systems' programs, and ours."""

from __future__ import annotations

import argparse
from typing import NoReturn

from compat import chinese_clip_flags
from compat.tool_flags import translate_words

WRONG_USE = 2
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
    what.add_argument("--config", "--cfg", help="YAML file, ours or an original system's; absent: the task's default")
    what.add_argument("--output_dir", help="folder for everything that the run writes")
    what.add_argument("--evaluate", action="store_true", help="evaluate the test split, no training")
    what.add_argument("--restart", action="store_true", help="start over instead of continuing from output_dir")
    what.add_argument("--dry_run", action="store_true", help="check everything, print the settings, build nothing")
    what.add_argument("--forecast", action="store_true", help="print what the training will cost, from a few steps")
    what.add_argument(
        "settings", nargs="*", metavar="key=value", help="any setting of the configuration, as optim.lr=1e-5"
    )
    values = parser.add_argument_group("settings with a name of their own")
    values.add_argument(
        "--checkpoint", "--ckpt_path", help="weights to start from: ours, or a released file of an original system"
    )
    values.add_argument("--bs", type=int, metavar="N", help="training batch over all processes")
    values.add_argument("--epoch", type=int, metavar="N", help="epochs to train")
    values.add_argument("--lr", type=float, help="learning rate")
    values.add_argument("--seed", type=int, help="seed of everything random")
    values.add_argument("--fewshot", metavar="LANG[,SHOTS]", help="few-shot language and number of shots, as de,100")
    values.add_argument("--gmt", action="store_true", help="test on captions machine-translated to English")
    values.add_argument(
        "--output_hdfs", metavar="URL", help="remote folder (hdfs://, s3://) that gets a copy of the results"
    )
    values.add_argument("--image", action="append", metavar="PATH", help="a picture for a tool; may be repeated")
    values.add_argument("--text", action="append", metavar="TEXT", help="a text for a tool; may be repeated")
    values.add_argument("--to", metavar="LAYOUT", help="with --task export: the layout to write, as ccrk_pretrain")
    start = parser.add_argument_group("processes")
    start.add_argument(
        "--dist", metavar="WHERE", help="1 all GPUs here, all nodes, f4 / l4 first / last four GPUs, gpuN"
    )
    start.add_argument("--nproc", "--nproc_per_node", type=int, metavar="N", help="processes on this machine")
    start.add_argument("--nnodes", type=int, metavar="N", help="machines")
    start.add_argument("--node_rank", "--rank", type=int, metavar="N", help="number of this machine")
    start.add_argument("--master_addr", metavar="HOST", help="the first machine")
    start.add_argument("--port", "--master_port", type=int, help="port on the first machine; -1 takes a free one")
    start.add_argument("--device", metavar="LIST", help="GPUs to use: 0,2,3 or cN for 0 ... N-1")
    start.add_argument("--debug", action="store_true", help="autograd anomaly detection and full tracebacks")
    old = parser.add_argument_group("flags of the original systems")
    old.add_argument("--model", metavar="FOLDER", help="folder of configs/ that holds the task's default: cclm, ccrk")
    old.add_argument("--pret_type", metavar="X", help="choose the task pretrain_X")
    old.add_argument("--pret_para", default="", metavar="FLAGS", help="the original pre-training flags, as one string")
    old.add_argument("--ft_para", default="", metavar="FLAGS", help="the original fine-tuning flags, as one string")
    for flag in ("--dist_url", "--world_size", "--distributed"):
        old.add_argument(flag, metavar="VALUE", help="accepted; the launcher's environment, or --dist, decides")
    old.add_argument("--load_ckpt_from", help="weights for nlvr_domain, skipping its first stage")
    for flag in ("--exp_name", "--local_rank", "--local-rank"):
        old.add_argument(flag, help=argparse.SUPPRESS)  # ZeroVL's launcher: the name of a log file, a worker's number
    old.add_argument("--no-local-log", action="store_true", help=argparse.SUPPRESS)
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """The command's flags; settings may stand anywhere between them."""
    parser = make_parser()
    try:
        words, trainer_flags = chinese_clip_flags.take(translate_words(argv))
        named = chinese_clip_flags.config_of(trainer_flags)
    except ValueError as error:
        parser.error(str(error))
    for flag in WHOLE_STRING_FLAGS:
        while flag in words[:-1]:
            place = words.index(flag)
            words[place : place + 2] = [f"{flag}={words[place + 1]}"]
    arguments = parser.parse_intermixed_args(words)
    arguments.trainer_flags = trainer_flags
    arguments.config = arguments.config or named
    arguments.output_dir = arguments.output_dir or chinese_clip_flags.output_of(trainer_flags)
    if arguments.device == "cuda":  # R2D2's word for any GPU, which is taken without a flag
        arguments.device = None
    arguments.port = None if arguments.port == -1 else arguments.port
    if arguments.task is None and arguments.config is None:
        parser.error("--task is missing; --task list prints what there is")
    return arguments
