"""WavLM, read from top to bottom as section III of its paper: waveform to frames, frames to hidden states.

Chen et al. 2022, "WavLM: Large-Scale Self-Supervised Pre-Training for Full Stack Speech Processing"
(arXiv:2110.13900). Equal to `transformers`' PyTorch WavLM, whose config names it uses.

Letters of shapes:
    B clips, N samples, T frames, C channels of the feature encoder, D hidden size, F feed-forward size,
    H heads, K head size (D / H), L layers, V vocabulary.

Modules are Flax NNX, and the code that trains them is functional: see `parameters.py`. No module holds a
random state. A call with `key` is a training call (dropout, LayerDrop, SpecAugment), a call without it is an
evaluation. `layers.py` has the layers, and the types `Update` and `Residual`: a sub-layer gives an update,
and the residual stream takes it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.layers import ACTIVATIONS, ConvLayer, Dense, LayerNorm, Residual, Update, computing
from flax_wavlm.models.masking import mask_frames, spec_augment
from flax_wavlm.models.parameters import Params, merge, split
from flax_wavlm.ops.attention.api import Attend, pad_frames, prepare
from flax_wavlm.ops.attention.choice import AttentionSpec
from flax_wavlm.ops.dropout import dropout
from flax_wavlm.ops.gates.api import gates
from flax_wavlm.ops.positional_conv.api import grouped_conv

Array = jax.Array


# --- Section III-A: the convolutional feature encoder -------------------------------------------------------


class FeatureEncoder(nnx.Module):
    """Waveform to frames, one each 20 ms at the released strides. Source: `WavLMFeatureEncoder`."""

    def __init__(self, config: WavLMConfig, rngs: nnx.Rngs):
        self.config = config
        for index in range(len(config.conv_dim)):
            setattr(self, f"conv{index}", ConvLayer(config, index, rngs))

    @jax.named_scope("feature_encoder")
    def __call__(self, input_values: Array, lengths: Array | None = None) -> Array:
        x = input_values[:, :, None]  # [B, N, 1]
        for index in range(len(self.config.conv_dim)):
            x = getattr(self, f"conv{index}")(x, lengths)
        return x  # [B, T, C]


class FeatureProjection(nnx.Module):
    """Frames to the hidden size. Source: `WavLMFeatureProjection`."""

    def __init__(self, config: WavLMConfig, rngs: nnx.Rngs):
        size_in = config.conv_dim[-1]
        bound = math.sqrt(1 / size_in)
        self.norm = LayerNorm(size_in, config.layer_norm_eps, rngs, config.dtype)
        self.projection = Dense(size_in, config.hidden_size, config, rngs)
        for parameter in (self.projection.kernel, self.projection.bias):
            assert parameter is not None
            value = jax.random.uniform(rngs.params(), parameter.shape, minval=-bound, maxval=bound)
            parameter.set_value(value)

    @jax.named_scope("feature_projection")
    def __call__(self, x: Array) -> Array:  # [B, T, C]
        return self.projection(self.norm(x))  # [B, T, D]


# --- Section III-A: the convolution-based relative positions ------------------------------------------------


class PositionalConv(nnx.Module):
    """Convolutional positions, weight-normed for each tap. Source: `WavLMPositionalConvEmbedding`.

    `direction` [taps, D / groups, D] and `magnitude` [taps] are torch's weight_v and weight_g.
    """

    def __init__(self, config: WavLMConfig, rngs: nnx.Rngs):
        taps, size = config.num_conv_pos_embeddings, config.hidden_size
        shape = (taps, size // config.num_conv_pos_embedding_groups, size)
        scale = 2 * math.sqrt(1 / (taps * size))
        direction = scale * jax.random.normal(rngs.params(), shape)
        self.config = config
        self.direction = nnx.Param(direction)
        self.magnitude = nnx.Param(jnp.sqrt(jnp.sum(jnp.square(direction), axis=(1, 2))))
        self.bias = nnx.Param(jnp.zeros(size))

    @jax.named_scope("positional_conv")
    def __call__(self, x: Array) -> Array:  # [B, T, D]
        direction = self.direction[...]
        norm = jnp.sqrt(jnp.sum(jnp.square(direction), axis=(1, 2), keepdims=True))
        kernel = direction * (self.magnitude[:, None, None] / norm)
        dtype = jnp.dtype(self.config.dtype)
        x = grouped_conv(x.astype(dtype), kernel.astype(dtype), self.config.matmul_precision)
        x = x + self.bias[...].astype(dtype)
        return ACTIVATIONS[self.config.feat_extract_activation](x)


# --- Section III-B: attention with a gated relative position bias -------------------------------------------


def relative_buckets(frames: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance key - query, for distances -(frames - 1) ... frames - 1.

    Half of the buckets for each direction; in each, half for one distance apiece and half for distances in
    a logarithmic scale up to `max_distance` (the paper's equation 6). Returns [2 * frames - 1] int32.
    Source: `WavLMAttention._relative_positions_bucket`, in float32 as there.
    """
    distance = np.arange(-(frames - 1), frames)
    half = num_buckets // 2
    exact = half // 2
    steps = np.log(np.maximum(np.abs(distance), 1).astype(np.float32) / np.float32(exact))
    steps = steps / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum((np.float32(exact) + steps).astype(np.int32), half - 1)
    near = np.abs(distance).astype(np.int32)
    return np.where(near < exact, near, far) + np.where(distance > 0, half, 0).astype(np.int32)


