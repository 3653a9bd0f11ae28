"""convert: from a prepared, trained model to one that runs in integers."""

from torch import nn

from bitpare.deploy.islands import integer_model
from bitpare.deploy.traced import prepared_trace


def convert(model: nn.Module) -> nn.Module:
    """A copy of a prepared model that computes in integers; the same call, on the same device.

    Weights become integers, BatchNorm goes into the requantization, activations into its clamps or
    into tables, residual additions into the convolution before them. What has no integer form is
    computed in float between integer parts, and listed in ``floating``. ``model`` is untouched.
    """
    return integer_model(prepared_trace(model, "convert"))
