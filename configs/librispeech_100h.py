"""WavLM on 100 hours of LibriSpeech, with fairseq's recipe for wav2vec 2.0 (`base_100h`).

    python scripts/train_flax.py --config configs/librispeech_100h.py --config.data.path=/path/to/LibriSpeech

The folder has `train-clean-100`, `dev-other` and `test-other` of OpenSLR 12; the environment variable
LIBRISPEECH_DIR can say where it is, in place of the flag. The values are those of
examples/wav2vec/config/finetuning/base_100h.yaml in fairseq: 80,000 updates, tri-stage rate, batches of at
most 1,600 s of padded audio (200 s on each of two GPUs, four times), masks, no weight decay and no clipping.

Not the same: bfloat16 in place of float16; at most 16 padded lengths, since XLA compiles each; the dev set is
read every 2,000 updates. `vox_100h`, the recipe of the large model, is this one with
`--config.model.checkpoint=microsoft/wavlm-large --config.train.head_first_steps=10000
--config.model.overrides.mask_time_prob=0.5`.

Hardware: one GPU of 24 GB or more. `train.accumulation` makes parts of 200 s; wavlm-large took 15.5 GiB of an
H100 for 256 s (32 clips of 8 s, benchmarks/results/train_step-nvidia-h100-80gb-hbm3.json). With more devices,
divide it by their number. `--dry_run` says what fits.
Expected: not measured here.
"""

import os

from flax_wavlm.training.config import (
    DataSettings,
    LoopSettings,
    ModelSettings,
    OptimSettings,
    Overrides,
    SplitSettings,
    TextSettings,
    TrainConfig,
)


def get_config() -> TrainConfig:
    steps = 80_000
    return TrainConfig(
        name="librispeech_100h",
        seed=1,
        model=ModelSettings(
            checkpoint="microsoft/wavlm-base-plus",
            dtype="bfloat16",
            freeze_feature_encoder=True,  # feature_grad_mult: 0
            overrides=Overrides(
                hidden_dropout=0.0,
                attention_dropout=0.0,
                activation_dropout=0.1,
                feat_proj_dropout=0.0,
                final_dropout=0.0,
                layerdrop=0.1,
                apply_spec_augment=True,
                mask_time_prob=0.65,
                mask_time_length=10,
                mask_feature_prob=0.5,
                mask_feature_length=64,
            ),
        ),
        data=DataSettings(
            corpus="librispeech",
            path=os.environ.get("LIBRISPEECH_DIR", ""),
            splits=SplitSettings(train="train-clean-100", dev="dev-other", test="test-other"),
            buckets=16,
        ),
        text=TextSettings(case="upper"),  # as the corpus is written
        train=LoopSettings(
            steps=steps,
            batch_seconds=1600.0,
            accumulation=8,
            eval_batch_size=16,
            eval_every=2000,
            log_every=200,
            best_by="wer",
            ctc_loss_reduction="sum",
        ),
        optim=OptimSettings(
            learning_rate=3e-5,
            schedule="tri_stage",
            warmup_steps=steps // 10,
            hold_steps=steps * 4 // 10,
            initial_share=0.01,
            final_share=0.05,
            weight_decay=0.0,
            clip_norm=0.0,
            beta1=0.9,
            beta2=0.98,
            eps=1e-8,
        ),
    )
