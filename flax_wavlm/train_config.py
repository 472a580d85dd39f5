"""The former place of `flax_wavlm.training.config`, which recipes written before it moved import."""

from flax_wavlm.training.config import (
    DataSettings,
    LoopSettings,
    MeshSettings,
    ModelSettings,
    OptimSettings,
    Overrides,
    SyntheticSettings,
    TrainConfig,
)

__all__ = [
    "DataSettings",
    "LoopSettings",
    "MeshSettings",
    "ModelSettings",
    "OptimSettings",
    "Overrides",
    "SyntheticSettings",
    "TrainConfig",
]
