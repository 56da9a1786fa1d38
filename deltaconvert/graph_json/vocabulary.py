"""The calls that a converted file may name: functions and tensor methods that only compute, and the words
they take.

A file holds names, never code. A name resolves through these lists or not at all: nothing here reads or
writes files, loads libraries, runs Python, changes global settings or takes another callable. Adding a name
is safe if the function takes tensors, numbers and words only, and touches nothing but its result.
"""

from __future__ import annotations

import builtins
import math
import operator
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from deltaconvert.ops import put


def _listed(text: str) -> list[str]:
    return text.split()


_TORCH = _listed(
    """
    Size _assert abs absolute acos acosh adaptive_avg_pool1d add addbmm addcdiv addcmul addmm addmv addr adjoint
    affine_grid_generator all
    allclose amax amin aminmax angle any arange arccos arcsin arctan arctan2 argmax argmin argsort argwhere
    as_tensor asin asinh atan atan2 atanh avg_pool1d baddbmm bartlett_window batch_norm bilinear bitwise_and
    bitwise_not bitwise_or bitwise_xor blackman_window block_diag bmm broadcast_tensors broadcast_to bucketize
    cat cdist ceil celu channel_shuffle chunk clamp clamp_max clamp_min clip clone column_stack
    complex concat concatenate
    constant_pad_nd conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d copysign cos cosh
    cosine_similarity count_nonzero cross cummax cummin cumprod cumsum deg2rad diag diag_embed diagonal
    diagonal_scatter diff div divide dot dstack einsum embedding eq equal erf erfc erfinv exp exp2 expm1 eye
    fake_quantize_per_channel_affine fake_quantize_per_tensor_affine fill flatten flip fliplr flipud float_power
    floor floor_divide fmax fmin fmod frac full full_like gather ge greater greater_equal grid_sampler
    group_norm gru gru_cell gt hamming_window hann_window hardshrink heaviside histc hstack hypot
    index_add index_copy index_fill index_put index_select inner instance_norm is_floating_point
    isclose isfinite isin isinf isnan kthvalue layer_norm le
    lerp less less_equal lgamma linspace log log10 log1p log2 log_softmax logaddexp logcumsumexp logical_and
    logical_not logical_or logical_xor logit logsumexp lstm lstm_cell lt masked_fill masked_scatter
    masked_select matmul max max_pool1d max_pool2d max_pool3d maximum mean median meshgrid min minimum mm
    mode movedim moveaxis mul multiply mv nan_to_num nanmean nanmedian nansum narrow ne neg
    negative nonzero norm
    not_equal numel ones ones_like outer pairwise_distance permute pixel_shuffle pixel_unshuffle polar positive
    pow prelu prod promote_types quantile rad2deg ravel real reciprocal relu remainder repeat_interleave reshape
    result_type rms_norm rnn_relu rnn_tanh roll rot90 round rsqrt rsub
    scalar_tensor scatter scatter_add searchsorted select select_scatter selu
    sgn sigmoid sign signbit sin sinc sinh slice_scatter softmax sort split split_with_sizes sqrt square squeeze
    stack std std_mean sub subtract sum swapaxes swapdims t take take_along_dim tan tanh tensor tensor_split
    tensordot threshold tile topk trace transpose trapezoid tril triu true_divide trunc unbind unflatten
    unique_consecutive unsafe_chunk unsafe_split unsqueeze var var_mean view_as_complex view_as_real vstack
    where xlogy zeros zeros_like
    """
)

