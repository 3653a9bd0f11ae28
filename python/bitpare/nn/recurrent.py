"""Recurrent layers with quantized weights, computed in float."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from bitpare.nn.quantizer import Quantizer


class _Recurrent:
    """The base of recurrent layers. bp_weights: the quantizers, by the name of the weight."""

    _bitpare_layer = True
    bp_weights: nn.ModuleDict

    def quantized(self: Any, name: str) -> Tensor:
        weight = getattr(self, name)
        return self.bp_weights[name](weight) if name in self.bp_weights else weight


class _Sequence(_Recurrent):
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        held = self._flat_weights  # torch's own forward reads this list
        self.__dict__["_flat_weights"] = [self.quantized(n) for n in self._flat_weights_names]
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.__dict__["_flat_weights"] = held


class QRNN(_Sequence, nn.RNN):
    pass


class QLSTM(_Sequence, nn.LSTM):
    pass


class QGRU(_Sequence, nn.GRU):
    pass


class _Cell(_Recurrent):
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        held = {name: self.quantized(name) for name in self.bp_weights}
        self.__dict__.update(held)  # instance attributes hide the parameters
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            for name in held:
                del self.__dict__[name]


class QRNNCell(_Cell, nn.RNNCell):
    pass


class QLSTMCell(_Cell, nn.LSTMCell):
    pass


class QGRUCell(_Cell, nn.GRUCell):
    pass


_QUANTIZED: dict[type, type] = {
    nn.RNN: QRNN,
    nn.LSTM: QLSTM,
    nn.GRU: QGRU,
    nn.RNNCell: QRNNCell,
    nn.LSTMCell: QLSTMCell,
    nn.GRUCell: QGRUCell,
}


def is_recurrent(module: nn.Module) -> bool:
    return type(module) in _QUANTIZED


def upgrade_recurrent(module: nn.Module, weight: Callable[[str, Tensor], Quantizer | None]) -> int:
    """Turn a layer into its quantized subclass, and return how many weights have quantizers."""
    names = [n for n, _ in module.named_parameters(recurse=False) if n.startswith("weight_")]
    found = {name: weight(name, getattr(module, name)) for name in names}
    quantizers = {name: q for name, q in found.items() if q is not None}
    if quantizers:
        module.__class__ = _QUANTIZED[type(module)]
        module.bp_weights = nn.ModuleDict(quantizers)
    return len(quantizers)
