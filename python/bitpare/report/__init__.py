"""What bitpare did to a model, to be read."""

from bitpare.report.placement import Placement, placement

__all__ = ["Placement", "placement"]
