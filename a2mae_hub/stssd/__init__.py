"""STSSD: image sets of many places, built from scenes, pruned, and streamed from Parquet shards."""

from typing import TYPE_CHECKING

from a2mae_hub.lazy import imported_on_use

if TYPE_CHECKING:
    from .collate import ImageSetCollator
    from .stream import load

_LAZY = {"ImageSetCollator": ".collate", "load": ".stream"}

__getattr__ = imported_on_use(__name__, _LAZY)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)


__all__ = ["ImageSetCollator", "load"]
