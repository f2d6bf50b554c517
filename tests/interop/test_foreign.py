"""Artefacts of others: programs that call out of their file are not run."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.interop.artefacts.untrusted import open_stablehlo
from sft_jax.types import DataError


def exported(path, function, rows="b"):
    (size,) = jax.export.symbolic_shape(rows) if isinstance(rows, str) else (rows,)
    given = {"x": jax.ShapeDtypeStruct((size, 3), jnp.float32)}
    path.write_bytes(jax.export.export(jax.jit(function))(given).serialize())
    return path


def test_arithmetic_is_run(tmp_path):
    path = exported(tmp_path / "a.stablehlo", lambda given: {"y": 2 * given["x"]})
    found = open_stablehlo(path)({"x": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(found["y"], np.full((2, 3), 2, np.float32))


def test_a_program_that_calls_out_of_its_file_is_refused(tmp_path):
    def decomposed(given):
        return {"y": jnp.linalg.svd(given["x"])[1]}

    path = exported(tmp_path / "b.stablehlo", decomposed, rows=3)
    with pytest.raises(DataError, match=r"b.stablehlo: found calls to lapack_\w+, expected only"):
        open_stablehlo(path)


@pytest.mark.parametrize("keep", [0, 1, 40])
def test_what_is_no_artefact_is_named(tmp_path, keep):
    path = exported(tmp_path / "c.stablehlo", lambda given: {"y": given["x"] + 1}, rows=3)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"c.stablehlo: found no program of jax.export"):
        open_stablehlo(path)
    with pytest.raises(DataError, match=r"none: found no file"):
        open_stablehlo(tmp_path / "none")


def test_a_program_that_its_parser_cannot_read_ends_a_process_that_is_not_ours(tmp_path):
    path = exported(tmp_path / "d.stablehlo", lambda given: {"y": given["x"] + 1}, rows=3)
    data = path.read_bytes()
    at = data.index(b"StableHLO")  # the name of the writer, behind the first word of bytecode
    path.write_bytes(data[:at] + bytes(len(b"StableHLO") + 30) + data[at + 39 :])
    with pytest.raises(DataError, match=r"the reader ended with status -?\d+: .*; export the run"):
        open_stablehlo(path)
