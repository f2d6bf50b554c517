"""Imports between the rooms of the package, and the table of those that are allowed.

A room is a folder of the package, or one of the modules that everything builds on. The commands
(`python -m sft_jax.<verb>`) are one room, of which nothing is imported.

`python tests/import_graph.py docs/figures/rooms.svg` draws the rooms of today.
"""

import ast
import sys
from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure

PACKAGE = Path(__file__).parents[1] / "sft_jax"
FORBIDDEN = {"tensorflow", "torch"}
# Rooms that need an extra, and import it where it is used and not before.
OPTIONAL = {"interop": {"torch"}}
VERBS = "verbs"
BASE = ("types", "version", "lazy")
# Room -> rooms that it may import beside itself and `BASE`.
ALLOWED = {
    "types": set(),
    "version": set(),
    "lazy": set(),
    "config": set(),
    "files": set(),
    "attention": {"config"},
    "models": {"config", "attention"},
    "metrics": set(),
    "tasks": {"config", "metrics"},
    "data": {"config", "files"},
    "runs": {"config", "files"},
}
ALLOWED["training"] = {*ALLOWED}
for room in ("studies", "efficiency", "interop", "reports"):
    ALLOWED[room] = {*ALLOWED["training"], "training"}
# The functions of the public interface.
ALLOWED["api"] = {*ALLOWED}
# What the commands share.
ALLOWED["console"] = set()
ALLOWED["cli"] = {*ALLOWED}
ALLOWED[VERBS] = {*ALLOWED}
# The public face, which imports nothing before it is asked for.
ALLOWED[""] = {*ALLOWED}


def modules_of(package):
    """`{dotted name without the package: its file}`; the package itself is `""`."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name, path, modules, root):
    """What a module imports: modules of the package (without its name), and foreign packages."""
    own, foreign = set(), set()
    parts = name.split(".") if name else []
    container = parts if path.name == "__init__.py" else parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = [root, *container][: len(container) + 2 - node.level]
                base = ".".join([*above, base] if base else above)
            # `from a import b` is a module a.b where there is one, and a name of a otherwise.
            inside = base.removeprefix(root).lstrip(".")
            targets = [
                f"{base}.{alias.name}"
                if base.split(".")[0] == root and f"{inside}.{alias.name}".lstrip(".") in modules
                else base
                for alias in node.names
            ]
        else:
            continue
        for target in targets:
            if target == root or target.startswith(f"{root}."):
                own.add(target.removeprefix(root).lstrip("."))
            else:
                foreign.add(target.split(".")[0])
    return own, foreign


def room_of(name):
    """The room a module stands in: its folder, a base module itself, or the commands."""
    first = name.split(".")[0]
    return first if first in ALLOWED or "." in name else VERBS


def private_names_of(name, path, root):
    """Imports of names with an underscore from another room, as text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{root}."):
            other = node.module.removeprefix(f"{root}.")
            for alias in node.names:
                private = alias.name.startswith("_") and not alias.name.startswith("__")
                if private and room_of(other) != room_of(name):
                    yield f"{name}: imports the private name {other}.{alias.name}"


def violations(package, allowed=ALLOWED):
    """Every breach of the table, of the ban on other frameworks, and every cycle, as text."""
    modules, root = modules_of(package), package.name
    found, graph = [], {}
    for name, path in modules.items():
        own, foreign = imports_of(name, path, modules, root)
        graph[name] = own - {name}
        room = room_of(name)
        found += private_names_of(name, path, root)
        found += [
            f"{name}: imports {other}"
            for other in sorted(foreign & FORBIDDEN - OPTIONAL.get(room, set()))
        ]
        if room not in allowed:
            found.append(f"{name}: room {room!r} is not in the table")
            continue
        permitted = allowed[room] | ({*BASE, room} if room not in BASE else set())
        for other in sorted(own):
            if room_of(other) not in permitted - {VERBS}:
                found.append(f"{name}: imports {other}")
    rooms = {}
    for name, imported in graph.items():
        rooms.setdefault(room_of(name), set()).update(room_of(other) for other in imported)
    rooms = {room: others - {room} for room, others in rooms.items()}
    found += [f"cycle of rooms: {' -> '.join(cycle)}" for cycle in cycles(rooms)]
    return found + [f"cycle: {' -> '.join(cycle)}" for cycle in cycles(graph)]


def cycles(graph):
    """Every cycle once, by depth-first search."""
    done, found = set(), []

    def visit(name, trail):
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
        elif name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*trail, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def rooms_of(package):
    """`{room: rooms it imports}`, without the modules that everything builds on."""
    modules, rooms = modules_of(package), {}
    for name, path in modules.items():
        imported, _ = imports_of(name, path, modules, package.name)
        rooms.setdefault(room_of(name), set()).update(map(room_of, imported))
    shared = {*BASE, ""}
    return {room: others - shared - {room} for room, others in rooms.items() if room not in shared}


def direct(rooms):
    """The imports that do not follow from others: the transitive reduction of the graph."""

    def reach(room):
        return set().union(*({other} | reach(other) for other in rooms[room]))

    return {
        room: {
            other
            for other in others
            if not any(other in reach(third) for third in others - {other})
        }
        for room, others in rooms.items()
    }


def draw(rooms):
    """A figure of the rooms, each above those that it imports."""
    level = {}

    def level_of(room):
        if room not in level:
            level[room] = 1 + max(map(level_of, rooms[room]), default=-1)
        return level[room]

    place = {}
    for height in range(max(map(level_of, rooms)) + 1):
        row = sorted(room for room in rooms if level[room] == height)
        for i, room in enumerate(row):
            place[room] = ((i + 1) / (len(row) + 1), height)
    figure = Figure(figsize=(8, 6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(-0.5, max(level.values()) + 0.5))
    box = {"boxstyle": "round,pad=0.4", "facecolor": "#eef2f7", "edgecolor": "#5b6b7f"}
    boxes = {
        room: axes.text(x, y, room, ha="center", va="center", bbox=box, fontsize=11, zorder=3)
        for room, (x, y) in place.items()
    }
    for room, others in direct(rooms).items():
        for other in sorted(others):
            ends = {"patchA": boxes[room].get_bbox_patch(), "patchB": boxes[other].get_bbox_patch()}
            arrow = {"arrowstyle": "->", "color": "#8899aa", "shrinkA": 2, "shrinkB": 2, **ends}
            axes.annotate("", xy=place[other], xytext=place[room], arrowprops=arrow, zorder=1)
    return figure


def describe(rooms):
    """The graph as text, which the drawing carries as its description."""
    return "; ".join(
        f"{room}: {' '.join(sorted(others))}" for room, others in sorted(rooms.items())
    )


if __name__ == "__main__":
    graph = rooms_of(PACKAGE)
    rcParams["svg.hashsalt"] = "rooms"
    draw(graph).savefig(
        sys.argv[1], format="svg", metadata={"Date": None, "Description": describe(graph)}
    )
