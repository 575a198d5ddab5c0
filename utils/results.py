"""What a finished run hands over: JSON files written whole, and a copy in a remote folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from utils.remote import open_system, put_file


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write at once or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def check_remote(remote: str | None) -> None:
    """Raise ConfigError if there is no file system for this address."""
    open_system(remote or "")


def upload(output_dir: Path, remote: str) -> None:
    """A copy of the small results and the best checkpoint, else the last one, in a folder that fsspec can reach."""
    files = [path for path in output_dir.iterdir() if path.is_file()]
    named = (output_dir / "checkpoints" / name for name in ("best", "last"))
    files += next((list(folder.rglob("model.safetensors")) for folder in named if folder.exists()), [])
    for path in files:
        put_file(path, f"{remote.rstrip('/')}/{path.relative_to(output_dir)}")
