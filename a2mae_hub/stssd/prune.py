"""Pruning by clusters: fewer sets that differ more, with a fixed share for the hard ones.

The A2-MAE paper prunes STSSD by clustering, balances diversity, and keeps hard places of low heterogeneity; it
publishes neither algorithm nor numbers. These are ours:

    features of every set ──► equal pixels: one stays ──► k-means ──► near-duplicates within a cluster: one stays
    ──► equal quota for every cluster ──► of it, a share for the least heterogeneous members, the rest spread evenly

Near-duplicates show one place alike (`clusters.near_duplicates`): two lakes that look alike in different places are
none. Those that k-means parts, which are the ones on the border of two clusters, are not found.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from a2mae_hub.modeling.image_inputs_a2mae import is_whole
from a2mae_hub.whole_files import sync_folder, write_atomically

from .clusters import choose, comparable, find_clusters, near_duplicates, water_fill
from .features import checkpoint_features, heterogeneity, spectral_statistics
from .packages import check_packages
from .schema import StoredSet, decode, from_row
from .shards import (
    ShardFiles,
    ShardWriter,
    find_shards,
    open_shards,
    root_of,
    row_groups,
)


@dataclass(frozen=True)
class Duplicate:
    """A set that was left out for another one.

    Attributes:
        id: The set that was left out.
        of: The set that it repeats.
        rule: "pixels" (equal numbers) or "features" (one place, and alike).
    """

    id: str
    of: str
    rule: str


@dataclass(frozen=True)
class Cluster:
    """What became of one cluster.

    Attributes:
        size: Sets in it, duplicates left out.
        quota: Sets that it may keep.
        kept: Sets that it keeps.
        hard: Of these, the ones kept for being least heterogeneous.
        mean_heterogeneity: Over the members; None where none is known.
        mean_heterogeneity_kept: Over the kept ones; likewise.
    """

    size: int
    quota: int
    kept: int
    hard: int
    mean_heterogeneity: float | None
    mean_heterogeneity_kept: float | None


@dataclass(frozen=True)
class PruneReport:
    """What a pruning did, as `prune.json` holds it.

    Attributes:
        before: Sets before.
        after: Sets after.
        keep: What was asked for: a number, or a share of the sets before.
        hard_share: Share of every quota for the least heterogeneous members.
        seed: Of k-means.
        features: What the sets were compared by: "spectral statistics", or the name of a checkpoint.
        kinds: Per kind, the sets before and after.
        splits: Per split, the sets before and after.
        clusters: The clusters, the largest first.
        duplicates: What was left out for another set, in the order of the shards.
    """

    before: int
    after: int
    keep: int | float
    hard_share: float
    seed: int
    features: str
    kinds: dict[str, tuple[int, int]]
    splits: dict[str, tuple[int, int]]
    clusters: tuple[Cluster, ...]
    duplicates: tuple[Duplicate, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return json.loads(json.dumps(asdict(self)))

    def __str__(self) -> str:
        """Tell the report in a few lines."""
        rules = Counter(duplicate.rule for duplicate in self.duplicates)
        kept = [cluster.kept for cluster in self.clusters]
        lines = [
            f"{self.after} of {self.before} sets kept, in {len(self.clusters)} clusters of {min(kept)} to {max(kept)}; "
            f"{sum(cluster.hard for cluster in self.clusters)} of them for being hard.",
            f"{rules['pixels']} left out for equal pixels, {rules['features']} for showing one place alike.",
        ]
        lines += [f"  {kind}: {after} of {before}" for kind, (before, after) in self.kinds.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Facts:
    """What is kept in memory of every set: n sets, D features."""

    ids: list[str]
    kinds: list[str]
    splits: list[str]
    digests: list[bytes]
    geometries: list[bytes | None]
    places: np.ndarray  # (n, 2) longitude and latitude, NaN where unknown
    heterogeneity: np.ndarray  # (n,) NaN where unknown
    features: np.ndarray  # (n, D) float32


def prune(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    keep: int | float,
    clusters: int | None = None,
    hard_share: float = 0.2,
    checkpoint: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> PruneReport:
    """Write the sets of a data set that are worth keeping to a new one, with `prune.json` and `prune.png` beside them.

    Shards keep their names, and rows their order, columns and metadata. Shards of which nothing is kept are not
    written. Only features stay in memory; pixels are read row group by row group, twice. The same sets, arguments and
    versions of the libraries give the same bytes.

    Args:
        source: The data set, as `find_shards` takes it.
        output: Folder to write to, new or empty. It appears when everything is in it.
        keep: How many sets to keep: a whole number, or a share of all sets above 0 and up to 1.0. Where fewer are left
            without duplicates, all of these are kept.
        clusters: Number k of clusters; None takes √(n / 2) (Mardia et al. 1979), at most 1000.
        hard_share: Share of every cluster's quota that goes to its least heterogeneous members, 0 to 1.
        checkpoint: Folder or id on the Hub of a model whose features to compare sets by; None takes the spectral
            statistics of `a2mae_hub.stssd.features`.
        seed: Of k-means.
        progress: Show bars on the error stream.

    Returns:
        The report.

    Raises:
        FileNotFoundError: If there are no shards, or no checkpoint.
        ValueError: If an argument cannot be, the output is not empty or lies in the source, or a shard is damaged.
        ImportError: If scikit-learn or matplotlib is not installed.
    """
    check_packages("scikit-learn", "matplotlib")
    output = Path(output)
    _check_output(output, source)
    if not 0 <= hard_share <= 1:
        raise ValueError(f"hard_share is {hard_share!r}: it must be a share, 0 to 1.")
    if not is_whole(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}: it must be a whole number, 0 to 2³² − 1.")
    files = find_shards(source)
    rows = {path: shard.metadata.num_rows for path, shard in open_shards(files)}
    count = sum(rows.values())
    if not count:
        raise ValueError(f"{os.fspath(source)}: holds no image sets; build some with `a2mae stssd build`.")
    wanted = _wanted(keep, count)
    if clusters is not None and not (is_whole(clusters) and 1 <= clusters <= count):
        raise ValueError(f"clusters is {clusters!r}: it must be a whole number, 1 to {count} for {count} sets.")

    facts = _read(files, rows, checkpoint, progress)
    order = _ranks(facts.ids)
    equal = _equal_pixels(facts.digests, order)
    unlike = np.array([index for index in range(count) if index not in equal])
    features = comparable(facts.features[unlike])
    labels, to_centre = find_clusters(features, clusters, seed)
    # Of near-duplicates, the less heterogeneous goes, or else the one of the later id.
    preference = _ranks(list(zip(-np.nan_to_num(facts.heterogeneity[unlike], nan=-1.0), order[unlike], strict=True)))
    near = near_duplicates(features, labels, [facts.geometries[index] for index in unlike], preference)
    left = np.array([index not in near for index in range(len(unlike))])
    members = unlike[left]
    chosen, is_hard = choose(
        labels[left], to_centre[left], facts.heterogeneity[members], order[members], wanted, hard_share
    )
    kept, hard, cluster_of = np.zeros(count, bool), np.zeros(count, bool), np.full(count, -1)
    kept[members], hard[members], cluster_of[members] = chosen, is_hard, labels[left]

    alike = {int(unlike[index]): int(unlike[other]) for index, other in near.items()}
    duplicates = [(index, alike.get(other, other), "pixels") for index, other in equal.items()]
    duplicates += [(index, other, "features") for index, other in alike.items()]
    report = PruneReport(
        before=count,
        after=int(kept.sum()),
        keep=wanted if is_whole(keep) else float(keep),
        hard_share=float(hard_share),
        seed=int(seed),
        features=checkpoint or "spectral statistics",
        kinds=_counts(facts.kinds, kept),
        splits=_counts(facts.splits, kept),
        clusters=_cluster_reports(cluster_of, kept, hard, facts.heterogeneity, wanted),
        duplicates=tuple(Duplicate(facts.ids[i], facts.ids[other], rule) for i, other, rule in sorted(duplicates)),
    )
    _write(source, files, rows, output, kept, hard, facts, report, progress)
    return report


# ------------------------------------------------------------------------------------------------------------ arguments


def _check_output(output: Path, source: str | os.PathLike[str]) -> None:
    """Raise ValueError unless the output is new or empty, and no part of the source."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: is there already and not empty; name a new folder.")
    if Path(source).is_dir() and output.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(f"{output}: lies in the data set to prune, {source}; name a folder elsewhere.")


