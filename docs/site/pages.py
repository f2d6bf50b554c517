"""The pages of the site that are generated from the code: commands, and one page per module."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sft_jax"
# Folders of the package; "" stands for its own modules.
ROOMS = ("", *sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))


def notebooks() -> list[str]:
    """Paths of the notebooks that are there, in the repository as on the site."""
    return [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("notebooks/*.ipynb"))]


def modules() -> dict[str, Path]:
    """`{name without the package: file}` of all public modules."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not any(part.startswith("_") for part in name.split(".")):
            found[name] = path
    return found


def room_of(name: str) -> str:
    """The room that a module stands in, or is."""
    first = name.split(".")[0]
    return first if first in ROOMS else ""


def verbs() -> dict[str, Path]:
    """`{verb: file}` of what `python -m sft_jax.<verb>` runs."""
    return {
        name: path
        for name, path in modules().items()
        if "." not in name and 'if __name__ == "__main__":' in path.read_text()
    }


def flags_of(path: Path) -> list[str]:
    """Flags that a verb takes, its own and those of `sft_jax.cli` that it defines, in order."""
    shared = {
        node.name: _defined(node)
        for node in ast.parse((PACKAGE / "cli.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    found = []
    for call in _calls(ast.parse(path.read_text())):
        name = ast.unparse(call.func)
        if name.startswith("flags.DEFINE_"):
            found.append(call.args[0].value)
        elif name.startswith("cli.define_"):
            helper = name.removeprefix("cli.")
            found += shared[helper] or [call.args[0].value]
            if helper in ("define_config", "define_study"):
                found += shared["_define_print_config"]
            if any(keyword.arg == "several_processes" for keyword in call.keywords):
                found += shared["_define_processes"]
    return found


def _defined(node: ast.AST) -> list[str]:
    return [
        call.args[0].value
        for call in _calls(node)
        if "define_" in ast.unparse(call.func).lower()
        and call.args
        and isinstance(call.args[0], ast.Constant)
    ]


def _calls(tree: ast.AST) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return sorted(calls, key=lambda call: (call.lineno, call.col_offset))


def _doc(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def commands_page() -> str:
    """The documentation of each command, and the names of its flags."""
    parts = [
        "# Commands",
        "`python -m sft_jax.<command> --help` explains the flags. Commands with `--config` list "
        "all settings of a configuration with `--print_config`.",
    ]
    for name, path in verbs().items():
        flags = ", ".join(f"`--{flag}`" for flag in flags_of(path)) or "none"
        parts += [f"## {name}", _doc(path), f"Flags: {flags}."]
    return "\n\n".join(parts) + "\n"


def module_page(name: str) -> str:
    """A page that mkdocstrings fills with the docstrings of a module."""
    dotted = f"sft_jax.{name}".rstrip(".")
    return f"# {name or 'sft_jax'}\n\n::: {dotted}\n"


def api_pages() -> dict[str, dict[str, str]]:
    """`{room: {path in the site: text}}` of the pages of all modules."""
    pages: dict[str, dict[str, str]] = {room: {} for room in ROOMS}
    for name in modules():
        room = room_of(name)
        is_room = name in ROOMS
        path = f"api/{re.sub('[.]', '/', name)}{'/index' if is_room else ''}.md".replace("//", "/")
        pages[room][path] = _room_page(name) if is_room else module_page(name)
    return pages


def _room_page(room: str) -> str:
    lines = [f"# {room or 'sft_jax'}", _doc(modules()[room]), "| module | |\n|---|---|"]
    for name, path in modules().items():
        if room_of(name) == room and name != room:
            shown = name.removeprefix(f"{room}.")
            link = f"{re.sub('[.]', '/', shown)}.md"
            lines[-1] += f"\n| [{shown}]({link}) | {_doc(path).splitlines()[0]} |"
    return "\n\n".join(lines) + "\n"