def attention_spec(config: WavLMConfig) -> AttentionSpec:
    """The part of a configuration that attention must know."""
    return AttentionSpec(
        implementation=config.attention,
        dtype=config.dtype,
        head_size=config.hidden_size // config.num_attention_heads,
        dropout=config.attention_dropout,
        precision=config.matmul_precision,
    )


class Attention(nnx.Module):
    """Self-attention whose position bias is gated by the attention's input. Source: `WavLMAttention`.

    The bias itself is shared by all layers, and part of `attend`.
    """

    def __init__(self, config: WavLMConfig, rngs: nnx.Rngs):
        size, heads = config.hidden_size, config.num_attention_heads
        self.config = config
        self.qkv = Dense(size, (3, size), config, rngs)
        self.out = Dense(size, size, config, rngs)
        self.gate = Dense(size // heads, 8, config, rngs)
        self.gate_const = nnx.Param(jnp.ones(heads))

    @jax.named_scope("attention")
    def __call__(self, x: Array, attend: Attend, key: Array | None) -> Update:  # [B, T, D]
        config = self.config
        batch, time, size = x.shape
        heads = config.num_attention_heads
        x = x.astype(config.dtype)
        x, gate = gates(x, *self.gate.parameters(), self.gate_const[...], config.matmul_precision)
        qkv, bias = (
            y.reshape(*y.shape[:-1], heads, size // heads) for y in self.qkv.update(x).parts()
        )  # [B, T, 3, H, K], [3, H, K]
        return self.out.update(attend(qkv, bias, gate, key).reshape(batch, time, size))


class FeedForward(nnx.Module):
    """Source: `WavLMFeedForward`."""

    def __init__(self, config: WavLMConfig, rngs: nnx.Rngs):
        self.config = config
        self.up = Dense(config.hidden_size, config.intermediate_size, config, rngs)
        self.down = Dense(config.intermediate_size, config.hidden_size, config, rngs)

    @jax.named_scope("feed_forward")
    def __call__(self, x: Array, key: Array | None) -> Update:  # [B, T, D]
        def down(x: Array) -> Update:  # [B, T, F]
            x = ACTIVATIONS[self.config.hidden_act](x)
            return self.down.update(dropout(x, self.config.activation_dropout, key))

        # The loop over layers keeps one array of width F for the backward pass: the input of the activation.
        return jax.checkpoint(down, prevent_cse=False)(self.up(x))


class EncoderLayer(nnx.Module):
    """One transformer layer. Source: `WavLMEncoderLayer`, `WavLMEncoderLayerStableLayerNorm`."""

    def __init__(self, config: WavLMConfig, rngs: nnx.Rngs):
        self.config = config
        # Where a norm's result is the residual stream, it stays float32.
        dtype = config.dtype if config.do_stable_layer_norm else "float32"
        self.attention = Attention(config, rngs)
        self.attention_norm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs, dtype)
        self.feed_forward = FeedForward(config, rngs)
        self.final_norm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs, dtype)

    def __call__(self, residual: Residual, attend: Attend, key: Array | None) -> Residual:
        attention_key, out_key, activation_key, down_key = (
            (None,) * 4 if key is None else jax.random.split(key, 4)
        )
        if self.config.do_stable_layer_norm:  # norms first: wavlm-large
            residual, y = self.attention_norm.of(residual)
            residual = residual.plus(self.drop(self.attention(y, attend, attention_key), out_key))
            residual, y = self.final_norm.of(residual)
            return residual.plus(self.drop(self.feed_forward(y, activation_key), down_key))
        # Norms last: wavlm-base.
        residual = residual.plus(self.drop(self.attention(residual.x, attend, attention_key), out_key))
        residual = Residual(self.attention_norm(residual.total()))
        residual = residual.plus(self.drop(self.feed_forward(residual.x, activation_key), down_key))
        return Residual(self.final_norm(residual.total()))

    def drop(self, update: Update, key: Array | None) -> Update:
        """Dropout of an update, whose bias is added first, unless the next norm is to do that."""
        if self.leaves_bias(key):
            return update
        return Update(dropout(update.with_bias_added(), self.config.hidden_dropout, key))

    def leaves_bias(self, key: Array | None) -> bool:
        """Whether the next norm adds the biases. It cannot where dropout is applied to the sum with them."""
        return self.config.do_stable_layer_norm and (key is None or self.config.hidden_dropout == 0)

    def first(self, x: Array, key: Array | None) -> Residual:
        """The input [B, T, D] of the first layer, with the parts that every layer gives: a loop's carry."""
        if not self.config.do_stable_layer_norm:
            return Residual(x)
        bias = jnp.zeros(x.shape[-1]) if self.leaves_bias(key) else None
        return Residual(x, Update(jnp.zeros(x.shape, self.config.dtype), bias))


