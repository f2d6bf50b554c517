"""What every verb of `python -m sft_jax.<verb>` shares."""

import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from sft_jax.types import CheckpointError, ConfigError, DataError, NonFiniteError


def define_config(required: bool = True) -> flags.FlagHolder:
    """The `--config` flag; entries are overridden with `--config.a.b=value`."""
    holder = config_flags.DEFINE_config_file("config", None, "What to run.", lock_config=True)
    if required:
        flags.mark_flag_as_required("config")
    return holder


def define_workdir(help_text: str = "Folder of the run.") -> flags.FlagHolder:
    """The required `--workdir` flag."""
    holder = flags.DEFINE_string("workdir", None, help_text)
    flags.mark_flag_as_required("workdir")
    return holder


def path(holder: flags.FlagHolder) -> Path:
    """A flag's value as an absolute path, `~` expanded."""
    return Path(holder.value).expanduser().absolute()


def run(main: Callable[..., None], argument: str = ""):
    """Parses flags and runs `main`; an error that names its remedy ends without a traceback.

    Args:
        main: what to run.
        argument: what the one word stands for that comes beside the flags and is handed to `main`;
            empty where there are flags alone.
    """

    def guarded(argv: list[str]):
        words = argv[1:]
        if len(words) != bool(argument):
            expected = f"one {argument}" if argument else "flags alone, such as --name=value"
            raise app.UsageError(f"given {words}, expected {expected}")
        if not flags.FLAGS["verbosity"].present:
            # Checkpointing narrates at absl's default level; --verbosity=0 brings it back.
            logging.set_verbosity(logging.WARNING)
        try:
            main(*words)
        except (ConfigError, DataError, CheckpointError, NonFiniteError) as error:
            sys.exit(f"{type(error).__name__}: {error}")

    app.run(guarded)
