"""What every verb of `python -m sft_jax.<verb>` shares."""

import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from sft_jax.types import CheckpointError, ConfigError, DataError, NonFiniteError


def define_config() -> flags.FlagHolder:
    """The required `--config` flag; entries are overridden with `--config.a.b=value`."""
    holder = config_flags.DEFINE_config_file("config", None, "What to run.", lock_config=True)
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


def run(main: Callable[[], None]):
    """Parses flags and runs `main`; an error that names its remedy ends without a traceback."""

    def guarded(argv: list[str]):
        if len(argv) > 1:
            raise app.UsageError(f"given {argv[1:]}, expected flags alone, such as --name=value")
        if not flags.FLAGS["verbosity"].present:
            # Checkpointing narrates at absl's default level; --verbosity=0 brings it back.
            logging.set_verbosity(logging.WARNING)
        try:
            main()
        except (ConfigError, DataError, CheckpointError, NonFiniteError) as error:
            sys.exit(f"{type(error).__name__}: {error}")

    app.run(guarded)
