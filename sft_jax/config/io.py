"""Configurations between their three forms: dataclasses, the command line's `ConfigDict`, JSON.

The route of a setting: `configs/x.py` builds a `Config` and hands it over as a locked `ConfigDict`
(`config_dict`), the command line overrides entries of it, `from_dict` turns it back into
dataclasses and refuses what it does not know. Nobody past this module sees a `ConfigDict`.
"""

import dataclasses
import difflib
import reprlib
import runpy
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from sft_jax.config import model, task
from sft_jax.config.checks import check_choice
from sft_jax.config.data import OPTIONS, DataConfig
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, Duration
from sft_jax.types import ConfigError

_LARGEST_INTEGER = 2**63 - 1
_OPTIONAL = (types.UnionType, typing.Union)
# Sections whose `options` depend on another of their settings: that setting, its default, and the
# type of the options for each of its values.
_UNIONS: dict[str, tuple[str, str, Mapping[str, type]]] = {
    "data": ("source", DataConfig.source, OPTIONS),
    "model": ("name", model.ModelConfig.name, model.OPTIONS),
    "task": ("name", task.TaskConfig.name, task.OPTIONS),
}
# The options of all models, and of all tasks, with their defaults. The command line can name each
# of them, since `model.name` or `task.name` may be overridden in the same command.
_ALL_OPTIONS = {
    section: {
        field.name: field.default
        for options in _UNIONS[section][2].values()
        for field in dataclasses.fields(options)
    }
    for section in ("model", "task")
}


def config_dict(config: Config) -> ml_collections.ConfigDict:
    """Returns a locked `ConfigDict` for `--config` and its overrides on the command line."""
    return _ordered(_settable(config)).lock()


def _settable(config: Config) -> dict[str, Any]:
    """Returns `to_dict(config)` with the options of every model and task, to be overridden."""
    tree = to_dict(config)
    for section, options in _ALL_OPTIONS.items():
        tree[section]["options"] = {**options, **tree[section]["options"]}
    return tree


