"""The room's names and its builders are found where its tables say."""

import pytest

from sft_jax import data, files
from sft_jax.config.data import OPTIONS
from sft_jax.data.builders import SourceBuilder, builder_class


@pytest.mark.parametrize("source", OPTIONS)
def test_every_source_has_a_builder_of_its_name_and_options(source):
    builder = builder_class(source)
    assert issubclass(builder, SourceBuilder)
    assert builder.name == source
    assert builder.__annotations__["options"] is OPTIONS[source]


@pytest.mark.parametrize("room", [data, files])
def test_every_exported_name_exists(room):
    assert all(getattr(room, name) is not None for name in room.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        room.nothing  # noqa: B018
