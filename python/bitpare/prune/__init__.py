"""Masks during training."""

from bitpare.prune.pruner import Pruner
from bitpare.prune.regrowth import Regrowth
from bitpare.prune.schedule import Schedule

__all__ = ["Pruner", "Regrowth", "Schedule"]
