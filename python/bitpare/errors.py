"""The exceptions that bitpare raises."""


class Unsupported(RuntimeError):
    """The model contains something that is not supported; the message names the module."""


class Uncalibrated(RuntimeError):
    """A quantizer was called before it has seen any data."""


class Differs(RuntimeError):
    """An integer model computes different results from the model that it was converted from."""
