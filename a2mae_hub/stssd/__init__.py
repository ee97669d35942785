"""STSSD: image sets of many places, built from scenes, pruned, and streamed from Parquet shards."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .collate import ImageSetCollator
    from .stream import load

_LAZY = {"ImageSetCollator": ".collate", "load": ".stream"}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that holds it."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)


__all__ = ["ImageSetCollator", "load"]
