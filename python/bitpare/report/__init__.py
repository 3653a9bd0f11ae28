"""Report what bitpare did to a model, as tables and as an HTML page."""

from bitpare.report.collect import html
from bitpare.report.effects import EffectRow, Effects, effects
from bitpare.report.history import Record
from bitpare.report.layers import LayerRow, Layers, layers
from bitpare.report.placement import Placement, placement
from bitpare.report.recorder import Recorder
from bitpare.report.summary import Summary, SummaryRow, summary
from bitpare.report.tensorboard import TensorBoard
from bitpare.report.values import Values, values

__all__ = [
    "EffectRow",
    "Effects",
    "LayerRow",
    "Layers",
    "Placement",
    "Record",
    "Recorder",
    "Summary",
    "SummaryRow",
    "TensorBoard",
    "Values",
    "effects",
    "html",
    "layers",
    "placement",
    "summary",
    "values",
]
