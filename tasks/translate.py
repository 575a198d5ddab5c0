"""`--task translate`: adds languages to the captions of line-JSON files with a local translation model.

Files are cut into parts of a fixed number of records, which the processes share. A part is a function of its records
and the settings alone, and is stored when it is complete; a file is put together when all its parts are there. So a
run that is killed and started again, with any number of processes, writes the same bytes.
"""

from __future__ import annotations

import gzip
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dataset.caption_lines import CaptionLine, parse_caption_line
from dataset.files import BadRecord, DataError, Files
from dataset.readers import LineIndex, LineSource, list_files, open_source
from dataset.text import LONE_SURROGATE
from models.translator import Translator, TranslatorConfig
from tasks.tool import Tool, ToolConfig
from utils import distributed
from utils.config import to_tree
from utils.environment import fingerprint
from utils.folder import Folder
from utils.progress import Progress
from utils.remote import is_remote, local_copy
from utils.report import LANGUAGE_NAMES

MANIFEST = ".translate.json"
MAX_EXAMPLES = 5
NOT_IN_THE_WORK = (
    "files",
    "output_dir",
    "remote_output",
    "to",
    "device",
    "checkpoint",
    "seed",
)  # what may change between two starts

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """What some records came to."""

    records: int = 0
    added: Counter[str] = field(default_factory=Counter)
    present: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, where: str, reason: str, detail: str) -> None:
        self.problems[reason] += 1
        self._keep(reason, [f"{where}: {reason}; {detail}"])

    def add(self, other: Tally) -> None:
        self.records += other.records
        for mine, theirs in ((self.added, other.added), (self.present, other.present), (self.problems, other.problems)):
            mine.update(theirs)
        for reason, found in other.examples.items():
            self._keep(reason, found)

    def _keep(self, reason: str, found: list[str]) -> None:
        self.examples[reason] = (self.examples.get(reason, []) + found)[:MAX_EXAMPLES]

    def to_json(self) -> bytes:
        return json.dumps(vars(self), ensure_ascii=False).encode("utf-8", "replace")

    @classmethod
    def from_json(cls, content: bytes) -> Tally:
        stored = json.loads(content)
        counters = {name: Counter(stored[name]) for name in ("added", "present", "problems")}
        return cls(stored["records"], **counters, examples=stored["examples"])


