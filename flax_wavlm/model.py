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

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flax_wavlm import attention, ops
from flax_wavlm.config import WavLMConfig
from flax_wavlm.dropout import dropout

Array = jax.Array
Params = dict[str, Any]  # nested; the leaves are arrays
Branch = tuple[Array, ...]  # an output [B, T, D], perhaps with a bias [D] still to be added to it

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": ops.gelu,
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "selu": jax.nn.selu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """The model's structure, and its parameters as a nested dict of arrays."""
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


@functools.lru_cache(maxsize=32)
def structure(config: WavLMConfig) -> tuple[nnx.GraphDef, Params]:
    """`split` of the model of a configuration, with shapes in place of its arrays."""
    return split(nnx.eval_shape(lambda: WavLMForCTC(config, nnx.Rngs(0))))


def merge(graphdef: nnx.GraphDef, params: Params) -> Any:
    """The model of that structure with those parameters; free of cost under jit."""
    return nnx.merge(graphdef, nnx.State(params))


class LayerNorm(nnx.LayerNorm):
    """LayerNorm over the last axis; the result in `dtype`."""

    def __init__(self, size: int, eps: float, rngs: nnx.Rngs, dtype: str = "float32"):
        super().__init__(size, epsilon=eps, dtype=jnp.dtype(dtype), rngs=rngs)

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return ops.layer_norm(x, *self.parameters(), self.epsilon, self.dtype)

    def after(self, x: Array, *branch: Array) -> tuple[Array, Array]:
        """The residual stream `x` with a branch's output added to it, and the norm of that."""
        return ops.residual_norm(x, branch, *self.parameters(), self.epsilon, self.dtype)

    def gelu(self, x: Array, dtype: str) -> Array:
        """GELU of the norm, in float32; the result in `dtype`."""
        return ops.norm_gelu(x, *self.parameters(), self.epsilon, jnp.dtype(dtype))

    def parameters(self) -> tuple[Array, Array]:
        assert self.scale is not None
        assert self.bias is not None
        return self.scale[...], self.bias[...]


