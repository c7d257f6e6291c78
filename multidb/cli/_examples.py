"""The examples that commands run. They live in the repository's `examples/`; the wheel carries copies."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parent.parent
_FOLDERS = (_PACKAGE / "examples", _PACKAGE.parent / "examples")


def load_example(name: str) -> ModuleType:
    """Return the example *name* as a module."""
    path = next(path for folder in _FOLDERS if (path := folder / f"{name}.py").is_file())
    module_name = f"multidb_example_{name}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(name=name, path=str(path))
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # Before it runs: dataclasses look their module up.
        spec.loader.exec_module(module)
    return sys.modules[module_name]
