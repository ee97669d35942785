"""Units of work in an actor pool of Ray Data, on the processors of one machine or of a cluster.

Ray shares the units out, restarts a worker that died and gives it the unit again. What is ours is what a unit is, and
that one of which every worker dies is given up.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from .modeling.sensors_a2mae import SENSORS, Sensor, register_sensor

_QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_USAGE_DISABLED": "1"}
_PATIENCE = 20.0  # seconds for a cluster to answer
_TRIES = 3  # a unit that its workers died of so often is given up


class Result(NamedTuple):
    """What a worker says of a unit.

    Attributes:
        number: Of the unit.
        value: What the job returned.
        error: One sentence where it failed.
        kind: Name of the class of the error.
    """

    number: int
    value: Any = None
    error: str | None = None
    kind: str | None = None


def check_workers(workers: int, gpus_per_worker: float = 0) -> None:
    """Raise ValueError unless the numbers can be."""
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1.")
    if gpus_per_worker < 0:
        raise ValueError(f"gpus_per_worker={gpus_per_worker} must be 0 or more.")


@contextmanager
def on_ray(address: str | None) -> Iterator[None]:
    """Connect to Ray, unless this process is connected already, and leave it at the end.

    Args:
        address: "auto", or host and port; None starts Ray on this machine, unless `RAY_ADDRESS` names a cluster.

    Raises:
        ImportError: If Ray is not installed.
        ConnectionError: If there is no cluster at the address.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("This needs Ray Data; install it with: pip install 'a2mae-hub[ray]'.") from error
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    _check_address(address)
    # What goes wrong is told in our words; Ray's own stay in the files of its session. Nothing is told to its
    # makers by a command of ours, unless the user wants that.
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    only_here: dict[str, Any] = {"include_dashboard": False} if address in (None, "local") else {}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **only_here)
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str | None) -> None:
    """Raise ConnectionError where nothing listens at host and port, which Ray itself notices after many minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except OSError as error:
        raise ConnectionError(
            f"{address}: no Ray cluster answers there ({error}); start one, or correct it."
        ) from error


def run_on_ray(
    job: Callable[[int], Any], count: int, state: Path, *, workers: int | None, gpus_per_worker: float = 0
) -> Iterator[Result]:
    """Do units of work in an actor pool of Ray Data.

    A unit whose worker dies is given to the worker that Ray starts in its place. One that three workers died of fails.

    Args:
        job: Does the unit of a number, and returns what JSON can hold; every worker gets a copy.
        count: Number of units.
        state: Folder that all workers see, for marks of the units that are being worked on.
        workers: Processes; None takes one for every processor.
        gpus_per_worker: GPUs, or a part of one, that every worker gets.

    Yields:
        A result for every unit, as they come.

    Raises:
        OSError: If Ray stops.
    """
    import ray
    from ray.data.exceptions import SystemException

    for left in state.glob("*.tries"):
        left.unlink()
    machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    workers = min(workers or max(sum(machines), 1), count)
    # The most processors that as many workers can have each, on the machines there are.
    counts = range(max(machines, default=1), 1, -1)
    threads = next((number for number in counts if sum(cpus // number for cpus in machines) >= workers), 1)
    shared = ray.put(job)  # held here until the last worker has read it
    units = ray.data.from_items([{"number": number} for number in range(count)], override_num_blocks=count)
    results = units.map(
        cast(Any, _Worker),
        fn_constructor_args=(shared, state, tuple(SENSORS.values()), threads),
        # A unit that waits for a busy worker would keep an idle one waiting at the end.
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        **({"num_gpus": gpus_per_worker} if gpus_per_worker else {"num_cpus": threads}),
    )
    results.context.enable_progress_bars = False
    results.context.print_on_execution_start = False
    try:
        for row in results.iter_rows():
            yield Result(**json.loads(row["result"]))
    except (ray.exceptions.RayError, SystemException) as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"Ray stopped ({reason[:300].rstrip('.')}); what is done stays, and the same call goes on."
        ) from error


class _Worker:
    """What runs in a process of Ray.

    Args:
        job: Reference to the job in Ray's object store.
        state: As for `run_on_ray`.
        sensors: The user's own are not there where processes start afresh.
        threads: Of torch.
    """

    def __init__(self, job: Any, state: Path, sensors: Sequence[Sensor], threads: int) -> None:
        import ray

        for sensor in sensors:
            register_sensor(sensor, overwrite=True)
        torch.set_num_threads(threads)
        self._job = ray.get(job)
        self._state = state

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        """Do the unit of a row."""
        return {"result": json.dumps(self._result(int(row["number"]))._asdict())}

    def _result(self, number: int) -> Result:
        """Do a unit, and say how it went."""
        # A mark is made before every try, and taken away after it unless the process dies.
        marks = self._state / f"{number}.tries"
        tries = marks.stat().st_size if marks.exists() else 0
        try:
            if tries >= _TRIES:
                raise OSError(f"{tries} workers died of it, perhaps for want of memory; try fewer workers.")
            with open(marks, "ab") as file:
                file.write(b".")
            result = Result(number, self._job(number))
        except Exception as error:  # whatever it is, the others go on
            known = isinstance(error, (ValueError, OSError, ImportError))
            text = " ".join(str(error).split()) or "no reason given"
            result = Result(number, None, text if known else f"{type(error).__name__}: {text}", type(error).__name__)
        marks.unlink(missing_ok=True)
        return result
