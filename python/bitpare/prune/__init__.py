"""Mask weights during training, and remove whole channels."""

from bitpare.prune.drop_layers import drop_layers
from bitpare.prune.pruner import Pruner
from bitpare.prune.regrowth import Regrowth
from bitpare.prune.removal import Plan
from bitpare.prune.schedule import Schedule
from bitpare.prune.sensitivity import Sensitivity, sensitivity
from bitpare.prune.shrink import plan_shrink, shrink

__all__ = [
    "Plan",
    "Pruner",
    "Regrowth",
    "Schedule",
    "Sensitivity",
    "drop_layers",
    "plan_shrink",
    "sensitivity",
    "shrink",
]
