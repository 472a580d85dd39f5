"""WavLM with a CTC head, read from top to bottom: waveform to frames, frames to states, states to logits.

Chen et al. 2022, "WavLM: Large-Scale Self-Supervised Pre-Training for Full Stack Speech Processing"
(arXiv:2110.13900); equal to `transformers`' PyTorch WavLM, whose config names it uses.

Letters of shapes:
    B clips, N samples, T frames, C channels of the feature encoder, D hidden size, F feed-forward size,
    H heads, K head size (D / H), L layers, V vocabulary.

Modules are Flax NNX; what trains them is functional. `split` turns a model into a graph definition and a
plain nested dict of arrays, `merge` puts them together again, and no module holds a random state: a call
with `key` is a training call (dropout, LayerDrop, SpecAugment), a call without is an evaluation.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.layers import ACTIVATIONS, Branch, Dense, LayerNorm
from flax_wavlm.models.masking import span_mask
from flax_wavlm.models.parameters import Params, merge, split
from flax_wavlm.ops.attention.api import Attend, pad_frames, prepare
from flax_wavlm.ops.dense import add_bias
from flax_wavlm.ops.dropout import dropout
from flax_wavlm.ops.first_conv.api import conv_norm_gelu
from flax_wavlm.ops.gates.api import gates
from flax_wavlm.ops.positional_conv import grouped_conv

Array = jax.Array


# --- Waveform to frames -------------------------------------------------------------------------------------


class ConvLayer(nnx.Module):
    """Strided convolution, norm (or none), activation. Source: `WavLMLayerNormConvLayer` and its siblings."""

    def __init__(self, config: WavLMConfig, index: int, rngs: nnx.Rngs):
        size_in = config.conv_dim[index - 1] if index else 1
        size_out = config.conv_dim[index]
        self.config, self.index = config, index
        self.conv = nnx.Conv(
            size_in,
            size_out,
            kernel_size=config.conv_kernel[index],
            strides=config.conv_stride[index],
            padding="VALID",
            use_bias=config.conv_bias,
            dtype=jnp.dtype(config.dtype),
            kernel_init=nnx.initializers.he_normal(),
            rngs=rngs,
        )
        if config.feat_extract_norm == "layer" or index == 0:
            self.norm = LayerNorm(size_out, 1e-5, rngs)  # GroupNorm's parameters have the same shape

    def __call__(self, x: Array, lengths: Array | None) -> Array:  # [B, T', C'], [B] samples
        activation = self.config.feat_extract_activation
        norms = self.config.feat_extract_norm == "layer"
        at_once = norms and activation == "gelu"
        if at_once and self.index == 0:
            return self.first(x)
        x = self.conv(x)
        if at_once:
            return self.norm.gelu(x, self.config.dtype)
        if norms:
            x = self.norm(x)
        elif self.index == 0:
            x = self.group_norm(x, lengths)
        return ACTIVATIONS[activation](x).astype(self.config.dtype)

    def first(self, x: Array) -> Array:  # [B, N, 1]
        """Convolution, norm and activation at once, as what is between them is the largest array of all."""
        config, conv = self.config, self.conv
        dtype = jnp.dtype(config.dtype)
        taps = conv.kernel[...].astype(dtype)[:, 0]
        conv_bias = jnp.zeros(taps.shape[1]) if conv.bias is None else conv.bias[...]
        return conv_norm_gelu(
            x[:, :, 0].astype(dtype),
            taps,
            conv_bias,
            *self.norm.parameters(),
            config.conv_stride[0],
            self.norm.epsilon,
            dtype,
            config.matmul_precision,
        )

    def group_norm(self, x: Array, lengths: Array | None) -> Array:
        """GroupNorm with one channel a group: every channel over time, biased variance, in float32."""
        x = x.astype(jnp.float32)
        where = None
        if self.config.masked_group_norm and lengths is not None:
            frames = jnp.maximum(self.config.frame_count(lengths, layers=1), 1)
            where = (jnp.arange(x.shape[1]) < frames[:, None])[:, :, None]  # [B, T', 1]
        mean = jnp.mean(x, axis=1, keepdims=True, where=where)
        variance = jnp.mean(jnp.square(x - mean), axis=1, keepdims=True, where=where)
        x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
        scale, bias = self.norm.parameters()
        return x * scale + bias


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


# --- Frames to states ---------------------------------------------------------------------------------------


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


class Attention(nnx.Module):
    """Self-attention with a gated relative position bias (the paper's section III-B).

    Source: `WavLMAttention`.
    """

    def __init__(self, config: WavLMConfig, rngs: nnx.Rngs):
        size, heads = config.hidden_size, config.num_attention_heads
        self.config = config
        self.qkv = Dense(size, (3, size), config, rngs)
        self.out = Dense(size, size, config, rngs)
        self.gate = Dense(size // heads, 8, config, rngs)
        self.gate_const = nnx.Param(jnp.ones(heads))

    @jax.named_scope("attention")
    def __call__(self, x: Array, attend: Attend, key: Array | None) -> Branch:  # [B, T, D]
        config = self.config
        batch, time, size = x.shape
        heads = config.num_attention_heads
        x = x.astype(config.dtype)
        x, gate = gates(x, *self.gate.parameters(), self.gate_const[...], config.matmul_precision)
        qkv, bias = (y.reshape(*y.shape[:-1], heads, size // heads) for y in self.qkv.parts(x))
        return self.out.parts(attend(qkv, bias, gate, key).reshape(batch, time, size))


class FeedForward(nnx.Module):
    """Source: `WavLMFeedForward`."""

    def __init__(self, config: WavLMConfig, rngs: nnx.Rngs):
        self.config = config
        self.up = Dense(config.hidden_size, config.intermediate_size, config, rngs)
        self.down = Dense(config.intermediate_size, config.hidden_size, config, rngs)

    @jax.named_scope("feed_forward")
    def __call__(self, x: Array, key: Array | None) -> Branch:  # [B, T, D]
        def down(x: Array) -> Branch:
            x = ACTIVATIONS[self.config.hidden_act](x)
            return self.down.parts(dropout(x, self.config.activation_dropout, key))

        # Of what is F wide a loop over layers keeps only the activation's input for the backward pass.
        return jax.checkpoint(down, prevent_cse=False)(self.up(x))  # [B, T, F] between


Stream = tuple[Array, ...]
"""The state between layers [B, T, D]. Where norms come first, it is the sum of that and a `Branch`, which the
next norm makes: that saves passes over memory for the sums alone, and for the bias's gradient."""


def total(stream: Stream) -> Array:
    """The state as one array."""
    x, *branch = stream
    return x + sum(branch)


class EncoderLayer(nnx.Module):
    """One transformer layer. Source: `WavLMEncoderLayer`, `WavLMEncoderLayerStableLayerNorm`."""

    def __init__(self, config: WavLMConfig, rngs: nnx.Rngs):
        self.config = config
        # Where a norm is the residual stream, the result stays float32.
        dtype = config.dtype if config.do_stable_layer_norm else "float32"
        self.attention = Attention(config, rngs)
        self.attention_norm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs, dtype)
        self.feed_forward = FeedForward(config, rngs)
        self.final_norm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs, dtype)

    def __call__(self, stream: Stream, attend: Attend, key: Array | None) -> Stream:
        """One state to the next, in as many parts."""
        x, *branch = stream
        keys = [None] * 4 if key is None else list(jax.random.split(key, 4))

        def mix(x: Array) -> Branch:
            return self.drop(self.attention(x, attend, keys[0]), keys[1])

        def feed(x: Array) -> Branch:
            return self.drop(self.feed_forward(x, keys[2]), keys[3])

        if not self.config.do_stable_layer_norm:
            x = self.attention_norm(total((x, *mix(x))))
            return (self.final_norm(total((x, *feed(x)))),)
        x, y = self.attention_norm.after(x, *branch)
        x, y = self.final_norm.after(x, *mix(y))
        return x, *feed(y)

    def drop(self, branch: Branch, key: Array | None) -> Branch:
        """Dropout of a branch's output, its bias added unless the next norm is to do that."""
        if self.leaves_bias(key):
            return branch
        return (dropout(add_bias(*branch), self.config.hidden_dropout, key),)

    def leaves_bias(self, key: Array | None) -> bool:
        """Whether norms add the biases: not where dropout is of the sum with them."""
        return self.config.do_stable_layer_norm and (key is None or self.config.hidden_dropout == 0)


