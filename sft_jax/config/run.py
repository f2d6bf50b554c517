"""The configuration of a run: frozen dataclasses that hold and check every setting."""

import dataclasses

from sft_jax.config.data import DataConfig
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.model import ModelConfig
from sft_jax.config.task import TaskConfig
from sft_jax.config.training import AugmentConfig, MixupConfig, OptimizerConfig, TrainConfig
from sft_jax.config.training import Duration as Duration
from sft_jax.types import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run.

    Attributes:
        modalities: Modalities in the order of the fused sequence. If empty, they are taken from the
            data and each is pooled to an eighth of its tokens.
        task: What is predicted.
        model: The network.
        data: Source of the samples.
        augment: Augmentation of the inputs during training.
        mixup: Blending of samples inside the network during training.
        optimizer: Optimizer and learning-rate schedule.
        train: Duration, batches and checkpoints.
    """

    modalities: tuple[ModalitySpec, ...] = ()
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    mixup: MixupConfig = dataclasses.field(default_factory=MixupConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self):
        names = [spec.name for spec in self.modalities]
        if len(names) > 8 or len(set(names)) != len(names):
            raise ConfigError(f"modalities: given {names}, expected up to 8 different names")
        self._check_mixup()
        self._check_sensors()

    def _check_sensors(self):
        augment = self.augment
        for setting in ("rotate", "mirror_polar", "mirror_axial"):
            given = getattr(augment, setting)
            if given and self.data.normalization == "channel":
                raise ConfigError(
                    f"augment.{setting}: given with data.normalization 'channel', expected 'rms' "
                    "or 'none', since moving and scaling axes apart bends the frame that is to be "
                    "turned"
                )
            triples = [spec.name for spec in self.modalities if spec.feature_dim == 3]
            # Without modalities the data will say which there are; this is checked again then.
            for name in given if self.modalities else ():
                spec = next((spec for spec in self.modalities if spec.name == name), None)
                if spec is None or spec.feature_dim != 3 or spec.tokenizer == "token":
                    raise ConfigError(
                        f"augment.{setting}: given {name!r}, expected a modality with three "
                        f"features, one of {triples}"
                    )
        if bool(augment.rotate) != bool(augment.rotation_degrees):
            raise ConfigError(
                f"augment.rotation_degrees: given {augment.rotation_degrees} with rotate "
                f"{augment.rotate}, expected both or neither; set the other one too"
            )

    def _check_mixup(self):
        mixup, model = self.mixup, self.model
        if mixup.mode == "none":
            return
        depths = {"within": model.num_pre_layers, "fused": model.num_post_layers}
        depths["any"] = sum(depths.values())
        if not depths[mixup.mode]:
            raise ConfigError(
                f"mixup.mode: given {mixup.mode!r} for num_pre_layers {model.num_pre_layers} and "
                f"num_post_layers {model.num_post_layers}, expected a block to blend after"
            )
        if self.train.batch_size % mixup.groups or mixup.groups % self.train.accumulate:
            raise ConfigError(
                f"mixup.groups: given {mixup.groups} for batch_size {self.train.batch_size} and "
                f"accumulate {self.train.accumulate}, expected a divisor of the batch size that is "
                "a multiple of accumulate (and of the devices)"
            )
        if mixup.groups == self.train.batch_size:
            raise ConfigError(
                f"mixup.groups: given {mixup.groups} for batch_size {self.train.batch_size}, "
                "expected groups of at least 2 samples, since a sample alone has no partner; lower "
                "it"
            )
