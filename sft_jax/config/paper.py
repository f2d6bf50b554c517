"""The runs of the paper (arXiv 2111.11992, section 4) as its authors' commands have them."""

from sft_jax.config.data import DataConfig, MultPickleOptions, VggsoundHdf5Options
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.model import ModelOptions, NoOptions
from sft_jax.config.run import (
    Config,
    Duration,
    MixupConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)

_DEFAULT_OPTIONS = NoOptions()


def vggsound(
    *, num_classes: int, model: str = "sft", model_options: ModelOptions = _DEFAULT_OPTIONS
) -> Config:
    """VGGSound-10 or -100: RGB, spectrogram and optical flow; `sft` or a baseline."""
    prefix = "vgg" if num_classes == 10 else f"vgg{num_classes}"
    options = VggsoundHdf5Options(
        train_path=f"data/{prefix}_train.h5py", test_path=f"data/{prefix}_test.h5py"
    )
    return _run(
        (
            _max_pooled("rgb", 38, 1024, window=38),
            _max_pooled("spect", 1200, 128, window=64),
            _max_pooled("flow", 38, 1024, window=38),
        ),
        DataConfig(source="vggsound_hdf5", options=options, normalization="none"),
        num_classes=num_classes,
        model=model,
        model_options=model_options,
        learning_rate=1e-3,
    )


def mosei(*, model: str = "sft", model_options: ModelOptions = _DEFAULT_OPTIONS) -> Config:
    """CMU-MOSEI: vision, audio and text, sentiment in seven classes."""
    options = MultPickleOptions(path="data/mosei_senti_data_noalign.pkl", dataset="mosei")
    return _run(
        (
            _max_pooled("vision", 500, 35, window=64),
            _max_pooled("audio", 500, 74, window=64),
            _max_pooled("text", 50, 300, window=50),
        ),
        DataConfig(source="mult_pickle", options=options, normalization="none"),
        num_classes=7,
        model=model,
        model_options=model_options,
        learning_rate=1e-4,
    )


def _max_pooled(name: str, length: int, feature_dim: int, window: int) -> ModalitySpec:
    return ModalitySpec(
        name=name, length=length, feature_dim=feature_dim, pool="max", window=window
    )


def _run(
    modalities: tuple[ModalitySpec, ...],
    data: DataConfig,
    *,
    num_classes: int,
    model: str,
    model_options: ModelOptions,
    learning_rate: float,
) -> Config:
    return Config(
        modalities=modalities,
        model=ModelConfig(
            name=model,
            preset="paper",
            num_classes=num_classes,
            embed_dim=40,
            num_heads=5,
            num_pre_layers=1,
            num_post_layers=11,
            options=model_options,
        ),
        data=data,
        # Mixup is part of the method; the baselines go without. Partners come from the whole batch.
        mixup=MixupConfig(mode="any", alpha=0.3, warmup=Duration(5.0, "epochs"), groups=1)
        if model == "sft"
        else MixupConfig(),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate,
            weight_decay=0.0,
            clip_norm=0.8,
            schedule="plateau",
            plateau_factor=0.1,
            plateau_patience=10,
        ),
        train=TrainConfig(
            duration=Duration(20.0, "epochs"),
            batch_size=24,
            best_after=Duration(6.0, "epochs"),
            best_metric="loss",
        ),
    )