@dataclass
class Shard:
    """One file to translate: where it is read, what it is called in the output, and how it is cut."""

    name: str
    source: LineSource
    part_records: int
    first_part: int  # number of its first part among those of all files

    @property
    def num_parts(self) -> int:
        return max(-(-len(self.source) // self.part_records), 1)

    def rows(self, part: int) -> tuple[int, int]:
        """The first record of a part, and the one after its last."""
        return part * self.part_records, min((part + 1) * self.part_records, len(self.source))

    def num_records(self, part: int) -> int:
        first, last = self.rows(part)
        return last - first

    def part_name(self, part: int) -> str:
        return self._hidden(f"part-{part:06d}")

    @property
    def tally_name(self) -> str:
        return self._hidden("done.json")

    def _hidden(self, ending: str) -> str:
        """A name beside the file that readers of folders pass over."""
        folder, slash, name = self.name.rpartition("/")
        return f"{folder}{slash}.{name}.{ending}"


class Translate(Tool):
    """Writes every file again with captions in further languages; everything else in it stays as it is."""

    @dataclass
    class Config(TranslatorConfig, ToolConfig):
        files: str | list[str] = field(default_factory=list)  # files and folders of JSON lines; may be remote
        to: str = ""  # folder for the files with more languages; may be remote; none: `translated` below --output_dir
        caption_key: str = "caption"
        overwrite: bool = False  # translate again what is there already in a target language
        part_records: int = 512  # records between two stored parts
        device: Literal["auto", "cpu", "cuda"] = "auto"

        def __post_init__(self) -> None:
            TranslatorConfig.__post_init__(self)
            self.model = self.model or self.checkpoint
            self.files = [self.files] if isinstance(self.files, str) else self.files
            self.to = self.to or f"{(self.remote_output or self.output_dir).rstrip('/')}/translated"
            for name, words in (("files", "files=[data/train.jsonl]"), ("model", "model=data/m2m100_418M")):
                if not getattr(self, name):
                    raise ValueError(f"{name} is empty; name at least one, as {words}")
            if self.part_records < 1:
                raise ValueError(f"part_records must be at least 1, found {self.part_records}")

    def __init__(self, config: Config, load: Any) -> None:
        super().__init__(config, load)
        self.folder = Folder(config.to)
        self.shards = open_shards(config)

    def run(self) -> dict[str, Any]:
        """Translate what is not there yet; the counts of all files, also of those done by an earlier start."""
        started = time.monotonic()
        self.config.model = str(local_copy(self.config.model))
        problem = distributed.broadcast_object(self._begin() if distributed.is_main() else None)
        if problem:
            raise DataError(problem)
        translator = Translator(self.config, distributed.device_for_rank(self.config.device), LANGUAGE_NAMES)
        rank, world_size = distributed.rank(), distributed.world_size()
        present = self.folder.names()
        work = [
            (shard, part)
            for shard in self.shards
            for part in range(shard.num_parts)
            if (shard.first_part + part) % world_size == rank
        ]
        left = [(s, part) for s, part in work if s.name not in present and s.part_name(part) not in present]
        per_record = len(self.config.target_languages)
        total, to_do = (sum(shard.num_records(part) for shard, part in items) for items in (work, left))
        done = (total - to_do) * per_record
        with Progress(total * per_record, "captions", is_shown=distributed.is_main(), done=done) as progress:
            for shard, part in left:
                self._translate_part(translator, shard, part)
                progress.advance(shard.num_records(part) * per_record)
                if part == shard.num_parts - 1:
                    self._join_complete(rank, world_size)
        distributed.barrier()
        self._join_complete(rank, world_size)
        distributed.barrier()
        return distributed.broadcast_object(self._result(time.monotonic() - started, to_do))

    def summary(self, result: dict[str, Any]) -> str:
        """A line per language and problem, and where the files are."""
        lines = [f"{result['records']:,} records in {result['files']} files: {self.folder.address}"]
        lines += [
            f"{name}: {each['added']:,} added, {each['kept']:,} kept" for name, each in result["languages"].items()
        ]
        for reason, problem in result["problems"].items():
            lines += [f"{problem['count']:,} x {reason}, as", *(f"  {text}" for text in problem["examples"])]
        return "\n".join(lines) + "\n"

    def _begin(self) -> str:
        """Note what the folder is for; or what speaks against it, if something does."""
        settings = {name: value for name, value in to_tree(self.config).items() if name not in NOT_IN_THE_WORK}
        settings["model"] = fingerprint(self.config.model)
        settings["input"] = {shard.name: len(shard.source) for shard in self.shards}
        present = self.folder.names()
        if MANIFEST in present:
            stored = json.loads(self.folder.read(MANIFEST))
            other = [name for name in settings if stored.get(name) != json.loads(json.dumps(settings[name]))]
            if other:
                found = ", ".join(f"{name} {stored.get(name)}, now {settings[name]}" for name in other)[:600]
                return f"{self.config.to}: was begun with other settings: {found}; give another folder with to="
            return ""
        taken = [shard.name for shard in self.shards if shard.name in present]
        if taken:
            return f"{self.config.to}/{taken[0]}: is there already, and not from this program; give another folder"
        self.folder.write(MANIFEST, json.dumps(settings, ensure_ascii=False, indent=1).encode("utf-8", "replace"))
        return ""

    def _translate_part(self, translator: Translator, shard: Shard, part: int) -> None:
        tally, lines, jobs = Tally(), [], []
        first, last = shard.rows(part)
        for number, raw in enumerate(shard.source.read_lines(first, last), first):
            tally.records += 1
            try:
                line = parse_caption_line(raw.decode("utf-8", "surrogateescape"), self.config.caption_key)
                jobs += [(len(lines), *job) for job in self._jobs(line, shard.source.where(number), tally)]
            except BadRecord as error:
                tally.note(shard.source.where(number), error.reason, str(error.detail))
                line = None
            lines.append((raw, line, [{} for _ in line.sets] if line else []))
        wanted: dict[str, dict[str, None]] = {}  # a set that keeps its order
        for _, _, text, targets in jobs:
            wanted.setdefault(text, {}).update(dict.fromkeys(targets))
        texts = list(wanted)
        found = dict(zip(texts, translator.translate(texts, [list(wanted[text]) for text in texts])))
        for row, number, text, targets in jobs:
            for target in targets:
                translation = LONE_SURROGATE.sub("", found[text][target]).strip()
                if translation:
                    lines[row][2][number][target] = translation
                    tally.added[target] += 1
                else:
                    tally.note(shard.source.where(first + row), "empty translation", f"{target} of {text[:40]!r}")
        with self.folder.create(shard.part_name(part)) as file:
            file.write(tally.to_json() + b"\n")
            for raw, line, added in lines:
                is_same = line is None or not any(added)
                file.write(raw if is_same else line.with_captions(added).encode("utf-8", "surrogateescape"))

    def _jobs(self, line: CaptionLine, where: str, tally: Tally) -> Iterator[tuple[int, str, list[str]]]:
        """Number of the caption set, its text, and the languages to translate it into."""
        for number, each in enumerate(line.sets):
            targets = [t for t in self.config.target_languages if self.config.overwrite or not each.captions.get(t)]
            tally.present.update(t for t in self.config.target_languages if t not in targets)
            text = each.captions.get(self.config.source_language)
            if text is None:
                found = ", ".join(each.captions) or "none"
                tally.note(where, "missing language", f"no {self.config.source_language}; found: {found}")
            elif not isinstance(text, str):
                tally.note(where, "caption is not a string", f"found {type(text).__name__}")
            elif not LONE_SURROGATE.sub("", text).strip():
                tally.note(where, "empty caption", f"found {text[:40]!r}")
            elif targets:
                yield number, LONE_SURROGATE.sub("", text).strip(), targets

    def _join_complete(self, rank: int, world_size: int) -> None:
        """Put together the files of this process whose parts are all there; their parts go."""
        present = self.folder.names()
        for number, shard in enumerate(self.shards):
            if number % world_size != rank:
                continue
            parts = [shard.part_name(part) for part in range(shard.num_parts)]
            if shard.name not in present and all(part in present for part in parts):
                self._join(shard, parts)
                present.add(shard.name)
            if shard.name in present:
                for part in present.intersection(parts):
                    self.folder.remove(part)

    def _join(self, shard: Shard, parts: list[str]) -> None:
        tally = Tally()
        with self.folder.create(shard.name) as file:
            packed = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if shard.name.endswith(".gz") else file
            for part in parts:
                head, _, content = self.folder.read(part).partition(b"\n")
                tally.add(Tally.from_json(head))
                packed.write(content)
            if packed is not file:
                packed.close()
            self.folder.write(shard.tally_name, tally.to_json())  # before the file gets its name: that marks the end

    def _result(self, seconds: float, records_now: int) -> dict[str, Any]:
        tally = Tally()
        for shard in self.shards:
            tally.add(Tally.from_json(self.folder.read(shard.tally_name)))
        captions = {
            name: {"added": tally.added[name], "kept": tally.present[name]} for name in self.config.target_languages
        }
        return {
            "files": len(self.shards),
            "records": tally.records,
            "languages": captions,
            "problems": {
                reason: {"count": count, "examples": tally.examples[reason]} for reason, count in tally.problems.items()
            },
            "seconds": round(seconds, 1),
            "records_per_second": round(records_now * distributed.world_size() / max(seconds, 1e-9), 2),
        }


def open_shards(config: Translate.Config) -> list[Shard]:
    """The files to translate, with the names that they have below the named folders."""
    files, shards, first_part = Files(), [], 0
    for root in config.files:
        inside = (Folder(root).full_address if is_remote(root) else root).rstrip("/") + "/"
        for path in list_files([root], files):
            name = path.removeprefix(inside) if path.startswith(inside) else path.rpartition("/")[2]
            source = open_source(path, files, LineIndex(files, None))
            if not isinstance(source, LineSource):
                raise DataError(f"{path}: is a JSON list; translate reads files with one JSON object per line")
            if any(shard.name == name for shard in shards):
                raise DataError(f"{path}: a second file called {name}; give their folder, or run once for each")
            if _same_place(f"{config.to.rstrip('/')}/{name}", path):
                raise DataError(f"{path}: would be written over by its translation; give another folder with to=")
            shards.append(Shard(name, source, config.part_records, first_part))
            first_part += shards[-1].num_parts
    return shards


def _same_place(one: str, other: str) -> bool:
    if is_remote(one) or is_remote(other):
        return one == other
    return Path(one).resolve() == Path(other).resolve()
