"""WavLM-large on your own recordings: a folder of audio files with their texts beside them.

    python scripts/train_flax.py --config configs/own_data.py --config.data.path=my-speech

docs/own-data.md goes through it page by page. The values are meant for a few hours of speech in any language.

Hardware: one GPU. `--dry_run` says whether a batch fits it, and what to change if not. A step on 32 clips of
4 s, half as much speech as the largest batch here may have, took 10.7 GB of an H100
(benchmarks/results/train_step-nvidia-h100-80gb-hbm3.json).
Expected: not yet measured with pretrained weights. tests/test_own_data.py runs every command of the page with
a small model, on German, Vietnamese and Mandarin.
"""

from flax_wavlm.training.config import (
    DataSettings,
    LoopSettings,
    ModelSettings,
    OptimSettings,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        name="own_data",
        model=ModelSettings(
            checkpoint="microsoft/wavlm-large",
            dtype="bfloat16",
            # The convolutions have learnt from 94,000 hours what speech sounds like: a few more add nothing.
            freeze_feature_encoder=True,
        ),
        data=DataSettings(
            corpus="folder",
            train_max_seconds=15.0,  # the longest clip decides how much memory a step needs
            # The features of an hour take 0.4 GB of the disk. It pays on a CPU; a GPU computes them quickly.
            cache_features=False,
        ),
        train=LoopSettings(
            batch_size=16,
            steps=8000,  # and not epochs: less speech needs more of them
            eval_every=400,
            # The head begins at random. Its first gradients would only disturb the layers below.
            head_first_steps=400,
            # 2,000 steps without a better score end the run: with so little speech it is then overfitted.
            early_stopping=5,
        ),
        optim=OptimSettings(
            learning_rate=1e-4,
            # It falls from the peak on, so a run that ends early has had small rates too. tri_stage holds the
            # peak for a number of steps that would have to be changed with train.steps.
            schedule="linear",
            warmup_steps=800,
        ),
    )