# --- The transformer encoder --------------------------------------------------------------------------------


def stack_layers(config: WavLMConfig, rngs: nnx.Rngs) -> EncoderLayer:
    """All encoder layers as one, every parameter with a leading axis [L]."""

    def one(key: Array) -> Params:
        return split(EncoderLayer(config, nnx.Rngs(key)))[1]

    graphdef, _ = nnx.split(nnx.eval_shape(lambda: EncoderLayer(config, nnx.Rngs(0))))
    return merge(graphdef, jax.vmap(one)(jax.random.split(rngs.params(), config.num_hidden_layers)))


def cast_kernels(params: Params, dtype: str) -> Params:
    """Kernels in the type that is computed in: cast once, and not in every layer."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf, params
    )


class Encoder(nnx.Module):
    """Positions and the transformer layers. Source: `WavLMEncoder`, `WavLMEncoderStableLayerNorm`."""

    def __init__(self, config: WavLMConfig, rngs: nnx.Rngs):
        self.config = config
        self.positions = PositionalConv(config, rngs)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs)
        init = nnx.initializers.normal(config.initializer_range)
        # One table for all layers; checkpoints keep it in layer 0.
        self.bucket_bias = nnx.Param(init(rngs.params(), (config.num_buckets, config.num_attention_heads)))
        self.layers = stack_layers(config, rngs)

    def __call__(
        self, x: Array, valid: Array | None, key: Array | None, with_states: bool
    ) -> tuple[Array, Array | None]:
        """The last hidden states [B, T, D], and all [L + 1, B, T, D] if asked for, else None.

        Args: x [B, T, D] float32; valid [B, T] bool, the frames that are a clip's; None: all.
        """
        config, time = self.config, x.shape[1]
        x, valid = pad_frames(x, valid)
        if valid is not None:
            x = jnp.where(valid[:, :, None], x, 0)
        x = x + self.positions(x)
        if not config.do_stable_layer_norm:
            x = self.norm(x)
        layers_key = None
        if key is not None:
            input_key, layers_key = jax.random.split(key)
            x = dropout(x, config.hidden_dropout, input_key)
        residual, states = self.run_layers(x, valid, layers_key, with_states)
        y = self.norm.of(residual)[1] if config.do_stable_layer_norm else residual.x
        if states is not None:
            states = jnp.concatenate([x[None], states])[:, :, :time]
        return y[:, :time], states

    def run_layers(
        self, x: Array, valid: Array | None, key: Array | None, with_states: bool
    ) -> tuple[Residual, Array | None]:
        """The layers as one loop: the stream behind the last, and if asked for each layer's output."""
        config = self.config
        count = config.num_hidden_layers
        keys = None if key is None else jax.random.split(key, count)
        table = self.position_table(x.shape[1])
        attend = prepare(attention_spec(config), table, valid, len(x), training=key is not None)
        graphdef, stacked = split(self.layers)
        stacked = cast_kernels(stacked, config.dtype)

        def body(
            residual: Residual, layer: tuple[Params, Array, Array | None]
        ) -> tuple[Residual, Array | None]:
            params, index, key = layer
            if key is None:
                new = merge(graphdef, params)(residual, attend, None)
            else:
                # LayerDrop (Fan et al. 2019) skips a layer. It never skips layer 0, since in the reference
                # that layer makes the position bias.
                drop_key, key = jax.random.split(key)
                new = merge(graphdef, params)(residual, attend, key)
                keep = (jax.random.uniform(drop_key) >= config.layerdrop) | (index == 0)
                new = jax.tree.map(lambda new, old: jnp.where(keep, new, old), new, residual)
            return new, new.total() if with_states else None

        if config.remat != "none":
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            policy = dots if config.remat == "dots" else None
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        first = self.layers.first(x, key)
        return jax.lax.scan(body, first, (stacked, jnp.arange(count), keys), unroll=self.unroll())

    def unroll(self) -> int:
        """Layers in a round of the loop over them.

        On a GPU all: the program takes longer to compile, but a loop copies what it keeps for the backward
        pass, and slices of stacked weights, for every product of a library.
        """
        count = self.config.num_hidden_layers
        if self.config.unroll == 0:
            return count if jax.default_backend() == "gpu" else 1
        return min(self.config.unroll, count)

    def position_table(self, time: int) -> Array:
        """The bias of each head before gating, by distance key - query: [H, 2T - 1]."""
        config = self.config
        buckets = relative_buckets(time, config.num_buckets, config.max_bucket_distance)
        return self.bucket_bias[...][buckets].T


