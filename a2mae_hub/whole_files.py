"""Files that are whole or not there: written under another name in their folder, and renamed at the end."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path, inside: Path | None = None) -> Iterator[Path]:
    """Give the name to write a file under; it takes its own when the block ends, and is removed if that fails.

    Args:
        path: The file; one that is there is replaced. The other name ends as this one does.
        inside: Folder on the same disk to write it in; None takes that of the file.
    """
    temporary = (inside or path.parent) / f".{os.getpid()}.{path.name}"
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of the disk say which file it met: where there is no room left, the system does not."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_atomically(path: Path, text: str) -> None:
    """Write a text file under a temporary name, and rename it when it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with naming(path), open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path, busy: str) -> Iterator[None]:
    """Keep other processes out of a folder; one that dies, however, lets them in.

    Args:
        folder: Where the file of the lock lies.
        busy: What to say where another process is in it.

    Raises:
        ValueError: If another process is in it.
    """
    # It is that of the open file, which processes of ours share.
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{busy}; wait for it, or stop it.") from error
        yield


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