def stack_layers(config: WavLMConfig, rngs: nnx.Rngs) -> EncoderLayer:
    """All encoder layers as one, every parameter with a leading axis [L]."""

    def one(key: Array) -> Params:
        return split(EncoderLayer(config, nnx.Rngs(key)))[1]

    graphdef, _ = nnx.split(nnx.eval_shape(lambda: EncoderLayer(config, nnx.Rngs(0))))
    return merge(graphdef, jax.vmap(one)(jax.random.split(rngs.params(), config.num_hidden_layers)))


def cast_kernels(params: Params, dtype: str) -> Params:
    """Kernels in the type in which they are computed: once, not in every layer."""
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
    ) -> tuple[Array, Array | None]:  # [B, T, D], [B, T]
        config = self.config
        count = config.num_hidden_layers
        time = x.shape[1]
        x, valid = pad_frames(x, valid)
        if valid is not None:
            x = jnp.where(valid[:, :, None], x, 0)
        x = x + self.positions(x)
        if not config.do_stable_layer_norm:
            x = self.norm(x)
        keys = None
        if key is not None:
            input_key, layers_key = jax.random.split(key)
            x = dropout(x, config.hidden_dropout, input_key)
            keys = jax.random.split(layers_key, count)
        table = self.position_table(x.shape[1])
        attend = prepare(config, table, valid, len(x), training=key is not None)
        graphdef, stacked = split(self.layers)
        stacked = cast_kernels(stacked, config.dtype)

        def body(stream: Stream, layer: tuple[Params, Array, Array | None]) -> tuple[Stream, Array | None]:
            params, index, key = layer
            if key is None:
                new = merge(graphdef, params)(stream, attend, None)
            else:
                # LayerDrop (Fan et al. 2019): a dropped layer is skipped, and layer 0 never is, since the
                # reference's makes the position bias.
                drop_key, key = jax.random.split(key)
                new = merge(graphdef, params)(stream, attend, key)
                keep = (jax.random.uniform(drop_key) >= config.layerdrop) | (index == 0)
                new = jax.tree.map(lambda new, old: jnp.where(keep, new, old), new, stream)
            return new, total(new) if with_states else None

        if config.remat != "none":
            policy = (
                jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
            )
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        first = x
        stream: Stream = (x,)  # of as many parts as that of every layer
        if config.do_stable_layer_norm:
            stream += (jnp.zeros(x.shape, config.dtype),)
        if self.layers.leaves_bias(key):
            stream += (jnp.zeros_like(stacked["feed_forward"]["down"]["bias"][0]),)
        stream, states = jax.lax.scan(body, stream, (stacked, jnp.arange(count), keys), unroll=self.unroll())
        x, *branch = stream
        if branch:
            _, x = self.norm.after(x, *branch)
        if states is not None:
            states = jnp.concatenate([first[None], states])[:, :, :time]  # [L + 1, B, T, D]
        return x[:, :time], states

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
    ) -> tuple[Array, Array, Array | None]:
        """Last hidden states [B, T, D] float32, valid frames [B] int32, all states [L + 1, B, T, D] or None.

        Arguments as `WavLMForCTC.__call__`.
        """
        with jax.default_matmul_precision(self.config.matmul_precision):
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
    ) -> tuple[Array, Array, Array | None]:
        """From the feature encoder's output [B, T, C] on; lengths [B] are still samples."""
        config = self.config
        batch, time, _ = features.shape
        valid = None
        frames = jnp.full(batch, time, jnp.int32)
        if lengths is not None:
            frames = jnp.minimum(config.frame_count(jnp.asarray(lengths, jnp.int32)), time)
            valid = jnp.arange(time) < frames[:, None]
        x = self.feature_projection(features).astype(jnp.float32)  # the residual stream stays float32
        encoder_key = None
        if key is not None:
            dropout_key, mask_key, encoder_key = jax.random.split(key, 3)
            x = dropout(x, config.feat_proj_dropout, dropout_key)
            x = self.spec_augment(x, frames, mask_time, mask_key)
        elif mask_time is not None:
            x = self.mask_frames(x, mask_time)
        x, states = self.encoder(x, valid, encoder_key, with_states)
        return x, frames, states

    def mask_frames(self, x: Array, mask: Array) -> Array:
        return jnp.where(mask[:, :, None], self.mask_embedding[...], x)

    def spec_augment(self, x: Array, frames: Array, mask_time: Array | None, key: Array) -> Array:
        """Time spans become the mask embedding, feature spans 0. Source: `WavLMModel._mask_hidden_states`."""
        config = self.config
        batch, time, size = x.shape
        time_key, feature_key = jax.random.split(key)
        if mask_time is None and config.apply_spec_augment and config.mask_time_prob > 0:
            mask_time = span_mask(
                time_key,
                frames,
                time,
                share=config.mask_time_prob,
                span=config.mask_time_length,
                min_spans=config.mask_time_min_masks,
            )
        if mask_time is not None:
            x = self.mask_frames(x, mask_time)
        if config.apply_spec_augment and config.mask_feature_prob > 0:
            mask = span_mask(
                feature_key,
                jnp.full(batch, size, jnp.int32),
                size,
                share=config.mask_feature_prob,
                span=config.mask_feature_length,
                min_spans=config.mask_feature_min_masks,
            )
            x = jnp.where(mask[:, None, :], 0, x)
        return x
