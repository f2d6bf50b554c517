"""Prepares a source and says what it holds: `python -m sft_jax.prepare --config=configs/x.py`.

`--fake=mosei` writes a synthetic file in the layout of MOSEI first, and likewise the other sets.
"""

from absl import flags

from sft_jax import cli
from sft_jax.config.io import from_dict
from sft_jax.data.fake import FAKES, describe_files, next_command, write_fake
from sft_jax.data.records import describe
from sft_jax.data.sources import prepare
from sft_jax.types import ConfigError

_CONFIG = cli.define_config(required=False)
_DATA = cli.define_data()
_FAKE = flags.DEFINE_enum("fake", None, list(FAKES), "Set to write synthetic files of.")
_DIR = cli.define_output(
    "fake_dir", "Where synthetic files are written.", default="data", folder=True
)
_SIZE = flags.DEFINE_integer("fake_size", 0, "Training samples, 0 for a few.", lower_bound=0)
_SEED = flags.DEFINE_integer("fake_seed", 0, "Synthetic files are drawn from it.", lower_bound=0)


def main():
    """Writes synthetic files where asked to; prepares the source of `--config` if there is one."""
    if _FAKE.value:
        cli.prepare_output("fake_dir")
        paths = write_fake(_FAKE.value, _DIR.value, _SIZE.value, _SEED.value)
        print(describe_files(paths))
        if not _CONFIG.value:
            print(next_command(_FAKE.value, paths))
    if _CONFIG.value:
        print(describe(prepare(_DATA.relocated(from_dict(_CONFIG.value)).data)))
    elif not _FAKE.value:
        raise ConfigError(
            "--config: given neither it nor --fake, expected one of them; name a file of configs/"
        )


if __name__ == "__main__":
    cli.run(main)
