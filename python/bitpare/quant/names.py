"""Finding a prepared model inside what users wrap around it."""

from torch import nn

from bitpare.nn.hub import Hub


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel or torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, nn.parallel.DistributedDataParallel | nn.DataParallel
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def hub_of(model: nn.Module) -> Hub | None:
    """The hub of a prepared model, or of the one prepared part of a larger one."""
    held = (getattr(m, "bp_hub", None) for m in unwrapped(model).modules())
    return next((hub for hub in held if isinstance(hub, Hub)), None)


def find_hub(model: nn.Module, caller: str) -> Hub:
    """The same, where the model must be prepared."""
    hub = hub_of(model)
    if hub is None:
        raise ValueError(f"{caller}: the model is not prepared; call bp.prepare first")
    return hub
