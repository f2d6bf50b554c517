"""Command-line helpers shared by the commands `python -m sft_jax.<verb>`."""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from sft_jax import console
from sft_jax.config.data import relocate
from sft_jax.config.io import check_setting, find, from_dict
from sft_jax.config.run import Config
from sft_jax.config.settings import settings_text
from sft_jax.config.study import load_study
from sft_jax.training import processes
from sft_jax.types import CheckpointError, ConfigError, DataError, NonFiniteError

# `--help` of a command lists the flags defined here as its own.
flags.disclaim_key_flags()

_OVERRIDE = re.compile(r"--?(?:no)?config\.(?P<path>[^=]*)")

_CONFIGURATIONS = (Mapping, ml_collections.ConfigDict)


class _Found(flags.ArgumentParser):
    """Finds a configuration (`config_io.find`) before its file is read."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser
        self.parsed: Any = None  # before anything is overridden

    def parse(self, argument: str):
        name, *rest = argument.split(":", 1)
        self.parsed = None
        self.parsed = self._parser.parse(":".join([str(find(name)), *rest]))
        return self.parsed

    def flag_type(self) -> str:
        return self._parser.flag_type()


CONFIG_HELP = """File of the configuration, such as configs/synthetic.py.
Change a setting by its path, with one flag each:
    --config.train.batch_size=64 --config.train.duration="20 epochs"
