"""WavLM-base-plus on the free sample of TIMIT that NLTK ships: 160 clips of 16 speakers.

    python -m nltk.downloader timit
    export TIMIT_SAMPLE_DIR=$HOME/nltk_data/corpora/timit   # or --config.data.path=FOLDER
    python scripts/train_flax.py --config configs/timit_sample.py

This is a quick look at real speech, not a benchmark. Four speakers, two women and two men, are held out as
the test set. One or two of the others are the dev set, which chooses the best checkpoint. But all speakers
say the sentences SA1 and SA2. Some copies of the sample were unpacked in text mode, which cut clips short:
such clips are left out, and named.

Hardware: any GPU of 8 GB; on 2 CPU cores use a small pretrained model (`--config.model.checkpoint=FOLDER`).
Expected: not yet measured with pretrained weights. With a tiny model of random weights the loss on the
training clips falls by more than half in 60 steps (measured by tests/training/test_recipes.py).
"""

import os

from flax_wavlm.training.config import (
    DataSettings,
    LoopSettings,
    ModelSettings,
    OptimSettings,
    TextSettings,
    TrainConfig,
)

HELD_OUT = ("dr1-mcpm0", "dr4-falr0", "dr5-ftlg0", "dr7-madd0")


def get_config() -> TrainConfig:
    return TrainConfig(
        name="timit_sample",
        model=ModelSettings(checkpoint="microsoft/wavlm-base-plus"),
        data=DataSettings(
            corpus="timit_sample",
            path=os.environ.get("TIMIT_SAMPLE_DIR", ""),
            held_out_speakers=HELD_OUT,
        ),
        text=TextSettings(preset="timit"),  # lower case, and , ? . ! - ; : " deleted
        train=LoopSettings(
            batch_size=8,
            steps=600,
            eval_batch_size=8,
            eval_every=100,
            log_every=20,
            ctc_loss_reduction="mean",
        ),
        optim=OptimSettings(learning_rate=1e-4, warmup_steps=60),
    )
