"""Make a copy of a float model that trains with quantization."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bitpare import graph as g
from bitpare.errors import Unsupported
from bitpare.nn import layers
from bitpare.nn.attention import QMultiheadAttention, upgrade_attention
from bitpare.nn.hub import Hub
from bitpare.nn.learned import quantizer_class
from bitpare.nn.quantizer import Quantizer
from bitpare.nn.ranges import RangeQuantizer
from bitpare.nn.recurrent import is_recurrent, upgrade_recurrent
from bitpare.nn.rewritten import rewrite
from bitpare.quant.compare import first_difference
from bitpare.quant.emit import emit, own_weights
from bitpare.quant.kinds import FUSED_ACTIVATIONS
from bitpare.quant.survey import EVAL, Plan, Site
from bitpare.spec.grid import grid_of
from bitpare.spec.qconfig import QConfig
from bitpare.spec.qspec import FLOAT, Float, QSpec

_LAYER_SOURCE = """
def forward(self, *args, **kwargs):
    return self.bp_output(_bitpare_base.forward(self, *args, **kwargs))
"""
_ACTIVATION_SOURCE = """
def _bitpare_plain(self, input):
    return _bitpare_base.forward(self, input)
def forward(self, input):
    quantizer = self._modules["bp_output"]
    if quantizer.passing.done:
        quantizer.passing.done = False
        return input
    return quantizer(input, activation={name!r}, plain=self._bitpare_plain)
"""


def prepare(
    model: nn.Module,
    config: QConfig | None = None,
    *,
    example_inputs: tuple[Any, ...] | Tensor,
    example_kwargs: dict[str, Any] | None = None,
) -> nn.Module:
    """Return a copy of ``model`` with quantizers, ready for calibration and training.

    ``model`` itself is unchanged. The copy keeps the containers, names, hooks and classes. A
    module that cannot be traced keeps its own forward in float; ``bp.report.placement`` lists
    them.

    Args:
        model: a float model.
        config: what to quantize and how; None means ``QConfig.int8()``.
        example_inputs: the positional arguments of a call of the model, or a single tensor. They
            determine which path of the forward is traced.
        example_kwargs: the keyword arguments of that call.
    """
    config = QConfig.int8() if config is None else config
    call = _check_arguments(model, config, example_inputs, example_kwargs)
    islands: dict[str, str] = {}
    while True:
        prepared, plan = _prepare_once(model, config, call, islands)
        culprit = first_difference(model, prepared, plan, call)
        if culprit is None:
            return prepared
        name, reason = culprit
        islands[name] = reason


def _check_arguments(
    model: nn.Module, config: QConfig, example_inputs: Any, example_kwargs: dict[str, Any] | None
) -> g.Call:
    if not isinstance(model, nn.Module):
        raise TypeError(f"prepare: model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(config, QConfig):
        raise TypeError(f"prepare: config must be a bp.QConfig, got {type(config).__name__}")
    call = g.call_with("prepare", example_inputs, example_kwargs)
    if any(isinstance(m, Quantizer) for m in model.modules()):
        raise ValueError("prepare: the model is prepared already")
    if hasattr(model, "_orig_mod") or isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError("prepare: prepare the model itself, then compile or distribute it")
    config.check_patterns(model)
    return call


def _prepare_once(
    model: nn.Module, config: QConfig, call: g.Call, islands: dict[str, str]
) -> tuple[nn.Module, Plan]:
    copied = copy.deepcopy(model)
    _leave_fast_paths(copied)
    with g.without_hooks(copied):
        calls = g.record_both(copied, call, "prepare")
        plan = Plan(copied, calls, islands, config.target)
    builder = _Builder(copied, config, plan, call)
    builder.build()
    return copied, plan


def _leave_fast_paths(model: nn.Module) -> None:
    """Switch off the fast paths of transformers, which would bypass the quantizers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.enable_nested_tensor = module.use_nested_tensor = False
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0


