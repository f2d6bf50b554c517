import os
import subprocess
import sys
from pathlib import Path

import sft_jax
from sft_jax.data.fake import write_fake

SCRIPT = """
import sys
from sft_jax.data.builders import base
from sft_jax.data import sequence_table
from sft_jax.data.sources import prepare
from sft_jax.config.data import DataConfig, MultPickleOptions

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))

# So that what is held at any time is small beside the file of the test.
base.SHARD_BYTES = sequence_table.CHUNK_BYTES = 4 << 20
small, large = (
    DataConfig(source="mult_pickle", options=MultPickleOptions(path=path), data_dir=sys.argv[3])
    for path in sys.argv[1:3]
)
# What everything but the data takes.
prepare(small)
before = peak()
info = prepare(large)
print(info.num_records["train"], peak() - before)
"""


def test_preparing_a_large_pickle_holds_a_small_part_of_it(tmp_path):
    (small,) = write_fake("mosei", tmp_path / "small", 1)
    (large,) = write_fake("mosei", tmp_path / "large", 360)
    size = large.stat().st_size
    assert size > 140e6
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(small), str(large), str(tmp_path / "d")],
        env={**os.environ, "PYTHONPATH": str(Path(sft_jax.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count, growth = map(int, done.stdout.split())
    assert count == 360
    assert growth < size / 3
