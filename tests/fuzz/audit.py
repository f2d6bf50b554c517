"""Records what reading data must never do: run code, start processes, connect, write elsewhere."""

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_ALWAYS = (
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "os.startfile",
    "pty.spawn",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.bind",
    "urllib.Request",
    "code.__new__",
    "builtins.breakpoint",
)
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.chown",
    "os.truncate",
    "shutil.rmtree",
)
# Importing a module runs it, so no file may say which.
BAIT = "tests.fuzz.bait"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Arrays and plain containers need these.
_ADMITTED = {
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"{core}.{module}", name)
        for core in ("numpy.core", "numpy._core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
}
_LIBRARIES = tuple(
    {os.path.realpath(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib", "purelib")}
    | {os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix), "/usr/lib", "/lib"}
    | {str(Path(__file__).resolve().parents[2] / "sft_jax")}
)
# Their classes are made by `exec` of text of their own, also when a module is imported late.
_MAKERS = ("dataclasses.py", "collections/__init__.py", "attr/_make.py", "enum.py", "decorator.py")


class _Watch:
    armed = False
    busy = False
    installed = False
    scratch = ""
    work = ""
    events: list[str] = []  # noqa: RUF012  # emptied by `watch`


def install(scratch: Path, work: Path) -> None:
    """Starts recording in this process, for good.

    Args:
        scratch: the only folder that may be written to.
        work: what lies here, but not in `scratch`, may not be read by that path either.
    """
    _Watch.scratch, _Watch.work = os.path.realpath(scratch), os.path.realpath(work)
    if not _Watch.installed:
        _Watch.installed = True
        sys.addaudithook(_hook)


@contextlib.contextmanager
def watch() -> Iterator[list[str]]:
    """What is recorded between entering and leaving."""
    events: list[str] = []
    _Watch.events, _Watch.armed = events, True
    try:
        yield events
    finally:
        _Watch.armed = False


def _hook(event: str, args: tuple) -> None:
    if not _Watch.armed or _Watch.busy:
        return
    _Watch.busy = True
    try:
        if _is_wrong(event, args):
            _Watch.events.append(f"{event} {args!r}"[:300])
    finally:
        _Watch.busy = False


def _is_wrong(event: str, args: tuple) -> bool:
    if event in _ALWAYS:
        return True
    if event == "open":
        return _opens_wrongly(*args)
    if event in _CHANGES:
        paths = [arg for arg in args if isinstance(arg, str | bytes | os.PathLike)]
        # What a link points to is not touched by making it.
        return any(not _inside(path, _Watch.scratch) for path in paths[-1:])
    if event == "import":
        return str(args[0]).startswith((BAIT, "antigravity"))
    if event == "exec":
        return _runs_text(args[0])
    if event == "pickle.find_class":
        return (args[0], args[1]) not in _ADMITTED
    if event == "ctypes.dlopen":
        name = args[0]
        return bool(name) and "/" in str(name) and not _of_library(str(name))
    return False


def _opens_wrongly(path: object, mode: object, flags: object) -> bool:
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    if os.fspath(path) in ("/dev/null", b"/dev/null"):
        return False
    writes = isinstance(flags, int) and flags & _WRITING
    writes = writes or (isinstance(mode, str) and any(letter in mode for letter in "wax+"))
    if writes:
        return not _inside(path, _Watch.scratch)
    named = os.path.normpath(os.path.abspath(os.fsdecode(path)))
    return named.startswith(_Watch.work + "/") and not named.startswith(_Watch.scratch)


def _inside(path: object, folder: str) -> bool:
    found = os.path.realpath(os.fsdecode(path))  # type: ignore[call-overload]
    return found == folder or found.startswith(folder + "/")


def _runs_text(code: object) -> bool:
    name = getattr(code, "co_filename", "")
    if _of_library(name) or name.startswith("<frozen"):
        return False
    # 1 is `_is_wrong`, 2 the hook, 3 the caller of `exec`.
    caller = sys._getframe(3).f_code.co_filename
    return not caller.endswith(_MAKERS)


def _of_library(name: str) -> bool:
    return os.path.realpath(name).startswith(_LIBRARIES)
