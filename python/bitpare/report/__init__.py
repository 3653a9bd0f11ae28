"""What bitpare did to a model, to be read."""

from bitpare.report.placement import Placement, placement
from bitpare.report.summary import Summary, SummaryRow, summary

__all__ = ["Placement", "Summary", "SummaryRow", "placement", "summary"]
