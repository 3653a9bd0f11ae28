"""The exceptions that bitpare raises."""


class Unsupported(RuntimeError):
    """A model holds something that cannot be done; the message names the module."""


class Uncalibrated(RuntimeError):
    """A quantizer is asked to quantize before it has seen any data."""


class Differs(RuntimeError):
    """An integer model computes something else than the model it was converted from."""
