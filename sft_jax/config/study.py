"""Studies: one configuration, varied over settings, folds of the data, and seeds."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sft_jax.config.io import override, run_file
from sft_jax.config.run import Config
from sft_jax.types import ConfigError


@dataclasses.dataclass(frozen=True)
class Setting:
    """A named change of a configuration.

    Attributes:
        name: Letters, digits, spaces and `._+-`, since files are named after it.
        overrides: Value by dotted path, as in `--config.<path>=<value>`. A path to modalities may
            say `*` for all of them: `modalities.*.pool`.
    """

    name: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9 ._+-]+", self.name):
            raise ConfigError(
                f"study: given the name {self.name!r}, expected letters, digits, spaces and ._+-"
            )


@dataclasses.dataclass(frozen=True)
class Condition:
    """Degradation of the test split.

    Attributes:
        name: Name of the condition.
        missing: Modalities that are absent from every sample.
        gap: Share of the time steps of each modality that is masked in one stretch, somewhere.
    """

    name: str
    missing: tuple[str, ...] = ()
    gap: float = 0.0

    def __post_init__(self):
        if not 0 <= self.gap < 1:
            raise ConfigError(f"condition {self.name!r}: given gap {self.gap}, expected 0 to < 1")


COMPLETE = Condition("complete")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A grid of runs: every setting, on every fold, with every seed.

    Attributes:
        name: Name of its files.
        title: Title in one line.
        protocol: What is held out and how models are chosen, in a sentence, for every table.
        base: Configuration that is varied. Durations are in steps, so that folds of other sizes
            train alike.
        settings: Settings; the others are compared with the first one.
        folds: Changes of `data`.
        seeds: Values of `train.seed`.
        conditions: Conditions of the test split beside the complete one.
    """

    name: str
    title: str
    protocol: str
    base: Config
    settings: tuple[Setting, ...]
    folds: tuple[Setting, ...]
    seeds: tuple[int, ...]
    conditions: tuple[Condition, ...] = ()

    def __post_init__(self):
        for what in ("settings", "folds", "seeds"):
            given = [getattr(entry, "name", entry) for entry in getattr(self, what)]
            if not given or len(set(given)) != len(given):
                raise ConfigError(
                    f"study {self.name!r}: given {what} {given}, expected at least one, all "
                    "different"
                )
        conditions = [condition.name for condition in (COMPLETE, *self.conditions)]
        if len(set(conditions)) != len(conditions):
            raise ConfigError(
                f"study {self.name!r}: given conditions {conditions[1:]}, expected different "
                f"names, none of them {COMPLETE.name!r}"
            )

    def config(self, setting: Setting, fold: Setting, seed: int) -> Config:
        """Returns the configuration of one run.

        Raises:
            ConfigError: An override fits nothing, or a duration is in epochs.
        """
        overrides = {**setting.overrides, **fold.overrides, "train.seed": seed}
        config = override(self.base, overrides)
        _check_steps(config, f"study {self.name!r}, setting {setting.name!r}")
        return config

    def only(
        self,
        settings: Iterable[str] = (),
        folds: Iterable[str] = (),
        seeds: Iterable[int] = (),
    ) -> "Study":
        """Returns a part of the study; what is left empty is not reduced.

        Raises:
            ConfigError: The study has no entry of a name.
        """
        seeds = tuple(seeds)
        if unknown := set(seeds) - set(self.seeds):
            raise ConfigError(
                f"study {self.name!r}: given seeds {sorted(unknown)}, expected some of {self.seeds}"
            )
        chosen: dict[str, Any] = {
            "settings": _chosen(self.settings, settings, f"study {self.name!r}: setting"),
            "folds": _chosen(self.folds, folds, f"study {self.name!r}: fold"),
            "seeds": seeds or self.seeds,
        }
        return dataclasses.replace(self, **chosen)


def load_study(path: str | Path) -> Study:
    """Returns the study that a file of `configs/studies/` describes.

    Raises:
        ConfigError: There is no such file, or it has no `get_study`.
    """
    return run_file(path, "get_study")


def _check_steps(config: Config, where: str):
    durations = {
        "train.duration": config.train.duration,
        "train.eval_every": config.train.eval_every,
        "train.best_after": config.train.best_after,
        "optimizer.warmup": config.optimizer.warmup,
        "mixup.warmup": config.mixup.warmup,
    }
    for name, duration in durations.items():
        if duration.unit != "steps" and duration.value:
            raise ConfigError(
                f"{where}: given {name} in {duration.unit}, expected steps, so that folds of "
                "other sizes train alike"
            )


def _chosen(entries: tuple[Setting, ...], names: Iterable[str], where: str) -> tuple[Setting, ...]:
    by_name = {entry.name: entry for entry in entries}
    names = list(names)
    for name in names:
        if name not in by_name:
            raise ConfigError(f"{where} {name!r}: given, expected one of {', '.join(by_name)}")
    return tuple(by_name[name] for name in names) or entries