# --- The whole ----------------------------------------------------------------------------------------------


class EncoderOutput(NamedTuple):
    """What the encoder makes of a batch."""

    last_hidden_state: Array  # [B, T, D] float32
    frame_lengths: Array  # [B] int32, the valid frames of each row
    hidden_states: Array | None  # [L + 1, B, T, D] float32, where they were asked for


class WavLM(nnx.Module):
    """The pretrained part: waveform to hidden states. Source: `WavLMModel`."""

    def __init__(self, config: WavLMConfig, rngs: nnx.Rngs):
        self.config = config
        self.feature_encoder = FeatureEncoder(config, rngs)
        self.feature_projection = FeatureProjection(config, rngs)
        self.mask_embedding = nnx.Param(jax.random.uniform(rngs.params(), (config.hidden_size,)))
        self.encoder = Encoder(config, rngs)

    def __call__(
        self,
        input_values: Array,
        lengths: Array | None = None,
        *,
        key: Array | None = None,
        mask_time: Array | None = None,
        with_states: bool = False,
    ) -> EncoderOutput:
        """The hidden states of a batch of waveforms. Arguments as for `flax_wavlm.models.heads.WavLMForCTC`.

        `with_states`: all hidden states too, the input of the first layer and the output of every layer.
        """
        with computing(self.config):
            features = self.feature_encoder(input_values, lengths)
        return self.encode(features, lengths, key=key, mask_time=mask_time, with_states=with_states)

    def encode(
        self,
        features: Array,
        lengths: Array | None,
        *,
        key: Array | None = None,
        mask_time: Array | None = None,
        with_states: bool = False,
    ) -> EncoderOutput:
        """`__call__` from the feature encoder's output [B, T, C] on; lengths [B] are still samples."""
        config = self.config
        batch, time, _ = features.shape
        valid = None
        frame_lengths = jnp.full(batch, time, jnp.int32)
        if lengths is not None:
            frame_lengths = jnp.minimum(config.frame_count(jnp.asarray(lengths, jnp.int32)), time)
            valid = jnp.arange(time) < frame_lengths[:, None]
        with computing(config):
            x = self.feature_projection(features).astype(jnp.float32)  # the residual stream stays float32
            encoder_key, embedding = None, self.mask_embedding[...]
            if key is not None:
                dropout_key, mask_key, encoder_key = jax.random.split(key, 3)
                x = dropout(x, config.feat_proj_dropout, dropout_key)
                x = spec_augment(config, x, frame_lengths, embedding, mask_time=mask_time, key=mask_key)
            elif mask_time is not None:
                x = mask_frames(x, mask_time, embedding)
            last, states = self.encoder(x, valid, encoder_key, with_states)
        return EncoderOutput(last, frame_lengths, states)
