"""What a run was made with: versions, machine, command, code state and fingerprints of its data."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "timm",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "ruamel.yaml",
    "opencv-python-headless",
)
FINGERPRINT_BYTES = 1 << 20


def describe_run(command: Sequence[str], data_paths: Iterable[str], root: Path) -> dict[str, Any]:
    """The content of environment.json."""
    import torch

    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "folder": os.getcwd(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_state(root),
        "data": [fingerprint(path) for path in data_paths],
    }


def git_state(root: Path) -> dict[str, Any]:
    """Commit and whether tracked files differ from it; empty outside of a repository."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed_files": [line[3:] for line in (changed or "").splitlines()]}


def fingerprint(path: str) -> dict[str, Any]:
    """Size and a SHA-256 of a file's first and last MiB; for a folder the number of files and their total size."""
    place = Path(path)
    if place.is_dir():
        sizes = sorted(
            (str(file.relative_to(place)), file.stat().st_size) for file in place.rglob("*") if file.is_file()
        )
        digest = hashlib.sha256(repr(sizes).encode()).hexdigest()
        return {"path": path, "num_files": len(sizes), "bytes": sum(size for _, size in sizes), "names_sha256": digest}
    if not place.is_file():
        return {"path": path}
    size = place.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with place.open("rb") as file:
        digest.update(file.read(FINGERPRINT_BYTES))
        file.seek(max(0, size - FINGERPRINT_BYTES))
        digest.update(file.read(FINGERPRINT_BYTES))
    return {"path": path, "bytes": size, "ends_sha256": digest.hexdigest()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip() if done.returncode == 0 else None
