"""Shards of tiny image sets and a model that learns from them in milliseconds, on one thread."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from a2mae_hub import A2MAEConfig

_SHARDS = importlib.util.spec_from_file_location("stssd_fixtures", Path(__file__).parents[1] / "stssd" / "conftest.py")
_FIXTURES = importlib.util.module_from_spec(_SHARDS)
_SHARDS.loader.exec_module(_FIXTURES)
make_set, write_shards = _FIXTURES.make_set, _FIXTURES.write_shards

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Losses to the last bit need the same number of threads everywhere."""
    threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess]:
    """A function that runs a script with arguments, through a launcher where one is given, in a process of its own."""

    def run(script: Path, *arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, *launcher, str(script), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)

    return run


@pytest.fixture
def small_config() -> Callable[..., A2MAEConfig]:
    """A function from further fields to a configuration of a few thousand parameters."""
    return lambda **fields: A2MAEConfig.nano(**{**SMALL, **fields})


@pytest.fixture(scope="session")
def shards(tmp_path_factory, make_set, write_shards) -> Path:
    """Twenty-two sets of three images of 16 × 16 pixels, two of them for validation, in three files."""
    sets = [make_set(number, split="validation" if number in (4, 17) else "train") for number in range(24)]
    return write_shards(tmp_path_factory.mktemp("shards"), sets)
