"""Every setting of a configuration with its path, value, default and meaning, as text."""

import dataclasses
import inspect
import re
from typing import Any, NamedTuple

from sft_jax.config.io import to_dict
from sft_jax.config.run import Config


class Setting(NamedTuple):
    """One setting of a configuration.

    Attributes:
        path: Dotted path, as in `--config.<path>=<value>`.
        value: Value as a command line would give it.
        default: Default in the same form; `dataclasses.MISSING` where there is none.
        meaning: First sentence of its documentation.
    """

    path: str
    value: Any
    default: Any
    meaning: str


def attribute_docs(cls: type) -> dict[str, str]:
    """Returns the documentation of a class's attributes, from `Attributes:` of its docstring."""
    _, _, section = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    docs = {}
    for entry in re.split(r"\n(?=    \S)", "\n" + section.split("\n\n")[0]):
        names, separator, text = entry.strip().partition(": ")
        if separator:
            docs.update(dict.fromkeys(re.split(r",\s*", names), " ".join(text.split())))
    return docs


def describe_settings(part: Any, prefix: str = "") -> list[Setting]:
    """Returns the settings of a configuration, or of a part of it, in order."""
    docs, found = attribute_docs(type(part)), []
    for field in dataclasses.fields(part):
        path, value = f"{prefix}{field.name}", getattr(part, field.name)
        if isinstance(part, Config) and field.name == "modalities":
            for spec in value:
                inner = describe_settings(spec, f"{path}.{spec.name}.")
                found += [setting for setting in inner if not setting.path.endswith(".name")]
        elif _is_section(value):
            found += describe_settings(value, f"{path}.")
        else:
            meaning = re.split(r"(?<=\.) ", docs.get(field.name, ""))[0]
            default = to_dict(field.default)
            found.append(Setting(path, to_dict(value), default, meaning.rstrip(".")))
    return found


def _is_section(value: Any) -> bool:
    # Those that a command line writes as one word, such as durations, are settings themselves.
    return dataclasses.is_dataclass(value) and isinstance(to_dict(value), dict)


def settings_text(config: Config) -> str:
    """Returns the settings for a terminal, each with its meaning on a second line."""
    lines = []
    for path, value, default, meaning in describe_settings(config):
        note = "the default" if value == default else f"default {default!r}"
        note = "no default" if default is dataclasses.MISSING else note
        lines += [f"--config.{path}={value!r}  ({note})", f"    {meaning}"]
    if not config.modalities:
        lines.append("--config.modalities: taken from the data; a file may name them instead")
    return "\n".join(lines)
