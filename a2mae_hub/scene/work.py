"""The blocks of an output that is not finished: one file each, in a folder beside it.

A run that is stopped, killed or out of disk leaves its blocks there, and the same call goes on from them. The output
itself appears when all blocks are there, whole, and then the folder goes.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from a2mae_hub.whole_files import alone_in, naming, whole_file, write_atomically

from .tiling import Block

SUFFIX = ".unfinished"
"""What the name of the folder has more than that of the output."""

_SETTINGS, _FAILURES = "settings.json", "failures.json"


class GivenUp(Exception):
    """What makes the blocks has failed, and will say why."""


class Work:
    """Blocks of one output.

    Args:
        output: The file or folder that is to be written.
        settings: What the blocks depend on; compared with those of blocks that are there.

    Attributes:
        folder: Where the blocks are.

    Raises:
        ValueError: If there are blocks of other settings; says which differ.
        OSError: If nothing can be written beside the output.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        self.folder = output.with_name(output.name + SUFFIX)
        wanted = json.loads(json.dumps(dict(settings)))
        path = self.folder / _SETTINGS
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            differing = [key for key in wanted if found.get(key) != wanted[key]]
            if differing and any(self.folder.glob("*.npy")):
                key = differing[0]
                raise ValueError(
                    f"{self.folder}: holds an unfinished run with another {key} ({_short(found.get(key))}, not"
                    f" {_short(wanted[key])}); repeat that call to finish it, or delete the folder."
                )
        self.folder.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(wanted))
        self._change = threading.Condition()
        self._there: set[Block] = set()
        self._is_complete = self._is_given_up = False

    def alone(self) -> AbstractContextManager[None]:
        """Keep other runs out; raises ValueError where one is at work."""
        return alone_in(self.folder, f"{self.folder}: another run is at work on this output")

    def done(self, blocks: Sequence[Block]) -> set[Block]:
        """Return which blocks are there."""
        names = {path.name for path in self.folder.iterdir()}
        self._there = {block for block in blocks if self._path(block).name in names}
        return set(self._there)

    def save(self, block: Block, values: np.ndarray) -> None:
        """Keep a block."""
        path = self._path(block)
        with naming(path), whole_file(path) as temporary, open(temporary, "wb") as file:
            np.save(file, values)
            file.flush()
            os.fsync(file.fileno())
        with self._change:
            self._there.add(block)
            self._change.notify_all()

    def load(self, block: Block) -> np.ndarray:
        """Return a block."""
        return np.load(self._path(block))

    @contextmanager
    def written_meanwhile(self, write: Callable[[], None]) -> Iterator[Callable[[], None]]:
        """Run what writes the output from `each` beside what makes the blocks, and end when both have.

        Args:
            write: Writes the output.

        Yields:
            What raises the error of `write`, if it has met one by now.
        """
        with ThreadPoolExecutor(1, "write") as thread:
            writing: Future[None] = thread.submit(write)
            try:
                yield lambda: writing.result() if writing.done() else None
                self._become(complete=True)
                writing.result()
            finally:
                self._become(complete=False)

    def each(self, blocks: Sequence[Block]) -> Iterator[tuple[Block, np.ndarray]]:
        """Yield blocks in their order, each as soon as it is there; the end waits until all is well.

        Raises:
            GivenUp: If what makes the blocks has failed.
        """
        for block in blocks:
            self._wait(partial(self._there.__contains__, block))
            yield block, self.load(block)
        self._wait(lambda: self._is_complete)

    def _become(self, complete: bool) -> None:
        """Say that all blocks are there and well; or that no more will come."""
        with self._change:
            self._is_complete, self._is_given_up = self._is_complete or complete, not complete
            self._change.notify_all()

    def _wait(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so."""
        with self._change:
            self._change.wait_for(lambda: self._is_given_up or is_so())
            if not is_so():
                raise GivenUp

    def failures(self) -> list[str]:
        """Return what was reported."""
        path = self.folder / _FAILURES
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def report(self, failures: Sequence[str]) -> None:
        """Keep what could not be done, beside what a run before this one reported."""
        if failures:
            write_atomically(self.folder / _FAILURES, json.dumps(list(dict.fromkeys(failures))))

    def finish(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)

    def _path(self, block: Block) -> Path:
        """Return the file of a block."""
        return self.folder / f"{block[0]:05d}-{block[1]:05d}.npy"


def _short(value: Any) -> str:
    """Return a setting as text that fits a sentence."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
