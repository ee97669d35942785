"""The checkpoints that come with the package, and where they lie."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent

DEFAULT = "a2mae-nano"
"""What is loaded where no checkpoint is named."""


def embedded() -> list[str]:
    """Return the names of the checkpoints that come with the package."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/model.safetensors"))


def checkpoint(name: str = DEFAULT) -> Path:
    """Return the folder of a checkpoint that comes with the package, for `from_pretrained`; no network is needed.

    Args:
        name: One of `embedded()`.

    Raises:
        FileNotFoundError: If there is no such checkpoint in the package; names those that are.

    Example:
        ```python
        >>> import a2mae_hub
        >>> from transformers import AutoModel

        >>> model = AutoModel.from_pretrained(a2mae_hub.checkpoint("a2mae-nano"))
        ```
    """
    if name not in embedded():
        raise FileNotFoundError(f"{name}: no checkpoint of the package, which holds {', '.join(embedded()) or 'none'}.")
    return _FOLDER / name


__all__ = ["DEFAULT", "checkpoint", "embedded"]
