"""The room's names and its builders are found where its tables say."""

import pytest

from sft_jax import data
from sft_jax.config.data import OPTIONS
from sft_jax.data.builders import SourceBuilder, builder_class


@pytest.mark.parametrize("source", OPTIONS)
def test_every_source_has_a_builder_of_its_name_and_options(source):
    builder = builder_class(source)
    assert issubclass(builder, SourceBuilder)
    assert builder.name == source
    assert builder.__annotations__["options"] is OPTIONS[source]


def test_every_exported_name_exists():
    assert all(getattr(data, name) is not None for name in data.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        data.nothing  # noqa: B018