def _wanted(keep: int | float, count: int) -> int:
    """Return how many of the sets to keep."""
    if is_whole(keep) and 1 <= keep <= count:
        return int(keep)
    if isinstance(keep, float) and 0 < keep <= 1:
        return max(1, round(keep * count))
    raise ValueError(
        f"keep is {keep!r}: it must be a number of sets, 1 to {count} for {count} sets, or a share above 0.0 and up to "
        "1.0."
    )


# ------------------------------------------------------------------------------------------------------------- features


def _open(files: ShardFiles, rows: dict[str, int]) -> Iterator[tuple[str, pq.ParquetFile]]:
    """Open one shard after the other; raise ValueError where one is no longer what it was."""
    for path, shard in open_shards(files):
        if shard.metadata.num_rows != rows[path]:
            raise ValueError(f"{path}: has changed while it was pruned; prune the data set again.")
        yield path, shard


def _read(files: ShardFiles, rows: dict[str, int], checkpoint: str | None, progress: bool) -> _Facts:
    """Read every set once, and keep what pruning needs to know of it."""
    count = sum(rows.values())
    encoder = None
    if checkpoint is not None:
        from a2mae_hub.inference import load_checkpoint

        encoder = load_checkpoint(checkpoint)
    ids: list[str] = []
    kinds: list[str] = []
    splits: list[str] = []
    digests: list[bytes] = []
    geometries: list[bytes | None] = []
    places = np.full((count, 2), np.nan)
    spread = np.full(count, np.nan)
    features = np.empty((0, 0), np.float32)
    with tqdm(total=count, desc="features", unit="set", disable=not progress) as bar:
        for path, shard in _open(files, rows):
            for first_row, table in row_groups(shard, path):
                sets = [from_row(row) for row in decode(table, path, first_row)]
                if not sets:
                    continue
                start = len(ids)
                some = checkpoint_features(sets, encoder) if encoder else np.stack(_statistics_of(sets, path))
                if not start:
                    features = np.empty((count, some.shape[1]), np.float32)
                features[start : start + len(sets)] = some
                for index, image_set in enumerate(sets, start):
                    ids.append(image_set.id)
                    kinds.append(image_set.kind)
                    splits.append(image_set.split)
                    digests.append(_digest(image_set))
                    geometries.append(_readable(image_set.geometry, f"{path}: row {first_row + index - start}"))
                    if image_set.longitude is not None and image_set.latitude is not None:
                        places[index] = image_set.longitude, image_set.latitude
                    known = image_set.heterogeneity
                    known = heterogeneity(image_set) if known is None else known
                    spread[index] = np.nan if known is None else known
                bar.update(len(sets))
    return _Facts(ids, kinds, splits, digests, geometries, places, spread, features)