_FUNCTIONAL = _listed(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool1d_with_indices adaptive_max_pool2d adaptive_max_pool2d_with_indices adaptive_max_pool3d
    affine_grid avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu channel_shuffle conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity elu embedding fold gelu glu
    grid_sample group_norm hardshrink hardsigmoid hardswish hardtanh instance_norm interpolate layer_norm
    leaky_relu linear local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d max_pool1d
    max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_unpool2d mish
    multi_head_attention_forward normalize one_hot pad pairwise_distance pixel_shuffle pixel_unshuffle prelu
    relu relu6 rms_norm rrelu scaled_dot_product_attention selu sigmoid silu softmax softmin softplus
    softshrink softsign tanh tanhshrink threshold unfold upsample upsample_bilinear upsample_nearest
    """
)

_NN = _listed(
    """
    adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d avg_pool3d elu gelu glu hardsigmoid hardswish
    hardtanh leaky_relu linear log_sigmoid mish one_hot pad reflection_pad1d reflection_pad2d relu6
    replication_pad1d replication_pad2d scaled_dot_product_attention silu softplus softshrink
    upsample_bicubic2d upsample_bilinear2d upsample_nearest2d
    """
)

_LINALG = _listed(
    """
    cholesky cross det diagonal eigh inv matmul matrix_norm matrix_power multi_dot norm pinv qr slogdet solve svd
    vecdot vector_norm
    """
)

# As TorchScript calls them.
_VF = _listed("block_diag broadcast_tensors cdist einsum meshgrid norm split tensordot")

_FFT = _listed(
    """
    fft fft2 fftfreq fftn fftshift hfft ifft ifft2 ifftn ifftshift ihfft irfft irfft2 irfftn rfft rfft2 rfftfreq
    rfftn
    """
)

_SPECIAL = _listed(
    """
    digamma entr erf erfc erfcx erfinv exp2 expit expm1 gammaln i0 i0e i1 i1e log1p log_ndtr log_softmax logit
    logsumexp ndtr ndtri psi round sinc softmax xlog1py xlogy
    """
)

_OPERATOR = _listed(
    """
    abs add and_ eq floordiv ge getitem gt iadd iand ifloordiv imod imul index inv invert ior ipow isub
    itruediv ixor le lshift lt matmul mod mul ne neg not_ or_ pos pow rshift setitem sub truediv xor
    """
)

_METHODS = _listed(
    """
    bool byte char clone contiguous copy_ cpu detach dim double expand expand_as fill_ flatten float half
    bfloat16 index_put_ int is_contiguous long masked_fill_ ndimension nelement new_full new_ones new_tensor
    new_zeros numel repeat reshape_as short size stride to type_as unfold unique view view_as zero_
    """
)

_WORDS = _listed(
    """
    area avg backward batch bicubic bilinear border ceil circular constant edge floor forward fro ij inf linear lower
    max mean midpoint min nearest nearest-exact none nuc ortho reflect reflection replicate same sum tanh trilinear
    trunc upper valid xy zeros higher indices value values stable sigmoid relu
    use_mm_for_euclid_dist use_mm_for_euclid_dist_if_necessary donot_use_mm_for_euclid_dist
    """
)

_MATH = _listed("ceil exp fabs floor gcd log log2 prod sqrt trunc")  # of sizes

_ATTRIBUTES = _listed(
    """
    shape dtype device ndim T H mT mH real imag is_cuda is_nested is_sparse is_quantized requires_grad itemsize
    nbytes values indices
    """
)

FUNCTIONS: dict[str, tuple[Any, list[str]]] = {
    "torch": (torch, _TORCH),
    "torch.nn.functional": (F, _FUNCTIONAL),
    "torch._C._nn": (torch._C._nn, _NN),
    "torch.linalg": (torch.linalg, _LINALG),
    "torch._VF": (torch._VF, _VF),
    "torch.fft": (torch.fft, _FFT),
    "torch.special": (torch.special, _SPECIAL),
    "operator": (operator, _OPERATOR),
    "math": (math, _MATH),
    "deltaconvert": (put, ["put"]),
    "builtins": (builtins, ["getattr", "len", "round"]),
}
_IS_METHOD = [name for name in _TORCH if hasattr(torch.Tensor, name) and not name.startswith("_")]
METHODS = frozenset(_METHODS) | frozenset(_IS_METHOD)
# What getattr may read of a tensor; nothing else may be reached by an attribute.
ATTRIBUTES = frozenset(_ATTRIBUTES)
WORDS = frozenset(_WORDS)
_EINSUM = re.compile(r"[a-zA-Z., >-]{1,100}")


def word_allowed(word: str, target: str) -> bool:
    """Whether a call of `target` may take the string `word` as an argument."""
    if target == "builtins.getattr":
        return word in ATTRIBUTES
    if target == "torch.einsum":
        return _EINSUM.fullmatch(word) is not None
    if target == "torch._assert":
        return len(word) <= 500 and word.isprintable()  # its message
    return word in WORDS


def function_named(name: str) -> Callable[..., Any] | None:
    """The function of that name; None unless the lists above hold it."""
    return _by_name().get(name)


def name_of(function: Any) -> str | None:
    """The name under which a file may call `function`; None if it may not."""
    try:
        return _by_function().get(function)
    except TypeError:  # an unhashable callable
        return None


@lru_cache(maxsize=1)
def _by_name() -> dict[str, Callable[..., Any]]:
    found = {}
    for home, (module, names) in FUNCTIONS.items():
        for name in names:
            function = getattr(module, name, None)
            if callable(function):  # other versions of torch have other functions
                found[f"{home}.{name}"] = function
    return found


@lru_cache(maxsize=1)
def _by_function() -> dict[Any, str]:
    names: dict[Any, str] = {}
    for name, function in _by_name().items():
        names.setdefault(function, name)
    return names
