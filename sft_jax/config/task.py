"""Settings of what is predicted, as frozen, checked dataclasses."""

import dataclasses
import math

from sft_jax.config.checks import check_at_least, check_choice, check_fraction
from sft_jax.types import ConfigError

# `none`, `balanced` (by how often each occurs in the training split), or one number for each, also
# as text with commas, as a command line gives it.
Weights = str | tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoTaskOptions:
    """Options of a task that is chosen by the data (`auto`), or has no settings of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationOptions:
    """Options of classification; each sample belongs to one class.

    Attributes:
        class_weights: Weight of each class in the loss: `none`, `balanced` (`n / (c * n_c)` over
            the training split), or a number for each class.
        focal_gamma: Exponent of the focal loss (arXiv 1708.02002); 0 is cross-entropy.
    """

    class_weights: Weights = "none"
    focal_gamma: float = 0.0

    def __post_init__(self):
        _parse_weights(self, "class_weights")
        check_at_least("task.options", self, 0, "focal_gamma")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultilabelOptions:
    """Options of multi-label classification; each sample has any number of labels.

    Attributes:
        pos_weight: Factor on the loss of positives: `none`, `balanced` (negatives per positive in
            the training split, at most 100), or a number for each label.
        focal_gamma: Exponent of the focal loss (arXiv 1708.02002); 0 is cross-entropy.
        focal_alpha: Factor on positives, and 1 minus it on negatives; 0 for neither.
        thresholds: Probability from which a label is assigned: `fixed` at 0.5, or `validation`,
            for each label the one with the best F1 on the validation split.
    """

    pos_weight: Weights = "none"
    focal_gamma: float = 0.0
    focal_alpha: float = 0.0
    thresholds: str = "fixed"

    def __post_init__(self):
        _parse_weights(self, "pos_weight")
        check_at_least("task.options", self, 0, "focal_gamma")
        check_fraction("task.options", self, "focal_alpha")
        check_choice("task.options.thresholds", self.thresholds, ("fixed", "validation"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressionOptions:
    """Options of regression; each sample has one or more numbers.

    Attributes:
        loss: `l1`, `mse` or `huber`, of targets that are standardized by the training split.
        huber_delta: Standardized error up to which the Huber loss is quadratic.
        level: Share of samples that prediction intervals should cover.
    """

    loss: str = "l1"
    huber_delta: float = 1.0
    level: float = 0.9

    def __post_init__(self):
        check_choice("task.options.loss", self.loss, ("l1", "mse", "huber"))
        if self.loss != "huber" and self.huber_delta != RegressionOptions.huber_delta:
            raise ConfigError(
                f"task.options.huber_delta: given {self.huber_delta} with loss {self.loss!r}, "
                "which does not use it; set loss='huber' or leave it out"
            )
        if not 0 < self.huber_delta < math.inf:
            raise ConfigError(
                f"task.options.huber_delta: given {self.huber_delta}, expected a number above 0"
            )
        if not 0 < self.level < 1:
            raise ConfigError(f"task.options.level: given {self.level}, expected between 0 and 1")


TaskOptions = NoTaskOptions | ClassificationOptions | MultilabelOptions | RegressionOptions
OPTIONS: dict[str, type[TaskOptions]] = {
    "auto": NoTaskOptions,
    "classification": ClassificationOptions,
    "multilabel": MultilabelOptions,
    "regression": RegressionOptions,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What is predicted.

    Attributes:
        name: `classification`, `multilabel` or `regression`; `auto` takes the first of these that
            the data have targets for.
        options: The task's own settings, of the type in `OPTIONS`; by default its defaults.
    """

    name: str = "auto"
    options: TaskOptions = NoTaskOptions()

    def __post_init__(self):
        # Tasks that are registered elsewhere have no options.
        options = OPTIONS.get(self.name, NoTaskOptions)
        if self.options == NoTaskOptions():
            object.__setattr__(self, "options", options())
        if not isinstance(self.options, options):
            raise ConfigError(
                f"task.options: given {type(self.options).__name__} for task {self.name!r}, "
                f"expected {options.__name__}; set task.name to the task of these options"
            )


def _parse_weights(options: ClassificationOptions | MultilabelOptions, name: str):
    """Replaces numbers in a text by a tuple, and checks them."""
    given: Weights = getattr(options, name)
    if given in ("none", "balanced"):
        return
    try:
        parts = given.split(",") if isinstance(given, str) else given
        weights = tuple(float(part) for part in parts)
    except ValueError:
        weights = ()
    if not any(weights) or not all(0 <= weight < math.inf for weight in weights):
        raise ConfigError(
            f"task.options.{name}: given {given!r}, expected 'none', 'balanced', or finite numbers "
            "of at least 0, one above 0, such as '1,2.5'"
        )
    object.__setattr__(options, name, weights)
