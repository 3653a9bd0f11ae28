"""The ops, each one call of torch.ops.bitpare.*: no state, differentiable where it says so.

All of them take float32, float16 or bfloat16, contiguous, channels_last or any other strides, and
compute in float32. `scale` is float32. How many scales there are is said in one way everywhere:

- nothing: one scale for the tensor;
- ``axis=a``: one for each index of dimension a, ``scale`` of shape ``[x.shape[a]]``;
- ``group=g``: one for each g neighbours along the last dimension, ``scale`` of shape
  ``x.shape[:-1] + [x.shape[-1] // g]``.

On the CPU a scale that is not positive and finite is an error; on CUDA, where looking would need a
synchronisation, the result is NaN.
"""

from bitpare.functional.codes import (
    dequantize,
    pack_bits,
    quantize,
    unpack_bits,
)
from bitpare.functional.distillation import (
    attention_transfer,
    dist_loss,
    distill_loss,
    dkd_loss,
    feature_loss,
    relation_loss,
)
from bitpare.functional.fakes import (
    binarize,
    fake_float,
    fake_quant,
    fake_quant_lsq,
    mean_magnitude,
    ternarize,
)
from bitpare.functional.masks import (
    apply_mask,
    masked_fake_quant,
    pack_mask,
    remask_,
    select_mask,
    soft_threshold,
    unpack_mask,
)
from bitpare.functional.ranges import (
    histogram_range,
    minmax,
    minmax_histogram,
    mse_range,
    observe_histogram_,
    qparams,
)
from bitpare.functional.training import (
    act_fake_quant,
    bn_act_fake_quant,
    fake_quant_weights,
    track_oscillations_,
    update_ranges_,
    use_weight,
)

__all__ = [
    "act_fake_quant",
    "apply_mask",
    "attention_transfer",
    "binarize",
    "bn_act_fake_quant",
    "dequantize",
    "dist_loss",
    "distill_loss",
    "dkd_loss",
    "fake_float",
    "fake_quant",
    "fake_quant_lsq",
    "fake_quant_weights",
    "feature_loss",
    "histogram_range",
    "masked_fake_quant",
    "mean_magnitude",
    "minmax",
    "minmax_histogram",
    "mse_range",
    "observe_histogram_",
    "pack_bits",
    "pack_mask",
    "qparams",
    "quantize",
    "relation_loss",
    "remask_",
    "select_mask",
    "soft_threshold",
    "ternarize",
    "track_oscillations_",
    "unpack_bits",
    "unpack_mask",
    "update_ranges_",
    "use_weight",
]
