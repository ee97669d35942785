"""Fixtures shared by every test: where the real imagery lies, and quiet, repeatable libraries."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real imagery and reference outputs: `A2MAE_SHARED`, or `../shared` beside the checkout."""
    folder = Path(os.environ.get("A2MAE_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set A2MAE_SHARED to the folder that holds data/ and fixtures/")
    return folder
