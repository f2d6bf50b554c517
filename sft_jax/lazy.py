"""Exports of a package that are imported when they are first used (PEP 562)."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_exports(
    package: str, names: Mapping[str, str], submodules: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: `__name__` of the package.
        names: Exported names, separated by spaces, by the module inside the package that has them.
        submodules: Modules inside the package that are exported whole, separated by spaces.
    """
    owners = {name: module for module, own in names.items() for name in own.split()}
    paths = {path.rpartition(".")[2]: path for path in submodules.split()}
    exported = sorted([*owners, *paths])

    def get(name: str) -> Any:
        if name in owners:
            return getattr(importlib.import_module(f"{package}.{owners[name]}"), name)
        if name in paths:
            return importlib.import_module(f"{package}.{paths[name]}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: exported, exported
