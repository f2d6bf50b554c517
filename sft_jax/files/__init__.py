"""Readers and writers of files that may be damaged or hostile.

The sizes that JSON files, NumPy archives, pickles and PyTorch checkpoints claim are checked before
memory is allocated, and nothing in a file is executed. Damage is reported as `DataError` or
`CheckpointError`, with what was found, what was expected and what to do. Checksums detect damage
before a folder is read, and locks keep two processes from writing to one folder.
"""

from sft_jax.files.archives import Member, members_sha256, parse_numbers, read_members
from sft_jax.files.checksums import (
    add_checksum,
    file_sha256,
    find_damage,
    has_checksums,
    is_damage,
    move_aside,
    write_checksums,
)
from sft_jax.files.errors import (
    check_fits,
    convert_disk_errors,
    convert_errors,
    existing_file,
    is_disk_error,
    layout_error,
    path_remedy,
)
from sft_jax.files.json_files import read_json, read_lines, read_text, write_json
from sft_jax.files.locks import locked
from sft_jax.files.mapped_pickles import map_pickle
from sft_jax.files.npz import Layout, load_npz, map_npy, read_npz, write_npz
from sft_jax.files.pickles import load_npy_object
from sft_jax.files.rows import Rows, as_rows, describe_value, to_text
from sft_jax.files.torch_files import read_torch
