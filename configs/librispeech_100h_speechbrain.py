"""WavLM-large on 100 hours of LibriSpeech, after SpeechBrain's recipe for CTC with WavLM.

    python scripts/train_flax.py --config configs/librispeech_100h_speechbrain.py \
        --config.data.path=/path/to/LibriSpeech

The folder has `train-clean-100`, `dev-clean` and `test-clean` of OpenSLR 12; the environment variable
LIBRISPEECH_DIR can say where it is, in place of the flag. As in SpeechBrain's
recipes/LibriSpeech/ASR/CTC/hparams: 6 clips a step at the speeds 0.95, 1 and 1.05, the encoder's rate of 1e-4
without warm-up or decay, a larger rate for the head, gradients clipped at 5, dev-clean chooses.

Not the same: their head is two layers of 1,024 trained by Adadelta, ours one linear layer trained by AdamW.
They lower a rate when dev gets no better; here such a run ends (`train.early_stopping`). They also drop
frequencies and pieces of the audio, for which SpecAugment stands here. They train for one epoch of 960 hours,
so ten of 100 hours are about as long.

Hardware: one GPU of 24 GB or more.
Expected: not measured here. SpeechBrain's table has a WER of 4.09 for it, without a language model.
"""

import os

from flax_wavlm.training.config import (
    AugmentSettings,
    DataSettings,
    LoopSettings,
    ModelSettings,
    OptimSettings,
    SplitSettings,
    TextSettings,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        name="librispeech_100h_speechbrain",
        seed=1986,
        model=ModelSettings(
            checkpoint="microsoft/wavlm-large", dtype="bfloat16", freeze_feature_encoder=True
        ),
        data=DataSettings(
            corpus="librispeech",
            path=os.environ.get("LIBRISPEECH_DIR", ""),
            splits=SplitSettings(train="train-clean-100", dev="dev-clean", test="test-clean"),
            augment=AugmentSettings(speeds=(0.95, 1.0, 1.05)),
        ),
        text=TextSettings(case="upper"),  # as the corpus is written
        train=LoopSettings(
            batch_size=6, epochs=10, eval_every=2000, log_every=200, best_by="wer", early_stopping=5
        ),
        optim=OptimSettings(
            learning_rate=1e-4,
            schedule="constant",
            warmup_steps=0,
            head_learning_rate=1e-3,
            weight_decay=0.0,
            clip_norm=5.0,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
        ),
    )