def _readable(geometry: bytes | None, label: str) -> bytes | None:
    """Return a footprint, or raise ValueError if it is none."""
    import shapely

    if geometry is not None and shapely.from_wkb(geometry, on_invalid="ignore") is None:
        raise ValueError(
            f"{label} has a geometry that is no WKB; the row is damaged, so build or fetch the shard again."
        )
    return geometry


def _statistics_of(sets: Sequence[StoredSet], path: str) -> list[np.ndarray]:
    """Return the spectral statistics of sets; an error names the shard and the set."""
    found = []
    for image_set in sets:
        try:
            found.append(spectral_statistics(image_set))
        except ValueError as error:
            raise ValueError(f"{path}: set {image_set.id!r}: {error}") from error
    return found


def _digest(image_set: StoredSet) -> bytes:
    """Return a digest of the pixels of a set, whatever the order of its images."""
    images = []
    for image in image_set:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(
            json.dumps([image.sensor, list(image.bands), image.pixels.dtype.str, image.pixels.shape]).encode()
        )
        digest.update(np.ascontiguousarray(image.pixels).data)
        images.append(digest.digest())
    return hashlib.blake2b(b"".join(sorted(images)), digest_size=16).digest()


def _equal_pixels(digests: Sequence[bytes], order: np.ndarray) -> dict[int, int]:
    """Return, for every set whose pixels another one has too, the one of them that stays: the first in order."""
    stays: dict[bytes, int] = {}
    for index in np.argsort(order).tolist():
        stays.setdefault(digests[index], index)
    return {index: stays[digest] for index, digest in enumerate(digests) if stays[digest] != index}