class _Builder:
    """Adds the quantizers of a plan to the copied model."""

    def __init__(self, model: nn.Module, config: QConfig, plan: Plan, call: g.Call) -> None:
        self.model, self.config, self.plan = model, config, plan
        self.hub = Hub(config.to_dict() if _is_plain(config) else None, call)
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.own: dict[str, list[str]] = {}

    def build(self) -> None:
        weighted = self._upgrade_layers()
        if not weighted and not self.plan.sites:
            raise Unsupported(
                "prepare: the model has no layer that can be quantized (convolution, linear, "
                "embedding, addition, pooling, ...)"
            )
        by_owner: dict[str, list[Site]] = {}
        for site in self.plan.sites.values():
            self._place(site, by_owner)
        for module in self.plan.alone:
            self._place_input(module)
        self._rewrite_owners(by_owner)
        self._note_islands()
        self.hub.attach(self.model)

    # -- layers and their weights

    def _upgrade_layers(self) -> int:
        count = 0
        read = self._weights_read()
        for name, module in list(self.model.named_modules()):
            if type(module) is nn.MultiheadAttention and self.plan.call_of(name) is not None:
                count += self._place_attention(name, module)
                continue
            if is_recurrent(module) and self.plan.call_of(name) is not None:
                count += self._place_recurrent(name, module)
                continue
            if self.plan.call_of(name) is None and g.is_layer(module) and module not in read:
                own = any(True for _ in module.parameters(recurse=False))
                attention = self._module(name.rpartition(".")[0])
                if own and not isinstance(attention, QMultiheadAttention):
                    self.hub.note(name, "never called with the example inputs")
                continue
            if not layers.upgrade(module):
                self._note_float_layer(name, module)
                continue
            if isinstance(module, layers.QuantizedLayer):
                count += self._place_weight(name, module)
        for name, traces in self.plan.traces.items():
            owner = self.model.get_submodule(name)
            self.own[name] = own_weights(owner, traces[EVAL])
            count += len(self.own[name])
        return count

    def _weights_read(self) -> set[nn.Module]:
        """Return the layers that no module calls but whose weight a traced forward reads."""
        found = set()
        for name, traces in self.plan.traces.items():
            owner = self.model.get_submodule(name)
            for node in traces[EVAL].graph.nodes:
                layer, _, attribute = str(node.target).rpartition(".")
                if node.op == "get_attr" and layer and attribute == "weight":
                    found.add(owner.get_submodule(layer))
        return found

    def _place_recurrent(self, name: str, module: nn.Module) -> int:
        kind = type(module).__name__
        spec = self.config.spec_for("weight", name, module)
        count = upgrade_recurrent(
            module, lambda part, held: self._weight_quantizer(f"{name}.{part}", spec, held, 0)
        )
        weights = ", with quantized weights" if count else ""
        self.hub.note(name, f"{kind} is computed in float{weights}")
        return count

    def _place_attention(self, name: str, module: nn.MultiheadAttention) -> int:
        def weight(part: str, held: Tensor) -> Quantizer | None:
            spec = self.config.spec_for("weight", name, module)
            return self._weight_quantizer(f"{name}.{part}", spec, held, 0)

        def value(part: str, nonnegative: bool) -> Quantizer | None:
            spec = self.config.spec_for("activation", name, module)
            if isinstance(spec, Float) or (spec.granularity == "channel"):
                return None
            return self._new_activation(spec, f"{name}.{part}", nonnegative=nonnegative)

        upgrade_attention(module, weight, value)
        return 1

    def _note_float_layer(self, name: str, module: nn.Module) -> None:
        own = any(True for _ in module.parameters(recurse=False))
        if own and g.is_layer(module):
            kind = type(module).__name__
            self.hub.note(name, f"{kind} is computed in float")

    def _place_weight(self, name: str, module: Any) -> int:
        if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.sparse):
            self.hub.note(name, "embeddings with max_norm or sparse gradients stay float")
            return 0
        at_end = module in self.plan.first or module in self.plan.last
        spec = self.config.spec_for("weight", name, module, at_end=at_end)
        quantizer = self._weight_quantizer(name, spec, module.weight, module.weight_axis)
        if quantizer is None:
            self.hub.note(name, "the config keeps its weight in float")
            return 0
        module.bp_weight = quantizer
        return 1

    def _weight_quantizer(
        self, name: str, spec: QSpec | Float, weight: Tensor, axis: int
    ) -> Quantizer | None:
        if isinstance(spec, Float):
            return None
        if spec.group is not None and weight.shape[-1] % spec.group:
            self.hub.note(
                name,
                f"groups of {spec.group} do not divide its last dimension {weight.shape[-1]}: "
                "a scale per channel instead",
                quantized=True,
            )
            spec = spec.replace(group=None)
        grid = grid_of(spec, "weight", target=self.config.target, axis=axis)
        scales = 1
        if grid.group is not None:
            scales = weight.numel() // grid.group
        elif grid.axis is not None:
            scales = weight.shape[grid.axis]
        quantizer = quantizer_class(spec)(spec, grid, name, "weight", scales).to(self.device)
        with torch.no_grad():
            quantizer(weight)  # set the scales from the current weights
        return quantizer

    # -- activations

    def _activation_spec(self, site: Site) -> QSpec | Float:
        at_end = site.point.model_input or site.point.feeds_last
        spec: QSpec | Float = FLOAT
        for index, name in enumerate(site.names):
            module = self._module(name)
            found = self.config.spec_for("activation", name, module, at_end=at_end)
            default = self.config.spec_for("activation", "", None, at_end=at_end)
            if index == 0 or found != default:
                spec = found
        return spec

    def _module(self, name: str) -> nn.Module | None:
        try:
            return self.model.get_submodule(name)
        except AttributeError:
            return None

    def _activation_quantizer(self, site: Site) -> Quantizer | None:
        spec = self._activation_spec(site)
        if isinstance(spec, Float):
            return None
        nonnegative, limit = site.point.nonnegative, site.point.limit
        return self._new_activation(spec, site.name, site.channels or 1, nonnegative, limit)

    def _new_activation(
        self,
        spec: QSpec,
        name: str,
        channels: int = 1,
        nonnegative: bool = False,
        limit: float = 0.0,
    ) -> Quantizer:
        grid = grid_of(
            spec, "activation", target=self.config.target, nonnegative=nonnegative, axis=1
        )
        scales = channels if grid.axis is not None else 1
        limit = limit if grid.quant_min == 0 else 0.0
        quantizer = quantizer_class(spec)(spec, grid, name, "activation", scales, limit)
        return quantizer.to(self.device)

    def _place(self, site: Site, by_owner: dict[str, list[Site]]) -> None:
        quantizer = self._activation_quantizer(site)
        if quantizer is None:
            self.hub.note(site.name, "the config keeps its result in float")
            return
        if site.runs > 1:
            self.hub.note(
                site.name, f"called {site.runs} times: one quantizer for all", quantized=True
            )
        self._fuse_norm(site, quantizer)
        if site.layer is None:
            assert site.owner is not None
            by_owner.setdefault(site.owner, []).append(site)
            site.quantizer = quantizer
            return
        layer: Any = site.layer
        layer.bp_output = quantizer
        if type(layer) in layers.QUANTIZED.values():
            return
        fused = site.activation if site.activation in FUSED_ACTIVATIONS else None
        rewrite(layer, _ACTIVATION_SOURCE.format(name=fused) if fused else _LAYER_SOURCE)

    def _fuse_norm(self, site: Site, quantizer: Quantizer) -> None:
        """Let one op compute the BatchNorm and its quantizer, if only a ReLU lies between them."""
        norm: Any = site.norm
        usable = isinstance(norm, layers.NORMS) and layers.can_fuse(norm)
        if not usable or not isinstance(quantizer, RangeQuantizer) or not quantizer.fast:
            return
        if site.activation not in layers.FUSED_WITH_NORM or site.add:
            return
        norm.bp_tail = (quantizer, site.activation)
        quantizer.watched = (norm,) if site.layer in (None, norm) else (norm, site.layer)
        quantizer.follows_norm = site.layer is not norm

    def _place_input(self, module: nn.Module) -> None:
        """Add a quantizer for the input of a layer that lies in no traced part."""
        if not isinstance(module, layers.QuantizedLayer) or isinstance(module, nn.Embedding):
            return
        held: Any = module
        name = self.plan.names[module]
        spec = self.config.spec_for("activation", name, module)
        if isinstance(spec, Float) or held.bp_weight is None:
            return
        channels = int(getattr(held, "in_channels", getattr(held, "in_features", 1)))
        held.bp_input = self._new_activation(spec, f"{name}.input", channels)

    # -- owners

    def _rewrite_owners(self, by_owner: dict[str, list[Site]]) -> None:
        for name, traces in self.plan.traces.items():
            owner = self.model.get_submodule(name)
            sites, own = by_owner.get(name, []), self.own.get(name, [])
            own = [w for w in own if self._place_own(name, owner, w)]
            order = sorted(
                range(len(sites)), key=lambda i: min(sites[i].positions.values(), default=-1)
            )
            sites = [sites[i] for i in order]
            source = emit(owner, traces, sites, own)
            if source is None:
                continue
            if sites:
                owner.bp_sites = nn.ModuleList(s.quantizer for s in sites if s.quantizer)
            constants: dict[str, Any] = {}
            for trace in traces.values():
                constants |= trace.graph.bitpare_constants  # type: ignore[attr-defined]
            for constant, value in constants.items():
                owner.register_buffer(constant, value, persistent=False)
            rewrite(owner, source)

    def _place_own(self, name: str, owner: nn.Module, weight: str) -> bool:
        spec = self.config.spec_for("weight", name, owner)
        quantizer = self._weight_quantizer(f"{name}.{weight}", spec, getattr(owner, weight), 0)
        if quantizer is None:
            return False
        if not hasattr(owner, "bp_weights"):
            owner.bp_weights = nn.ModuleDict()
        owner.bp_weights[weight] = quantizer  # type: ignore[index,operator]
        return True

    def _note_islands(self) -> None:
        self.hub.islands = list(self.plan.islands)
        for name, reason in self.plan.islands.items():
            self.hub.note(name or "(the model)", f"keeps its own forward: {reason}")
        for end, concat in self.plan.shared:
            self.hub.note(end, f"quantized with {concat}, its only reader", quantized=True)


def _is_plain(config: QConfig) -> bool:
    try:
        config.to_dict()
    except ValueError:
        return False
    return True
