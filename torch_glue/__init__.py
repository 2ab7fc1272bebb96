"""torch_glue: hashsolve for PyTorch. The only place that imports torch; it stays small."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch_glue.absorbing import absorb_scales as absorb_scales
    from torch_glue.batchnorm import recalibrate_batchnorm as recalibrate_batchnorm
    from torch_glue.binarizing import binarize as binarize
    from torch_glue.checkpoint import load_packed as load_packed
    from torch_glue.checkpoint import save_packed as save_packed
    from torch_glue.export import export_onnx as export_onnx
    from torch_glue.fine_tuning import finetune as finetune
    from torch_glue.network import TorchNetwork as TorchNetwork
    from torch_glue.parametrize import attach as attach
    from torch_glue.parametrize import detach as detach
    from torch_glue.refitting import refit as refit

_WHERE = {
    "TorchNetwork": "network",
    "absorb_scales": "absorbing",
    "attach": "parametrize",
    "binarize": "binarizing",
    "detach": "parametrize",
    "export_onnx": "export",
    "finetune": "fine_tuning",
    "load_packed": "checkpoint",
    "recalibrate_batchnorm": "batchnorm",
    "refit": "refitting",
    "save_packed": "checkpoint",
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> object:
    """Import a public name on first use: torch takes seconds, and not all need safetensors."""
    if name not in _WHERE:
        raise AttributeError(f"module 'torch_glue' has no attribute {name!r}")
    value = getattr(_import_module(f"torch_glue.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