def to_dict(config: Any) -> Any:
    """Returns plain dicts, lists and scalars of a configuration, as a run folder stores it."""
    if isinstance(config, Duration):
        value = config.value
        # Whole numbers without a point; `repr` otherwise, which loses no digit.
        return f"{int(value) if value == int(value) else value!r} {config.unit}"
    if dataclasses.is_dataclass(config):
        fields = {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
        if isinstance(config, Config):
            # By name, so that the command line can reach `--config.modalities.<m>.k=8`.
            fields["modalities"] = {entry.pop("name"): entry for entry in fields["modalities"]}
        return fields
    if isinstance(config, tuple):
        return tuple(to_dict(entry) for entry in config)
    return config


def from_dict(given: Mapping[str, Any] | ml_collections.ConfigDict) -> Config:
    """Builds and checks a `Config` from the result of `to_dict` or `config_dict`.

    Entries that are left out keep their defaults.

    Raises:
        ConfigError: An entry is unknown, of the wrong type, or cannot be used.
    """
    if isinstance(given, ml_collections.ConfigDict):
        given = given.to_dict()
    given = dict(given)
    modalities = given.get("modalities", {})
    if not isinstance(modalities, Mapping):
        raise ConfigError(
            f"modalities: given {type(modalities).__name__}, expected a mapping from each name to "
            "its settings"
        )
    given["modalities"] = tuple(_modality(name, spec) for name, spec in modalities.items())
    for section, (setting, default, table) in _UNIONS.items():
        values = given.get(section, {})
        if isinstance(values, Mapping) and isinstance(values.get("options", {}), Mapping):
            choice = _convert(str, values.get(setting, default), f"{section}.{setting}")
            if section != "task":  # tasks may be registered elsewhere
                check_choice(f"{section}.{setting}", choice, tuple(table))
            kind = table.get(choice, task.NoTaskOptions)
            options = values.get("options", {})
            if section in _ALL_OPTIONS:
                options = _without_unused(options, kind, _ALL_OPTIONS[section])
            options = _build(kind, options, f"{section}.options")
            given[section] = {**values, "options": options}
    return _build(Config, given, "")


def _without_unused(
    given: Mapping[str, Any], options: type, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Removes other models' (or tasks') options that have their default value."""
    used = {field.name for field in dataclasses.fields(options)}
    return {
        name: value
        for name, value in given.items()
        if name in used or name not in known or value != known[name]
    }


def find(path: str | Path) -> Path:
    """Returns the file at a path, which may be `configs/x.py` of the package in any folder.

    Raises:
        ConfigError: There is no such file.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    package = Path(__file__).parents[1]
    # Inside the package once it is installed, beside it in a checkout.
    ours = package if (package / "configs").is_dir() else package.parent
    if path.parts[:1] == ("configs",) and (ours / path).is_file():
        return ours / path
    names = sorted(str(file.relative_to(ours)) for file in (ours / "configs").rglob("*.py"))
    raise ConfigError(
        f"{path}: not found, expected a Python file, yours or one of those that come with sft_jax: "
        f"{', '.join(names)}; check the path"
    )


def run_file(path: str | Path, function: str) -> Any:
    """Returns the result of a function that a file of `configs/` defines.

    Raises:
        ConfigError: There is no such file, or no such function in it.
    """
    found = runpy.run_path(str(find(path)))
    if function not in found:
        raise ConfigError(
            f"{path}: no {function} in it, expected a Python file with a function {function}, as "
            "those of configs/ are; define one"
        )
    return found[function]()


def load(path: str | Path) -> Config:
    """Returns the `Config` that a file of `configs/` describes.

    Raises:
        ConfigError: There is no such file, or it has no `get_config`.
    """
    return from_dict(run_file(path, "get_config"))


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """Returns a configuration with other values, as `--config.<path>=<value>` sets them.

    Args:
        config: Configuration to change.
        changes: Values by dotted path, such as `{"train.duration": "12 epochs"}`. `*` stands for
            all entries of a level: `modalities.*.pool`.

    Raises:
        ConfigError: A path leads to no setting, or a value cannot be used.
    """
    tree = _settable(config)
    for path, value in changes.items():
        _set(tree, path.split("."), value, path)
    return from_dict(tree)


def _set(tree: dict[str, Any], keys: list[str], value: Any, path: str):
    first, *rest = keys
    if first == "*" and not tree:
        raise ConfigError(
            f"{path}: given for a configuration whose data name its modalities, expected some to "
            "change; set them in the configuration"
        )
    for name in list(tree) if first == "*" else [first]:
        _check_level(tree, name, bool(rest), path)
        if rest:
            _set(tree[name], rest, value, path)
        else:
            tree[name] = value


def check_setting(tree: Mapping[str, Any], path: str):
    """Raises `ConfigError` unless a dotted path leads to a setting of `tree`."""
    *above, last = path.split(".")
    for name in above:
        _check_level(tree, name, True, path)
        tree = tree[name]
    _check_level(tree, last, False, path)


def _check_level(tree: Mapping[str, Any], name: str, goes_on: bool, path: str):
    if name not in tree:
        close = difflib.get_close_matches(name, tree, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "give one of them"
        among = f"is none of {', '.join(tree)}; {hint}"
        if not tree:  # of modalities
            among = "is named by the data alone; write a configuration that names it, to set it"
    elif goes_on and not isinstance(tree[name], Mapping | ml_collections.ConfigDict):
        among = "is a single value; give it without what comes behind it"
    else:
        return
    raise ConfigError(f"{path}: given, but there is no such setting: {name!r} {among}")


def _modality(name: str, given: Any) -> ModalitySpec:
    where = f"modalities.{name}"
    if not isinstance(given, Mapping) or "name" in given:
        raise ConfigError(
            f"{where}: given {reprlib.repr(given)}, expected a mapping without 'name', since "
            "its key is its name"
        )
    # A command line cannot say None: 0 takes a size away, so that pools can be exchanged there.
    sizes = {key: None for key in ("k", "window") if given.get(key) == 0}
    return _build(ModalitySpec, {**given, **sizes, "name": name}, where)


def _build(cls: type, given: Mapping[str, Any], where: str) -> Any:
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    prefix = f"{where}." if where else ""
    for key in given:
        if key not in fields:
            close = difflib.get_close_matches(str(key)[:60], fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "remove it"
            raise ConfigError(
                f"{prefix}{str(key)[:60]}: given, but there is no such setting; expected one of "
                f"{', '.join(fields) or 'none'}; {hint}"
            )
    required = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(given)):
        raise ConfigError(
            f"{where}: given {sorted(given)}, expected {', '.join(missing)} as well; set them"
        )
    return cls(**{k: _convert(fields[k], value, prefix + k) for k, value in given.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    """Converts a value to a type; raises `ConfigError`, which names the setting."""
    if typing.get_origin(kind) in _OPTIONAL:
        members = typing.get_args(kind)
        if (value is None and type(None) in members) or type(value) in members:
            return value
        sequences = [member for member in members if typing.get_origin(member) is tuple]
        kind = sequences[0] if sequences and isinstance(value, tuple | list) else members[0]
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if isinstance(value, kind):
            return value
        if kind is Duration:
            return Duration.parse(value, where)
        if isinstance(value, Mapping):
            return _build(kind, value, where)
    elif typing.get_origin(kind) is tuple:
        if isinstance(value, tuple | list):
            items = typing.get_args(kind)
            if items[-1] is Ellipsis:
                items = items[:1] * len(value)
            if len(items) == len(value):
                return tuple(
                    _convert(item, entry, where) for item, entry in zip(items, value, strict=True)
                )
    elif isinstance(value, bool) is (kind is bool):
        if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
            raise ConfigError(
                f"{where}: given {reprlib.repr(value)}, expected a number of at most 64 bits"
            )
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ConfigError(
                f"{where}: given {reprlib.repr(value)}, expected text in Unicode, without halves "
                "of characters; write it again"
            )
        if isinstance(value, kind):
            return value
        if kind is float and isinstance(value, int):
            return float(value)
    raise ConfigError(
        f"{where}: given {reprlib.repr(value)} ({type(value).__name__}), expected "
        f"{kind.__name__ if isinstance(kind, type) else kind}"
    )


def _ordered(value: Any) -> Any:
    # Modalities are ordered; ConfigDict sorts the keys of plain dicts unless told otherwise.
    if value is None:
        # So that the command line can set it; every setting that may be None is an integer.
        return ml_collections.config_dict.placeholder(int)
    if not isinstance(value, dict):
        return value
    result = ml_collections.ConfigDict(sort_keys=False)
    for key, entry in value.items():
        result[key] = _ordered(entry)
    return result
