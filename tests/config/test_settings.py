"""The settings as `--print_config` shows them."""

import dataclasses
import typing

import pytest

from sft_jax.config.io import load, override
from sft_jax.config.run import Config
from sft_jax.config.settings import attribute_docs, describe_settings, settings_text


def dataclasses_of(kind):
    """Every dataclass that a type names, its fields' included."""
    if dataclasses.is_dataclass(kind):
        yield kind
        for hint in typing.get_type_hints(kind).values():
            yield from dataclasses_of(hint)
    for argument in typing.get_args(kind):
        yield from dataclasses_of(argument)


CLASSES = list(dict.fromkeys(dataclasses_of(Config)))


def test_the_search_finds_sections_options_and_modalities():
    names = {cls.__name__ for cls in CLASSES}
    assert {"Config", "ModalitySpec", "TrainConfig", "ArraysOptions", "MmsaPickleOptions"} <= names
    assert len(names) > 15


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_setting_is_documented(cls):
    if cls.__name__ == "Duration":
        return  # written as one word of text, such as "20 epochs"
    docs = attribute_docs(cls)
    for field in dataclasses.fields(cls):
        assert docs.get(field.name), field.name


def test_settings_have_values_defaults_and_one_sentence():
    config = override(load("configs/smartwatch.py"), {"train.seed": 4, "train.duration": "3 steps"})
    found = {setting.path: setting for setting in describe_settings(config)}
    seed = found["train.seed"]
    assert (seed.value, seed.default) == (4, 0)
    assert seed.meaning.startswith("Seed for parameters")
    assert (found["train.duration"].value, found["train.duration"].default) == (
        "3 steps",
        "20 epochs",
    )
    assert found["modalities.gyroscope.feature_dim"].default is dataclasses.MISSING
    assert found["data.options.window"].value == 250
    assert "\n" not in "".join(setting.meaning for setting in found.values())


def test_paths_are_those_of_the_command_line():
    config = load("configs/synthetic.py")
    settings = {setting.path: setting.value for setting in describe_settings(config)}
    # Nothing to say instead of a size that a pool does not use.
    assert override(config, {k: v for k, v in settings.items() if v is not None}) == config


def test_the_text_shows_each_setting_on_a_line_with_its_meaning_below():
    lines = settings_text(override(Config(), {"train.batch_size": 64})).splitlines()
    line = lines.index("--config.train.batch_size=64  (default 24)")
    assert lines[line + 1] == "    Number of samples per optimizer step over all devices"
    assert "--config.train.accumulate=1  (the default)" in lines
    assert lines[-1].startswith("--config.modalities: taken from the data")


def test_attributes_of_a_docstring_are_read_over_several_lines():
    class Example:
        """A thing.

        More about it.

        Attributes:
            a: First
                and more: here.
            b, c: Both.
        """

    assert attribute_docs(Example) == {"a": "First and more: here.", "b": "Both.", "c": "Both."}
    assert attribute_docs(type("Bare", (), {})) == {}
