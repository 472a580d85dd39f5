"""A recipe for tests that start the real scripts: a tiny model from scratch, on a manifest of short noise.

It has all that a resumed or a distributed run could get wrong: dropout, LayerDrop, SpecAugment, two clip
lengths, a last batch of an epoch that is not full, and weights large enough to be split over fsdp.
"""

from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.training.config import DataSettings, LoopSettings, ModelSettings, OptimSettings, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="tiny",
        model=ModelSettings(
            config=WavLMConfig(
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=256,
                conv_dim=(16,) * 7,
                feat_extract_norm="layer",
                do_stable_layer_norm=True,
                num_conv_pos_embeddings=16,
                num_buckets=32,
                max_bucket_distance=80,
                mask_time_length=3,
            )
        ),
        data=DataSettings(corpus="manifest", dev="test", buckets=2),
        train=LoopSettings(
            batch_size=8, steps=12, eval_batch_size=8, eval_every=6, log_every=1, save_every=1, aligner=False
        ),
        optim=OptimSettings(learning_rate=1e-3, warmup_steps=2),
    )