def _ranks(keys: Sequence[Any]) -> np.ndarray:
    """Return the position of every key in their order; the first of equal ones comes first."""
    ranks = np.empty(len(keys), int)
    ranks[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return ranks


# --------------------------------------------------------------------------------------------------- report and shards


def _counts(names: Sequence[str], kept: np.ndarray) -> dict[str, tuple[int, int]]:
    """Return how many sets of each name there are before and after."""
    before, after = Counter(names), Counter(name for name, stays in zip(names, kept, strict=True) if stays)
    return {name: (before[name], after[name]) for name in sorted(before)}


def _cluster_reports(
    cluster_of: np.ndarray, kept: np.ndarray, hard: np.ndarray, spread: np.ndarray, wanted: int
) -> tuple[Cluster, ...]:
    """Return what became of every cluster."""
    quotas = water_fill(np.bincount(cluster_of[cluster_of >= 0]), wanted)
    reports = []
    for label, quota in enumerate(quotas.tolist()):
        members = cluster_of == label
        reports.append(
            Cluster(
                size=int(members.sum()),
                quota=quota,
                kept=int((members & kept).sum()),
                hard=int((members & hard).sum()),
                mean_heterogeneity=_mean(spread[members]),
                mean_heterogeneity_kept=_mean(spread[members & kept]),
            )
        )
    return tuple(reports)


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of what is known, to six digits."""
    known = values[np.isfinite(values)]
    return float(f"{known.mean():.6g}") if len(known) else None


def _write(
    source: str | os.PathLike[str],
    files: ShardFiles,
    rows: dict[str, int],
    output: Path,
    kept: np.ndarray,
    hard: np.ndarray,
    facts: _Facts,
    report: PruneReport,
    progress: bool,
) -> None:
    """Write the folder under a hidden name, and give it its own when everything is in it."""
    from .figures import plot_prune

    hidden = output.with_name(f".{output.name}.part")
    if hidden.exists():
        shutil.rmtree(hidden)  # left by a pruning that was interrupted
    hidden.mkdir(parents=True)
    try:
        _write_shards(source, files, rows, hidden, kept, progress)
        write_atomically(hidden / "prune.json", json.dumps(report.to_dict(), indent=1) + "\n")
        plot_prune(
            hidden / "prune.png",
            report,
            places=facts.places,
            heterogeneity=facts.heterogeneity,
            kept=kept,
            hard=hard,
        )
        if output.exists():
            output.rmdir()
        os.replace(hidden, output)
        sync_folder(output.parent)
    finally:
        if hidden.exists():
            shutil.rmtree(hidden)


def _write_shards(
    source: str | os.PathLike[str],
    files: ShardFiles,
    rows: dict[str, int],
    folder: Path,
    kept: np.ndarray,
    progress: bool,
) -> None:
    """Write the rows to keep, shard by shard."""
    root = root_of(source, files)
    with tqdm(total=len(kept), desc="shards", unit="set", disable=not progress) as bar:
        done = 0
        for path, shard in _open(files, rows):
            stays = kept[done : done + rows[path]]
            done += rows[path]
            if stays.any():
                target = folder / os.path.relpath(path, root)
                target.parent.mkdir(parents=True, exist_ok=True)
                with ShardWriter(target, shard.schema_arrow) as writer:
                    for first_row, table in row_groups(shard, path):
                        writer.write_table(table.filter(pa.array(stays[first_row : first_row + len(table)])))
            bar.update(rows[path])
