"""WavLM-large on TIMIT, with every value of the recipe in the model card timit-demo-wavlm-large.

    python scripts/train_flax.py --config configs/timit.py --config.data.path=/path/to/TIMIT

TIMIT is LDC93S1, from the Linguistic Data Consortium (https://catalog.ldc.upenn.edu/LDC93S1). The
environment variable TIMIT_DIR can say where it is, in place of the flag.

As in the card, the test set chooses the best checkpoint (`data.dev = "test"`, all 1,680 clips). So its figure
is better than one on new speech. With `--config.data.dev=dev` the field's 50 development speakers choose, and
the 24 speakers of the core test set are read once, at the end.

Hardware: one GPU of 16 GB or more, or a TPU host. A step on 32 clips of 4 s took 10.7 GB of an H100, without
dropout (benchmarks/results/train_step-nvidia-h100-80gb-hbm3.json).
Expected: not yet measured here. The card reports WER 0.2746. The Trainer measured it on padded batches, so
compare it with `wer_hf_padded`; its `wer`, clip by clip, was probably about 0.16.
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


def get_config() -> TrainConfig:
    return TrainConfig(
        name="timit",
        seed=42,
        # Dropouts, LayerDrop and SpecAugment are the pretrained model's own: 0.1, 0.1, and 0.075 x 10 frames.
        model=ModelSettings(
            checkpoint="microsoft/wavlm-large", dtype="bfloat16", freeze_feature_encoder=True
        ),
        data=DataSettings(
            corpus="timit",
            path=os.environ.get("TIMIT_DIR", ""),
            dev="test",  # the seed's protocol
            train_max_seconds=4.0,  # keeps 3,978 of 4,620 clips; the test set stays whole
        ),
        text=TextSettings(preset="timit"),  # lower case, and , ? . ! - ; : " deleted
        train=LoopSettings(
            batch_size=32,
            epochs=100,  # 125 steps each
            eval_batch_size=8,
            eval_every=500,
            log_every=500,
            ctc_loss_reduction="mean",
        ),
        optim=OptimSettings(
            learning_rate=1e-4,
            warmup_steps=1000,
            weight_decay=0.005,
            clip_norm=1.0,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
        ),
    )