class Dense(nnx.LinearGeneral):
    """A dense map from the last axis to one axis (or several), initialised as the reference's."""

    def __init__(self, size_in: int, size_out: int | tuple[int, ...], config: WavLMConfig, rngs: nnx.Rngs):
        init = nnx.initializers.normal(config.initializer_range)
        super().__init__(size_in, size_out, dtype=jnp.dtype(config.dtype), kernel_init=init, rngs=rngs)
        self.matmul_precision = config.matmul_precision

    def __call__(self, x: Array, out_sharding: Any = None) -> Array:  # [..., I] -> [..., *O]
        return ops.add_bias(*self.parts(x))

    def parts(self, x: Array) -> Branch:  # [..., I] -> [..., *O], [*O]
        """The product, and the bias still to be added to it."""
        kernel, bias = self.parameters()
        return ops.product(x.astype(self.dtype), kernel, self.matmul_precision), bias

    def parameters(self) -> tuple[Array, Array]:
        """Kernel, in the type in which it is computed, and bias."""
        assert self.bias is not None
        return self.kernel[...].astype(self.dtype), self.bias[...]


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
        return ops.conv_norm_gelu(
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


# --- SpecAugment --------------------------------------------------------------------------------------------


def span_mask(key: Array, lengths: Array, size: int, *, share: float, span: int, min_spans: int) -> Array:
    """SpecAugment's mask over one axis (Park et al. 2019; wav2vec 2.0, appendix A.2), made on the device.

    Each row gets `share * length / span` spans, rounded up or down at random, at least `min_spans`, with
    distinct starts drawn uniformly; spans may overlap. A row shorter than a span gets none.

    Args:
        lengths: [B] int, the valid length of each row.
        size: the length of the axis.
    Returns: [B, size] bool, True where masked. Source: `_compute_mask_indices`, whose rounding is one draw
        for the whole batch; here it is one for each row.
    """
    round_key, start_key = jax.random.split(key)
    noise = jax.random.uniform(round_key, lengths.shape)
    count = jnp.floor(share * lengths / span + noise).astype(jnp.int32)
    count = jnp.minimum(jnp.maximum(count, min_spans), size // span)
    starts_available = jnp.maximum(lengths - (span - 1), 0)
    count = jnp.minimum(count, starts_available)

    # The `count` positions with the smallest random numbers are a draw without replacement.
    order = jax.random.uniform(start_key, (lengths.shape[0], size))
    order = jnp.where(jnp.arange(size) < starts_available[:, None], order, 2.0)
    rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
    started = jnp.cumsum(rank < count[:, None], axis=1)  # spans begun up to and including each position
    ended = jnp.pad(started, ((0, 0), (span, 0)))[:, :size]
    return started > ended


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
        x = ops.grouped_conv(x.astype(dtype), kernel.astype(dtype), self.config.matmul_precision)
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
    def __call__(self, x: Array, attend: attention.Attend, key: Array | None) -> Branch:  # [B, T, D]
        config = self.config
        batch, time, size = x.shape
        heads = config.num_attention_heads
        x = x.astype(config.dtype)
        x, gates = ops.gates(x, *self.gate.parameters(), self.gate_const[...], config.matmul_precision)
        qkv, bias = (y.reshape(*y.shape[:-1], heads, size // heads) for y in self.qkv.parts(x))
        return self.out.parts(attend(qkv, bias, gates, key).reshape(batch, time, size))


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

    def __call__(self, stream: Stream, attend: attention.Attend, key: Array | None) -> Stream:
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
        return (dropout(ops.add_bias(*branch), self.config.hidden_dropout, key),)

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
        x, valid = attention.pad_frames(x, valid)
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
        attend = attention.prepare(config, table, valid, len(x), training=key is not None)
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


# --- States to logits ---------------------------------------------------------------------------------------


class WavLMForCTC(nnx.Module):
    """WavLM with a linear CTC head. Source: `transformers.WavLMForCTC`.

    Build it with `WavLMForCTC(config, nnx.Rngs(seed))` for random weights, initialised as the reference's
    are, or with `from_pretrained`.
    """

    def __init__(self, config: WavLMConfig, rngs: nnx.Rngs):
        self.config = config
        self.wavlm = WavLM(config, rngs)
        self.head = Dense(config.hidden_size, config.vocab_size, config, rngs)

    def __call__(
        self,
        input_values: Array,
        lengths: Array | None = None,
        *,
        key: Array | None = None,
        mask_time: Array | None = None,
        with_states: bool = False,
    ) -> tuple[Array, ...]:
        """Logits of each frame.

        Args:
            input_values: [B, N] float, what the checkpoint's Hugging Face feature extractor would give.
            lengths: [B] int, the real samples of each row; what follows them is padding and is neither
                attended to nor masked. None: every row is full (transformers without an attention mask).
            key: a key of jax.random makes it a training call, with dropout, LayerDrop and SpecAugment.
            mask_time: [B, T] bool, frames to replace by the mask embedding, in place of SpecAugment's draw.
            with_states: also return all hidden states.
        Returns:
            logits [B, T, V] float32 and frames [B] int32, the valid frames of each row; with `with_states`
            also [L + 1, B, T, D] float32: the input of the first layer and the output of every layer.
        Raises:
            ValueError: the rows are shorter than one frame (`config.min_samples`).
        """
        config = self.config
        if input_values.ndim != 2 or input_values.shape[1] < config.min_samples:
            raise ValueError(
                f"input_values has shape {input_values.shape}, expected [clips, samples] with at least "
                f"{config.min_samples} samples, one frame of the feature encoder"
            )
        with jax.default_matmul_precision(config.matmul_precision):
            features = self.wavlm.feature_encoder(input_values, lengths)
        return self.from_features(features, lengths, key=key, mask_time=mask_time, with_states=with_states)

    def from_features(
        self,
        features: Array,
        lengths: Array | None = None,
        *,
        key: Array | None = None,
        mask_time: Array | None = None,
        with_states: bool = False,
    ) -> tuple[Array, ...]:
        """`__call__` from the feature encoder's output [B, T, C] on; lengths [B] are still samples."""
        config = self.config
        head_key = None
        if key is not None:
            key, head_key = jax.random.split(key)
        with jax.default_matmul_precision(config.matmul_precision):
            x, frames, states = self.wavlm.encode(
                features, lengths, key=key, mask_time=mask_time, with_states=with_states
            )
            logits = self.head(dropout(x, config.final_dropout, head_key)).astype(jnp.float32)
        return (logits, frames) if states is None else (logits, frames, states)

    @classmethod
    def from_pretrained(cls, source: str | Path, **overrides: Any) -> WavLMForCTC:
        """A model from a Hugging Face folder or hub id, Microsoft's .pt, or torchaudio's state dict.

        `overrides` replace fields of its WavLMConfig, e.g. `dtype="bfloat16"`. See `flax_wavlm.port.load`.
        """
        from flax_wavlm import port

        return port.load(source, overrides=overrides)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors; `transformers.WavLMForCTC.from_pretrained` loads them."""
        from flax_wavlm import port

        port.save(self, Path(folder))
