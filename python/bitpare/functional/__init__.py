"""Functional ops without state. Each is one call of torch.ops.bitpare.*.

All ops accept float32, float16 and bfloat16 tensors with any strides, and compute in float32.
`scale` is float32. All ops use the same arguments for the number of scales:

- neither ``axis`` nor ``group``: one scale for the tensor;
- ``axis=a``: one scale for each index of dimension a; ``scale`` has shape ``[x.shape[a]]``;
- ``group=g``: one scale for every g neighbours along the last dimension; ``scale`` has shape
  ``x.shape[:-1] + [x.shape[-1] // g]``.

A scale that is not positive and finite raises an error on the CPU. On CUDA the check would need a
synchronisation, so the result is NaN instead.
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
