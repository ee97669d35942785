"""What the extra `stssd` installs, asked for before work begins that would miss it at its end."""

from __future__ import annotations

import importlib.util


def check_packages(*names: str) -> None:
    """Say plainly which package is missing, without importing any.

    Args:
        names: The packages, as pip calls them.

    Raises:
        ImportError: If one is not installed; names it and the extra that brings it.
    """
    modules = {"scikit-learn": "sklearn"}
    for name in names:
        if importlib.util.find_spec(modules.get(name, name)) is None:
            raise ImportError(f"a2mae stssd needs {name}; install it with: pip install 'a2mae-hub[stssd]'.")
