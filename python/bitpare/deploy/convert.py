"""Convert a prepared, trained model to one that runs in integers."""

from torch import nn

from bitpare.deploy.islands import integer_model
from bitpare.deploy.traced import prepared_trace


def convert(model: nn.Module) -> nn.Module:
    """Return a copy of a prepared model that computes in integers. It takes the same arguments, on
    the same device.

    Weights become integers. BatchNorm is folded into the requantization, activations become
    clamps or tables, and residual additions are fused into the convolution before them.
    Operations without an integer form are computed in float between integer parts, and
    ``floating`` lists them. ``model`` is unchanged."""
    return integer_model(prepared_trace(model, "convert"))
