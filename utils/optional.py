"""Packages that only some programs need."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(package: str, requirements: str) -> ModuleType:
    """The package; where it is missing, an ImportError that says which file installs it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the package {error.name} is not installed; install it with: pip install -r {requirements}"
        ) from error