--print_config lists all settings with their values."""


def define_config(required: bool = True) -> flags.FlagHolder:
    """The flag `--config`, whose entries are overridden with `--config.a.b=value`.

    `--print_config` is defined with it.
    """
    holder = config_flags.DEFINE_config_file("config", None, CONFIG_HELP, lock_config=True)
    _define_print_config()
    flag = flags.FLAGS["config"]
    flag.parser = _Found(flag.parser)
    if required:
        flags.mark_flag_as_required("config")
    return holder


def define_study() -> flags.FlagHolder:
    """The required flag `--config` of a command that takes a study; and `--print_config`."""
    _define_print_config()
    return flags.DEFINE_string(
        "config", None, "File of the study, such as configs/studies/fusion.py.", required=True
    )


def _define_print_config():
    flags.DEFINE_boolean(
        "print_config",
        False,
        "Print every setting with its value, its default and what it means, and exit.",
    )


def _print_config():
    given = flags.FLAGS["config"].value
    if given is None:
        config = Config()
    else:
        config = load_study(given).base if isinstance(given, str) else from_dict(given)
    print(settings_text(config))


def to_path(text: str | Path) -> Path | None:
    """Makes a path of a command line absolute and expands `~`; returns None if it is empty.

    Raises:
        ValueError: The home folder that `~` stands for is unknown.
    """
    try:
        return Path(text).expanduser().absolute() if str(text) else None
    except RuntimeError as error:
        raise ValueError(f"given {str(text)!r}, expected a known home folder for ~") from error


class PathParser(flags.ArgumentParser):
    """Parses a path with `to_path`."""

    def parse(self, argument: str | Path) -> Path | None:
        """Returns the path; raises `ValueError` like `to_path`."""
        return to_path(argument)

    def flag_type(self) -> str:
        """Returns the name of the type."""
        return "path"


class PathListParser(flags.ListParser):
    """Parses paths separated by commas with `to_path`."""

    def parse(self, argument: Any) -> Any:
        """Returns the paths; raises `ValueError` like `to_path`."""
        return [path for entry in super().parse(argument) if (path := to_path(entry))]


class OutputParser(PathParser):
    """Parses the path of a file or folder to write.

    Attributes:
        suffixes: Suffixes that a file may have; any if empty.
        folder: Whether the path may be a folder; it is one unless it has one of `suffixes`.
    """

    def __init__(self, suffixes: Sequence[str], folder: bool):
        """Stores the attributes."""
        self.suffixes, self.folder = tuple(suffixes), folder

    def prepare(self, name: str, path: Path):
        """Creates the folder that is written to.

        Args:
            name: Name of the flag, for the error.
            path: Value of the flag.

        Raises:
            ConfigError: `path` has another suffix, or cannot be written to.
        """
        is_file = path.suffix in self.suffixes if self.suffixes else not self.folder
        if not is_file and not self.folder:
            raise ConfigError(
                f"--{name}: given {path}, expected a file name that ends in "
                f"{', '.join(self.suffixes)}; change it"
            )
        folder = path.parent if is_file else path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            reason = "" if os.access(folder, os.W_OK | os.X_OK) else "it may not be written to"
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            raise ConfigError(
                f"--{name}: given {path}, but the folder {folder} cannot be used ({reason}), "
                "expected one that can be made and written to; choose another"
            )
        if is_file and (path.is_dir() or (path.exists() and not os.access(path, os.W_OK))):
            found = "a folder" if path.is_dir() else "a file that may not be written to"
            raise ConfigError(
                f"--{name}: given {path}, which is {found}, expected the name of a file to write; "
                "choose another"
            )


def define_path(
    name: str, help_text: str, default: str | None = None, required: bool = False
) -> flags.FlagHolder:
    """A flag that holds a path to read, as an absolute `Path`; None if not given."""
    return flags.DEFINE(PathParser(), name, default, help_text, required=required)


def define_paths(name: str, help_text: str, required: bool = False) -> flags.FlagHolder:
    """A flag that holds paths to read, separated by commas, as a list of absolute `Path`s."""
    default: list[str] | None = None if required else []
    serializer = flags.CsvListSerializer(",")
    return flags.DEFINE(
        PathListParser(), name, default, help_text, serializer=serializer, required=required
    )


def define_output(
    name: str,
    help_text: str,
    *,
    default: str | None = None,
    required: bool = False,
    suffixes: Sequence[str] = (),
    folder: bool = False,
) -> flags.FlagHolder:
    """A flag that holds a path to write, as an absolute `Path`; None if not given.

    If it is given, `run` creates its folder before the command begins, or reports that it cannot.

    Args:
        name: Name of the flag.
        help_text: Description of the flag.
        default: Default path, whose folder is created by `prepare_output` only.
        required: Whether the flag must be given.
        suffixes: See `OutputParser`.
        folder: See `OutputParser`.
    """
    parser = OutputParser(suffixes, folder)
    return flags.DEFINE(parser, name, default, help_text, required=required)


def prepare_output(name: str):
    """Creates the folder of an output flag that has a value; see `OutputParser.prepare`."""
    flag = flags.FLAGS[name]
    if isinstance(flag.parser, OutputParser) and flag.value is not None:
        flag.parser.prepare(name, flag.value)


def _prepare_outputs():
    for name in flags.FLAGS:
        if not flags.FLAGS[name].using_default_value:
            prepare_output(name)


def write_json(output: flags.FlagHolder, content: Any):
    """Writes numbers to the file of an output flag if it is given."""
    if output.value:
        output.value.write_text(json.dumps(content, indent=1) + "\n")


def define_workdir(help_text: str = "Folder of the run.") -> flags.FlagHolder:
    """The required `--workdir` flag."""
    return define_path("workdir", help_text, required=True)


@dataclasses.dataclass(frozen=True)
class DataPlace:
    """The flags that say where data are now.

    Attributes:
        data_dir: Folder of prepared data.
        data_path: Paths of the source files.
    """

    data_dir: flags.FlagHolder
    data_path: flags.FlagHolder

    def places(self) -> dict[str, Any]:
        """The values of both flags by name, as `relocate` takes them."""
        return {"data_dir": self.data_dir.value, "data_path": self.data_path.value}

    def relocated(self, config: Config) -> Config:
        """Changes the paths of a configuration to those that were given."""
        return dataclasses.replace(config, data=relocate(config.data, **self.places()))


def define_data() -> DataPlace:
    """The flags of `DataPlace`, for a command that reads data."""
    return DataPlace(
        define_path("data_dir", "Folder of prepared data, if not as configured."),
        define_paths(
            "data_path",
            "Path of the source file, if not as configured; for a source of two files, both, "
            "separated by a comma.",
        ),
    )


@dataclasses.dataclass(frozen=True)
class Devices:
    """The flags that say on what a verb computes, and together with whom.

    Attributes:
        cpu_devices: so many CPU devices instead of the devices that are there.
        compilation_cache: folder of compiled programs.
        processes: flags of `processes.requested` and `processes.join`, by name; empty for a verb
            that runs alone.
    """

    cpu_devices: flags.FlagHolder
    compilation_cache: flags.FlagHolder
    processes: dict[str, flags.FlagHolder]

    def open(self):
        """Settles it all, before the first use of a device.

        Raises:
            ConfigError: flags that contradict each other, or processes that do not meet.
        """
        if self.cpu_devices.value is not None:
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", self.cpu_devices.value)
        if self.compilation_cache.value is not None:
            jax.config.update("jax_compilation_cache_dir", str(self.compilation_cache.value))
        if self.processes:
            given = {name: holder.value for name, holder in self.processes.items()}
            timeouts = {name: given.pop(f"{name}_timeout") for name in ("heartbeat", "startup")}
            joined = processes.requested(**given, environ=os.environ)
            processes.join(joined, timeouts["heartbeat"], timeouts["startup"])


def define_devices(several_processes: bool = False) -> Devices:
    """The flags of `Devices`, to be handed to `run`."""
    cpu_devices = flags.DEFINE_integer(
        "cpu_devices", None, "Compute on the CPU, as so many devices.", lower_bound=1
    )
    compilation_cache = define_output(
        "compilation_cache",
        "Folder that keeps compiled programs for the next start; JAX_COMPILATION_CACHE_DIR if not "
        "given.",
        folder=True,
    )
    own = _define_processes() if several_processes else {}
    return Devices(cpu_devices, compilation_cache, own)


def _define_processes() -> dict[str, flags.FlagHolder]:
    names = processes.VARIABLES
    return {
        "coordinator": flags.DEFINE_string(
            "coordinator", None, f"host:port of process 0; or {names['coordinator']}."
        ),
        "num_processes": flags.DEFINE_integer(
            "num_processes", None, f"Processes in all; or {names['num_processes']}."
        ),
        "process_index": flags.DEFINE_integer(
            "process_index", None, f"This one's, from 0; or {names['process_index']}."
        ),
        "distributed": flags.DEFINE_boolean(
            "distributed",
            None,
            "Join the processes that JAX detects (TPU slice, Slurm, Open MPI); if not given, those "
            "that Slurm or Open MPI has started.",
        ),
        "heartbeat_timeout": flags.DEFINE_integer(
            "heartbeat_timeout", 100, "Seconds of silence that make a process dead.", lower_bound=1
        ),
        "startup_timeout": flags.DEFINE_integer(
            "startup_timeout", 300, "Seconds to wait for all processes.", lower_bound=1
        ),
    }


def _parse_flags(argv: list[str]) -> list[str]:
    """As absl does; a setting that there is not, a `KeyError` there, ends without a traceback."""
    try:
        if "--print_config" in flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False):
            for name in flags.FLAGS:
                flags.FLAGS[name].validators.clear()  # flags that only a run requires
        return app.parse_flags_with_usage(argv)
    except (AttributeError, LookupError, TypeError, ValueError):
        found = flags.FLAGS["config"].parser if "config" in flags.FLAGS else None
        if not isinstance(found, _Found) or not isinstance(found.parsed, _CONFIGURATIONS):
            raise  # it is the configuration's own
        for argument in flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False):
            if given := _OVERRIDE.match(argument):
                try:
                    check_setting(found.parsed, given["path"])
                except ConfigError as error:
                    sys.exit(f"ConfigError: --config.{error}")
        raise


def run(main: Callable[..., None], argument: str = "", devices: Devices | None = None):
    """Parses flags and runs `main`; an error that names its remedy ends without a traceback.

    So does Ctrl-C. Where nobody reads the output any more, `main` goes on without it.

    Args:
        main: what to run.
        argument: what the one word stands for that comes beside the flags and is handed to `main`;
            empty where there are flags alone.
        devices: flags that are settled before `main` runs.
    """

    def guarded(argv: list[str]):
        words = argv[1:]
        if len(words) != bool(argument):
            expected = f"one {argument}" if argument else "flags alone, such as --name=value"
            raise app.UsageError(f"given {words}, expected {expected}")
        if not flags.FLAGS["verbosity"].present:
            # Checkpointing narrates at absl's default level; --verbosity=0 brings it back.
            logging.set_verbosity(logging.WARNING)
        with processes.shutdown_on_exit():
            try:
                if "print_config" in flags.FLAGS and flags.FLAGS["print_config"].value:
                    return _print_config()
                _prepare_outputs()
                if devices is not None:
                    devices.open()
                main(*words)
            except (ConfigError, DataError, CheckpointError, NonFiniteError) as error:
                sys.exit(f"{type(error).__name__}: {error}")

    with console.outliving_readers(), console.interruptible():
        app.run(guarded, flags_parser=_parse_flags)
