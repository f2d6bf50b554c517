import jax
import pytest

from sft_jax.attention.platform import compiling_for, target_platform


def test_the_platform_is_that_of_the_devices_unless_another_is_planned_for():
    here = jax.default_backend()
    assert target_platform() == here
    with compiling_for("tpu"):
        assert target_platform() == "tpu"
        with compiling_for("gpu"):
            assert target_platform() == "gpu"
        assert target_platform() == "tpu"
    assert target_platform() == here


def test_an_error_inside_ends_the_plan():
    with pytest.raises(ZeroDivisionError), compiling_for("tpu"):
        raise ZeroDivisionError
    assert target_platform() != "tpu"


def test_no_trace_for_another_platform_is_taken_up():
    @jax.jit
    def asked(x):
        return x + {"cpu": 1, "gpu": 2, "tpu": 3}[target_platform()]

    assert asked(0) == 1
    with compiling_for("tpu"):
        assert asked(0) == 3
    assert asked(0) == 1
