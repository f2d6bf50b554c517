"""Audio-visual SFT at the width of ViT-Base, on raw spectrograms and raw video: a model for a pod.

    python -m sft_jax.train --config=configs/av_base.py --workdir=runs/av_base

Needs `data/av` (docs/data.md, "Audio and video"): 8 s of log-mel spectrogram, 800 x 128 in patches
of 16 x 16, and 16 frames of 224 x 224 x 3 in tubelets of 2 x 16 x 16; to try it without: `python -m
sft_jax.prepare --fake=av --fake_dir=data`. Tokens: 401 + 1569 in the 3 blocks before fusion and in
the pooling block, which keeps an eighth, 1 + 50 + 196 = 247 in the 9 fused blocks.

Parameters, moments and gradients are split over all devices; `--config.train.fsdp_parallel=8
--config.train.data_parallel=-1` splits them over eight and repeats that. Costs 113,947,402
parameters and 151.087 GFLOP a sample forward, against 487.084 for dense fusion and 436.471 for
MBT-B at the same widths (`python -m sft_jax.cost --config=configs/av_base.py
--compare=sft,dense,mbt`).
"""

from sft_jax.config.data import ArraysOptions, DataConfig
from sft_jax.config.io import config_dict
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, Duration, ModelConfig, OptimizerConfig, TrainConfig

FRAME = (224, 224, 3)


def get_config():
    return config_dict(
        Config(
            modalities=(
                ModalitySpec(
                    name="audio",
                    length=800,
                    feature_dim=128,
                    tokenizer="patch",
                    patch=(16, 16),
                    pool="cls_topk",
                    k=50,
                ),
                ModalitySpec(
                    name="video",
                    length=16,
                    feature_dim=FRAME[0] * FRAME[1] * FRAME[2],
                    tokenizer="tubelet",
                    frame=FRAME,
                    tubelet=(2, 16, 16),
                    pool="cls_topk",
                    k=196,
                ),
            ),
            model=ModelConfig(
                preset="modern",
                num_classes=10,
                embed_dim=768,
                num_heads=12,
                # As where tokens are dropped from image transformers (arXiv 2202.07800): behind the
                # fourth attention, which is the pooling block's.
                num_pre_layers=3,
                num_post_layers=9,
                dtype="bfloat16",
                remat="block",
            ),
            # One number a modality, so that frames may come as bytes and decibels as they are.
            data=DataConfig(
                source="arrays", options=ArraysOptions(path="data/av"), normalization="rms"
            ),
            optimizer=OptimizerConfig(
                learning_rate=3e-4,
                weight_decay=0.05,
                b2=0.95,
                clip_norm=1.0,
                schedule="cosine",
                warmup=Duration(5.0, "epochs"),
            ),
            train=TrainConfig(
                duration=Duration(50.0, "epochs"),
                batch_size=256,
                label_smoothing=0.1,
                data_parallel=1,
                fsdp_parallel=-1,
            ),
        )
    )
