"""Trace a model into graphs, without changing the model.

An *owner* is a module with its own forward that calls other modules and is not a layer of torch.nn.
``trace_owner`` traces it with its children as leaves; the graph can be edited and becomes a new
forward. ``trace_flat`` traces through all owners down to the layers of torch.nn, and shows how
values flow between them. Each call in a flat trace knows its owner and its position among the calls
of the owner's forward; the position is the same in both traces.
"""

from bitpare.graph.cost import Cost, positions_of
from bitpare.graph.results import one_of
from bitpare.graph.state import (
    Call,
    call_with,
    clear_hooks,
    cloned,
    quiet_state,
    record_both,
    record_calls,
    without_hooks,
)
from bitpare.graph.trace import FlatTrace, OwnerTrace, event_key, trace_flat, trace_owner
from bitpare.graph.tracer import is_layer, is_owner

__all__ = [
    "Call",
    "Cost",
    "FlatTrace",
    "OwnerTrace",
    "call_with",
    "clear_hooks",
    "cloned",
    "event_key",
    "is_layer",
    "is_owner",
    "one_of",
    "positions_of",
    "quiet_state",
    "record_both",
    "record_calls",
    "trace_flat",
    "trace_owner",
    "without_hooks",
]
