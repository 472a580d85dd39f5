"""Operations with gradients of their own: where the automatic one is slow, or keeps too much for later.

Each is checked against its definition in tests/test_ops.py. Letters of shapes as in model.py. `precision` is
that of float32 products, which a gradient of its own does not take from the context.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from flax_wavlm import fused_gates, fused_norm

Array = jax.Array


def _wide(x: Array) -> Array:
    """In float32, or as it is where it is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _by_platform(plainly: Any, on_cuda: Any, settings: tuple[Any, ...], *arrays: Array) -> Any:
    """Which of two forms is taken, by the platform compiled for: the only such place."""
    plainly, on_cuda = (functools.partial(form, *settings) for form in (plainly, on_cuda))
    return jax.lax.platform_dependent(*arrays, cuda=on_cuda, default=plainly)


def _fused_by_platform(plainly: Any, fused: Any, settings: tuple[Any, ...], *arrays: Array) -> Any:
    """`_by_platform` for a kernel through the first array's rows: without any, or in float64, plainly."""
    x, *others = arrays
    if x.ndim < 2 or x.size == 0 or any(array.dtype == jnp.float64 for array in (x, *others)):
        return plainly(*settings, *arrays)

    @jax.custom_batching.custom_vmap
    def either(*arrays: Array) -> tuple[Array, ...]:
        return _by_platform(plainly, fused, settings, *arrays)

    @either.def_vmap
    def vmapped(size: int, batched: list[bool], *arrays: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        """In plain operations: JAX has no batches of what is partitioned by hand."""
        axes = [0 if axis else None for axis in batched]
        results = jax.vmap(functools.partial(plainly, *settings), in_axes=axes)(*arrays)
        return results, (True,) * len(results)

    return either(*arrays)


# --- GELU ---------------------------------------------------------------------------------------------------


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """x times the normal distribution's function of x (Hendrycks & Gimpel 2016), computed in float32.

    By erf, as torch has it: `jax.nn.gelu` goes by erfc, which takes longer on a CPU. Keeps x alone.
    """
    wide = _wide(x)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    wide = _wide(x)
    density = jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2 * math.pi)
    return (((_normal_cdf(wide) + wide * density) * dy).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


# --- LayerNorm ----------------------------------------------------------------------------------------------

# Each in plain operations, and for CUDA in kernels of fused_norm.py.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(x: Array, scale: Array, bias: Array, eps: float, dtype: Any) -> Array:
    """LayerNorm over the last axis (Ba et al. 2016), in float32 whatever comes in; the result in `dtype`.

    Keeps x alone, where the automatic gradient keeps three arrays of its size.
    """
    (y,) = _fused_by_platform(_norm, fused_norm.forward, (eps, dtype), x, scale, bias)
    return y


def _layer_norm_forward(
    x: Array, scale: Array, bias: Array, eps: float, dtype: Any
) -> tuple[Array, tuple[Array, Array]]:
    return layer_norm(x, scale, bias, eps, dtype), (x, scale)


def _layer_norm_backward(eps: float, dtype: Any, saved: tuple[Array, Array], dy: Array) -> tuple[Array, ...]:
    return _fused_by_platform(_norm_gradient, fused_norm.backward, (eps, ()), *saved, dy)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def residual_norm(
    x: Array, branch: tuple[Array, ...], scale: Array, bias: Array, eps: float, dtype: Any
) -> tuple[Array, Array]:
    """A branch's output added to the residual stream `x`, and `layer_norm` of the sum.

    Args: x [..., D]; `branch`: delta [..., D], perhaps with a bias [D] still to be added; scale, bias [D].
    Returns: x + (delta + its bias) in the type of x, and the norm of that in `dtype`. Keeps the sum alone.
    """
    return _fused_by_platform(_residual_norm, fused_norm.forward, (eps, dtype), x, *branch, scale, bias)


def _residual_norm_forward(
    x: Array, branch: tuple[Array, ...], scale: Array, bias: Array, eps: float, dtype: Any
) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    total, y = residual_norm(x, branch, scale, bias, eps, dtype)
    types = tuple(jnp.zeros(0, part.dtype) for part in branch)  # of which nothing else is wanted
    return (total, y), (total, scale, types)


def _residual_norm_backward(
    eps: float, dtype: Any, saved: tuple[Any, ...], gradients: tuple[Array, Array]
) -> tuple[Any, ...]:
    total, scale, types = saved
    d_total, dy = gradients
    settings = eps, tuple(part.dtype for part in types)
    dx, *d_branch, d_scale, d_bias = _fused_by_platform(
        _norm_gradient, fused_norm.backward, settings, total, scale, dy, d_total
    )
    return dx, tuple(d_branch), d_scale, d_bias


residual_norm.defvjp(_residual_norm_forward, _residual_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def norm_gelu(x: Array, scale: Array, bias: Array, eps: float, dtype: Any) -> Array:
    """`gelu` of `layer_norm`, in float32; the result in `dtype`. Keeps x alone."""
    fused = functools.partial(fused_norm.forward, gelu=True)
    (y,) = _fused_by_platform(_norm_gelu, fused, (eps, dtype), x, scale, bias)
    return y


def _norm_gelu_forward(
    x: Array, scale: Array, bias: Array, eps: float, dtype: Any
) -> tuple[Array, tuple[Array, ...]]:
    return norm_gelu(x, scale, bias, eps, dtype), (x, scale, bias)


def _norm_gelu_backward(eps: float, dtype: Any, saved: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    x, scale, bias = saved
    normal, _ = _normal(x, eps)
    (d_norm,) = _gelu_backward(normal * scale + bias, dy)
    return _norm_gradient(eps, (), x, scale, d_norm)  # in plain operations: few train the encoder


norm_gelu.defvjp(_norm_gelu_forward, _norm_gelu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def conv_norm_gelu(
    audio: Array,
    taps: Array,
    conv_bias: Array,
    scale: Array,
    bias: Array,
    stride: int,
    eps: float,
    dtype: Any,
    precision: str = "highest",
) -> Array:
    """`norm_gelu` of a convolution of one channel, without padding: [B, N], [K, D] and [D] to [B, T, D].

    Keeps what comes in alone: what the convolution makes of it is many times larger.
    """
    settings = stride, eps, dtype, precision
    arrays = audio, taps, conv_bias, scale, bias
    (y,) = _fused_by_platform(_conv_norm_gelu, fused_norm.conv_gelu, settings, *arrays)
    return y


def _conv_norm_gelu_backward(
    stride: int, eps: float, dtype: Any, precision: str, saved: tuple[Array, ...], dy: Array
) -> tuple[Array, ...]:
    plainly = functools.partial(_conv_norm_gelu, stride, eps, dtype, precision)
    return jax.vjp(plainly, *saved)[1]((dy,))


conv_norm_gelu.defvjp(
    lambda *arguments: (conv_norm_gelu(*arguments), arguments[:5]), _conv_norm_gelu_backward
)


def _norm(eps: float, dtype: Any, x: Array, scale: Array, bias: Array) -> tuple[Array]:
    normal, _ = _normal(x, eps)
    return ((normal * scale + bias).astype(dtype),)


def _residual_norm(eps: float, dtype: Any, x: Array, delta: Array, *vectors: Array) -> tuple[Array, Array]:
    *delta_bias, scale, bias = vectors
    total = (x + sum(delta_bias, start=_wide(delta))).astype(x.dtype)
    return total, *_norm(eps, dtype, total, scale, bias)


def _norm_gelu(eps: float, dtype: Any, x: Array, scale: Array, bias: Array) -> tuple[Array]:
    (y,) = _norm(eps, _wide(x).dtype, x, scale, bias)
    return (gelu(y).astype(dtype),)


def _conv_norm_gelu(
    stride: int,
    eps: float,
    dtype: Any,
    precision: str,
    audio: Array,
    taps: Array,
    conv_bias: Array,
    *norm: Array,
) -> tuple[Array]:
    x = jax.lax.conv_general_dilated(
        audio[:, :, None],
        taps[:, None],
        window_strides=(stride,),
        padding="VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=precision,
    )
    return (norm_gelu(x + conv_bias.astype(x.dtype), *norm, eps, dtype),)


def _norm_gradient(
    eps: float, types: tuple[Any, ...], x: Array, scale: Array, dy: Array, *d_x: Array
) -> tuple[Array, ...]:
    """The gradients of x, of the parts of a branch in it, of scale and of bias.

    `types`: those of the parts: none, delta's, or delta's and its bias's. `d_x`: what comes to x from
    elsewhere, or nothing.
    """
    normal, factor = _normal(x, eps)
    dy = dy.astype(normal.dtype)
    d_normal = dy * scale
    along = jnp.mean(d_normal * normal, axis=-1, keepdims=True)
    dx = factor * (d_normal - jnp.mean(d_normal, axis=-1, keepdims=True) - normal * along)
    dx = sum(d_x, start=dx)
    rows = tuple(range(x.ndim - 1))
    d_branch = [dx.astype(kind) for kind in types[:1]] + [jnp.sum(dx, axis=rows) for _ in types[1:]]
    return dx.astype(x.dtype), *d_branch, jnp.sum(dy * normal, axis=rows), jnp.sum(dy, axis=rows)


def _normal(x: Array, eps: float) -> tuple[Array, Array]:
    """x with mean 0 and variance 1, and one over its deviation."""
    x = _wide(x)
    x = x - jnp.mean(x, axis=-1, keepdims=True)  # the variance in two passes, as torch does
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    return x * factor, factor


# --- Dense maps ---------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Array, kernel: Array, precision: str = "highest") -> Array:
    """The last axis of `x` with the first of `kernel`, in their type: [..., I], [I, *O] to [..., *O].

    For the automatic gradient XLA transposes that of the output in memory on a CPU, even where it is the
    larger operand.
    """
    return jnp.tensordot(x, kernel, 1, precision=precision)


def _product_forward(x: Array, kernel: Array, precision: str) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel, precision), (x, kernel)


def _product_backward(precision: str, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows = list(range(x.ndim - 1))
    flat_dy, flat_kernel = dy.reshape(*x.shape[:-1], -1), kernel.reshape(len(kernel), -1)
    dx = jnp.tensordot(flat_dy, flat_kernel.T, 1, precision=precision)
    if x.size <= dy.size:  # the first of the two is what gets transposed
        d_kernel = jnp.tensordot(x, dy, (rows, rows), precision=precision)
    else:
        d_kernel = jnp.moveaxis(jnp.tensordot(dy, x, (rows, rows), precision=precision), -1, 0)
    return dx, d_kernel


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    """[..., *O] and [*O], in the type of x; the bias's gradient is summed in float32."""
    return x + bias.astype(x.dtype)


def _add_bias_backward(bias: Array, dy: Array) -> tuple[Array, Array]:
    rows = tuple(range(dy.ndim - bias.ndim))
    return dy, jnp.sum(_wide(dy), axis=rows).astype(bias.dtype)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), _add_bias_backward)


# --- Attention's gates --------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def gates(
    x: Array, kernel: Array, bias: Array, const: Array, precision: str = "highest"
) -> tuple[Array, Array]:
    """The factor of the position bias for each head and query, from the attention's input.

    A dense map makes 8 outputs of a head's part of x; a and b are the sigmoids of the sums of four each, and
    the gate is a * (b * const - 1) + 2 (Chen et al. 2022, section III-B).

    Args: x [B, T, D], kernel [K, 8], bias [8], const [H]. Returns: x as it came, and the gates [B, H, T] in
    float32. Who uses x further takes the one returned: the gradient from there is added in the same pass over
    memory. Keeps x, and the slopes of the gates [B, H, T] along the two sums and const.
    """
    gate, *_ = _gates_and_slopes(precision, x, kernel, bias, const)
    return x, gate


def _gates_forward(
    x: Array, kernel: Array, bias: Array, const: Array, precision: str
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    gate, *slopes = _gates_and_slopes(precision, x, kernel, bias, const)
    return (x, gate), (x, kernel, bias, const, *slopes)


def _gates_backward(
    precision: str, saved: tuple[Array, ...], gradients: tuple[Array, Array]
) -> tuple[Array, ...]:
    x, kernel, bias, const, *slopes = saved
    d_x, d_gate = gradients
    arrays = _by_head(x, kernel), kernel, _by_head(d_x, kernel), d_gate, *slopes
    plainly = functools.partial(_gates_gradient, precision)
    dx, d_kernel, d_bias, d_const = _fused_by_platform(plainly, fused_gates.backward, (), *arrays)
    d_kernel, d_bias = jnp.repeat(d_kernel, 4, axis=1), jnp.repeat(d_bias, 4)  # each of four is as their sum
    parameters = zip((d_kernel, d_bias, d_const), (kernel, bias, const), strict=True)
    return dx.reshape(x.shape), *(gradient.astype(array.dtype) for gradient, array in parameters)


gates.defvjp(_gates_forward, _gates_backward)


def _by_head(x: Array, kernel: Array) -> Array:
    """[B, T, D] -> [B, T, H, K]."""
    return x.reshape(*x.shape[:2], x.shape[2] // len(kernel), len(kernel))


def _gates_and_slopes(
    precision: str, x: Array, kernel: Array, bias: Array, const: Array
) -> tuple[Array, ...]:
    groups = _wide(add_bias(product(_by_head(x, kernel), kernel, precision), bias))
    sums = groups.reshape(*groups.shape[:3], 2, 4).sum(-1)
    a, b = jax.nn.sigmoid(sums).transpose(3, 0, 2, 1)
    const = const[:, None]
    slope = b * const - 1  # along a
    return a * slope + 2, slope * a * (1 - a), const * a * b * (1 - b), a * b


def _gates_gradient(
    precision: str, x: Array, kernel: Array, d_x: Array, d_gate: Array, *slopes: Array
) -> tuple[Array, ...]:
    """As `fused_gates.backward`: the gradients of x, of the two sums of kernel and of bias, and of const."""
    d_a, d_b, d_const = (d_gate * slope for slope in slopes)
    d_sums = jnp.stack([d_a, d_b])  # [2, B, H, T]
    by_frame = d_sums.swapaxes(2, 3)
    kernel_sums = _wide(kernel).reshape(len(kernel), 2, 4).sum(-1)
    dx = d_x + jnp.einsum("gbth,kg->bthk", by_frame, kernel_sums, precision=precision)
    # No product, for which XLA transposes x in memory on a CPU.
    d_kernel = jnp.sum(by_frame[..., None] * _wide(x), axis=(1, 2, 3)).T
    return dx.astype(x.dtype), d_kernel, jnp.sum(d_sums, axis=(1, 2, 3)), jnp.sum(d_const, axis=(0, 2))


# --- Convolution in groups ----------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def grouped_conv(x: Array, kernel: Array, precision: str = "highest") -> Array:
    """Convolution over time in groups, "same" padding, stride 1, no bias.

    For as many taps and groups as WavLM's positional convolution has, what XLA makes of the automatic
    gradient is many times slower than torch on a CPU, and of the convolution itself on a GPU.

    Args: x [B, T, D], kernel [taps, D / groups, D]. Returns [B, T, D]; an even kernel has its extra zero on
        the left, as the reference's (`WavLMSamePadLayer`).
    """
    return _convolve(precision, kernel.shape[0] // 2, x, kernel)


def _grouped_conv_forward(x: Array, kernel: Array, precision: str) -> tuple[Array, tuple[Array, Array]]:
    return grouped_conv(x, kernel, precision), (x, kernel)


def _grouped_conv_backward(precision: str, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    taps, size, _ = kernel.shape
    # dx: the same convolution with taps reversed and, in each group, inputs and outputs exchanged.
    turned = kernel[::-1].reshape(taps, size, -1, size).transpose(0, 3, 2, 1).reshape(kernel.shape)
    dx = _convolve(precision, (taps - 1) // 2, dy, turned)
    d_kernel = _kernel_gradient(precision, x, dy, kernel)
    return dx.astype(x.dtype), d_kernel.astype(kernel.dtype)


grouped_conv.defvjp(_grouped_conv_forward, _grouped_conv_backward)


# Of forms the platform takes one: by measurements on a CPU and an H100. A TPU has the CPU's, unmeasured.


def _convolve(precision: str, left: int, x: Array, kernel: Array) -> Array:
    """`grouped_conv` with so many frames of zeros before the first."""
    return _by_platform(_convolve_plainly, _convolve_in_blocks, (precision, left), x, kernel)


def _kernel_gradient(precision: str, x: Array, dy: Array, kernel: Array) -> Array:
    """The gradient of `grouped_conv`'s kernel: [taps, D / groups, D], in float32 (or wider)."""
    return _by_platform(_kernel_gradient_by_taps, _kernel_gradient_in_blocks, (precision,), x, dy, kernel)


def _pad_time(x: Array, before: int, after: int) -> Array:
    return jnp.pad(x, ((0, 0), (before, after), (0, 0)))


def _convolve_plainly(precision: str, left: int, x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,),
        padding=[(left, kernel.shape[0] - 1 - left)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=x.shape[-1] // kernel.shape[1],
        precision=precision,
    )


TAPS_AT_ONCE = 4  # more make the products larger, but what they read outgrows the cache (trials on a CPU)


def _kernel_gradient_by_taps(precision: str, x: Array, dy: Array, kernel: Array) -> Array:
    """For every few taps, one matrix product a group of the shifted inputs with the output's gradient."""
    taps, size, channels = kernel.shape
    batch, time, _ = x.shape
    steps = -(-taps // TAPS_AT_ONCE)
    # Time comes last, so that shifted inputs are copied in long runs.
    x = _pad_time(x, taps // 2, (taps - 1) // 2 + steps * TAPS_AT_ONCE - taps)
    x = x.reshape(batch, -1, channels // size, size).transpose(2, 3, 0, 1)  # [G, in, B, T + ...]
    dy = dy.reshape(batch * time, -1, size).swapaxes(0, 1)  # [G, B * T, out]
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def some_taps(first: Array) -> Array:
        shifted = [jax.lax.dynamic_slice_in_dim(x, first + tap, time, axis=3) for tap in range(TAPS_AT_ONCE)]
        rows = jnp.stack(shifted, axis=1).reshape(len(dy), TAPS_AT_ONCE * size, batch * time)
        return jnp.einsum("gin,gno->gio", rows, dy, precision=precision, preferred_element_type=wide)

    d_kernel = jax.lax.map(some_taps, TAPS_AT_ONCE * jnp.arange(steps))
    d_kernel = d_kernel.reshape(steps, -1, TAPS_AT_ONCE, size, size)  # [steps, G, taps at once, in, out]
    return d_kernel.transpose(0, 2, 3, 1, 4).reshape(-1, size, channels)[:taps]


# In blocks of frames. A block of outputs is one matrix product, in each group, of all inputs that it sees
# with a Toeplitz matrix of the taps. A part of that matrix is 0, and the inputs of neighbouring blocks
# overlap, but both are small against what one large product gains over many small ones.

BLOCK = 16  # frames: with 128 taps an eighth of the matrix is 0, and every input is there nine times


def _convolve_in_blocks(precision: str, left: int, x: Array, kernel: Array) -> Array:
    time, size = x.shape[1], kernel.shape[1]
    y = jax.lax.dot_general(
        _windows(x, kernel, left),
        _toeplitz(kernel),
        (((2,), (1,)), ((0,), (0,))),
        precision=precision,
        preferred_element_type=x.dtype,
    )  # [G, B * blocks, BLOCK * size]
    y = y.reshape(len(y), len(x), -1, size)[:, :, :time]
    return y.transpose(1, 2, 0, 3).reshape(x.shape)


def _kernel_gradient_in_blocks(precision: str, x: Array, dy: Array, kernel: Array) -> Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    d_toeplitz = jax.lax.dot_general(
        _windows(x, kernel, len(kernel) // 2),
        _blocks(dy, kernel.shape[1], -(-x.shape[1] // BLOCK)),
        (((1,), (1,)), ((0,), (0,))),
        precision=precision,
        preferred_element_type=wide,
    )
    (d_kernel,) = jax.linear_transpose(_toeplitz, jax.ShapeDtypeStruct(kernel.shape, wide))(d_toeplitz)
    return d_kernel


def _blocks(x: Array, size: int, count: int) -> Array:
    """[B, T, G * size] -> [G, B * count, BLOCK * size], with zeros behind the last frame."""
    x = _pad_time(x, 0, count * BLOCK - x.shape[1])
    x = x.reshape(len(x), count, BLOCK, -1, size).transpose(3, 0, 1, 2, 4)
    return x.reshape(len(x), -1, BLOCK * size)


def _windows(x: Array, kernel: Array, left: int) -> Array:
    """What each block of outputs sees: [B, T, G * size] -> [G, B * blocks, W * size].

    W is taps + BLOCK, rounded up to blocks. A window begins with the frame that the block's first output
    multiplies with the first tap.
    """
    taps, size, _ = kernel.shape
    blocks, more = -(-x.shape[1] // BLOCK), -(-taps // BLOCK)
    padded = _blocks(_pad_time(x, left, 0), size, blocks + more)
    padded = padded.reshape(len(padded), len(x), blocks + more, -1)
    windows = jnp.concatenate([padded[:, :, i : i + blocks] for i in range(more + 1)], axis=3)
    return windows.reshape(len(windows), len(x) * blocks, -1)


def _toeplitz(kernel: Array) -> Array:
    """[taps, size, G * size] -> [G, W * size, BLOCK * size]: tap w - p for the window's frame w and output p.

    Without a gather, so without a scatter in its transpose: the taps again and again, cut into rows one
    shorter than they are, so that each row begins one place earlier in them.
    """
    taps, size, channels = kernel.shape
    width = (-(-taps // BLOCK) + 1) * BLOCK
    padded = jnp.pad(kernel, ((0, width + 1 - taps), (0, 0), (0, 0)))
    rows = jnp.broadcast_to(padded, (BLOCK, *padded.shape)).reshape(-1, size, channels)
    rows = rows[: BLOCK * width].reshape(BLOCK, width, size, -1, size)  # [p, w, in, G, out]
    return rows.transpose(3, 1, 2, 0, 4).reshape(-1, width * size, BLOCK * size)
