"""What the files of an attacker hold: tokens of formats, and pickles that would run code."""

import io
import os
import pickle
import random
import socket
import subprocess

import numpy as np

from tests.fuzz.zips import Packed, bomb, write_zip

# Of zip, npy, pickle, JSON, CSV, HDF5, protocol buffers, YAML and flatbuffers.
TOKENS = (
    *(b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"../", b"/abs"),
    *(
        b"\x93NUMPY",
        b"'descr'",
        b"'|O'",
        b"'<f8'",
        b"'<U9'",
        b"'|V0'",
        b"True",
        b"False",
        b"'shape'",
    ),
    *(b"(-1,)", b"(99999999999,)", b"()", b"(3, 4)", b"'>M8[ns]'", b"'fortran_order'"),
    *(b"\x80\x02", b"\x80\x05", b"c", b"cos\nsystem\n", b"R", b"b", b"(", b")", b"}", b"]", b"u"),
    *(b"\x93", b"\x81", b"\x92", b"i", b"o", b"q\x00", b"h\x00", b"j\xff\xff\xff\x7f", b"t", b"."),
    *(b"\x94", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f", b"\x8e", b"T", b"X"),
    *(b"cnumpy\nndarray\n", b"cbuiltins\neval\n", b"c__builtin__\nbytearray\n", b"Pid\n", b"Q"),
    *(b"null", b"NaN", b"-Infinity", b"1e999", b"{}", b"[]", b'""', b"-1", b"0", b"true", b"[["),
    *(b"99999999999999999999", b"\\u0000", b"\\ud800", b":", b",", b";", b"\n", b"\r", b"\x00"),
    *(b"@data", b"@classLabel", b"nan", b"inf", b"1e400", b"1_000", b"\xef\xbb\xbf", b"\xff\xfe"),
    *(b"\x89HDF\r\n\x1a\n", b"TREE", b"HEAP", b"SNOD", b"OHDR", b"FRHP", b"GCOL", b"\xff" * 8),
    *(
        b"!!python/object/apply:os.system",
        b"${x}",
        b"../../outside.txt",
        b"/etc/passwd",
        b"tests.fuzz.bait.Bait",
    ),
)


BOMB_BYTES = 700 << 20
_ZEROS = b"\x93NUMPY\x01\x00\x76\x00" + b"%-117s\n" % (
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 1, 1), }" % (BOMB_BYTES - 128)
)


class _Calls:
    def __init__(self, function, *args):
        self.given = (function, args)

    def __reduce__(self):
        return self.given


_CALLS = (
    (os.system, "true"),
    (eval, "1 + 1"),
    (exec, "x = 1"),
    (subprocess.Popen, ("true",)),
    (socket.create_connection, ("127.0.0.1", 9)),
    (open, "../outside.txt", "w"),
    (np.load, "../outside.txt"),
    (np.zeros, 1 << 40),
    (bytes, 1 << 40),
    (bytearray, 1 << 40),
    (getattr, os, "system"),
)


def hostile_pickle(rng: random.Random) -> bytes:
    """A pickle that calls something, alone or inside of what is wanted."""
    function, *args = rng.choice(_CALLS)
    bad = object.__new__(_Calls)
    bad.given = (function, tuple(arg for arg in args if arg is not os))
    content = rng.choice((bad, [bad], {"train": bad}, {bad.given[0].__name__: bad}))
    return pickle.dumps(content, protocol=rng.randrange(6))


def hostile_npy(rng: random.Random) -> bytes:
    """An `.npy` of objects, or one that asks for more memory than there is."""
    stream = io.BytesIO()
    if rng.random() < 0.5:
        header = {"descr": "|O", "fortran_order": False, "shape": rng.choice(((), (1,)))}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue() + hostile_pickle(rng)
    shape = rng.choice(
        ((1 << 40,), (1 << 33, 2, 2), (1 << 16, 1 << 16, 8), (2**63, 2**63), (-5, 3))
    )
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n"


def hostile_zip(rng: random.Random) -> bytes:
    """An archive of members that leave it, of objects, or of very many zeros."""
    names = rng.sample(("../x.npy", "/abs.npy", "label.npy", "rgb.npy", "data.pkl"), 3)
    members: list[tuple[str, bytes | Packed]] = [(name, hostile_npy(rng)) for name in names]
    if rng.random() < 0.3:
        members.append(("zeros.npy", bomb(_ZEROS, BOMB_BYTES)))
    return write_zip(members)


def hostile_file(rng: random.Random) -> bytes:
    """A whole file of an attacker, of any kind."""
    kinds = (hostile_pickle, hostile_pickle, hostile_npy, hostile_zip, _nested, _empty)
    return rng.choice(kinds)(rng)


def _nested(rng: random.Random) -> bytes:
    depth = rng.choice((100, 2000, 200_000))
    lists = b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b"."
    return rng.choice((b"[" * depth, b'{"a":' * depth, b"(" * depth + b".", lists))


def _empty(rng: random.Random) -> bytes:
    return b"" if rng.random() < 0.5 else bytes(rng.choice((1, 8, 4096)))
