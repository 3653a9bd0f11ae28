"""The one tracer: what a model does, as graphs, without changing the model.

An *owner* is a module that is no layer of torch.nn and calls others in a forward of its own. It is
traced with its children as leaves (``trace_owner``): that graph can be edited and becomes a new
forward. A *flat* trace (``trace_flat``) goes through all owners down to the layers of torch.nn: it
shows what feeds what. Each call in a flat trace knows its place: the owner and the position among
the calls of that owner's forward, which is the same in both traces.
"""

from bitpare.graph.cost import Cost, positions_of
from bitpare.graph.results import one_of
from bitpare.graph.state import (
    Call,
    call_with,
    clear_hooks,
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
