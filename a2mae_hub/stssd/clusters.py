"""Which of many sets to keep, by their features: clusters, near-duplicates within them, quotas.

Functions of numbers alone; `a2mae_hub.stssd.prune` reads and writes the sets. n sets, D features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

NEAR_SHARE = 0.1
"""Sets of one place are near-duplicates below this share of the typical distance to the nearest other place.

Measured on simulated sets, by spectral statistics: images that differ in the noise of the sensor alone lie at 0.02 to
0.08 of that distance, the same places some days apart at 0.3 and more.
"""

_OVERLAP = 0.5  # share of the smaller footprint from which two sets show one place
_MOST_CLUSTERS = 1000  # of the default; more can be asked for
_MANY_SETS = 20_000  # from here on k-means works on batches
_DISTANCES_AT_ONCE = 2**22


def comparable(features: np.ndarray) -> np.ndarray:
    """Return features of mean 0 and standard deviation 1.

    The inverse hyperbolic sine before that is linear around 0 and a logarithm far out, so that the few sets under
    bright clouds or snow do not push all others together.

    Args:
        features: (n, D).

    Returns:
        (n, D) float64; 0 where a feature is the same for all.
    """
    values = np.arcsinh(features.astype(np.float64))
    std = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(std > 1e-9, std, 1.0)


def find_clusters(features: np.ndarray, clusters: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Group sets by k-means (Lloyd 1982; in batches, after Sculley 2010, from 20 000 sets on).

    Args:
        features: (n, D) as `comparable` returns them.
        clusters: Number k of clusters, of which there are never more than sets that differ; None takes √(n / 2) (Mardia
            et al. 1979), at most 1000.
        seed: Of the first centres.

    Returns:
        The cluster of every set, (n,) int64, numbered from the largest; and its distance to the centre, (n,) float64.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    count = len(features)
    asked = min(max(1, round(math.sqrt(count / 2))), _MOST_CLUSTERS) if clusters is None else clusters
    asked = min(asked, len(np.unique(features, axis=0)))
    if count < _MANY_SETS:
        kmeans = KMeans(asked, n_init=4, random_state=seed)
    else:
        kmeans = MiniBatchKMeans(asked, n_init=4, batch_size=4096, random_state=seed)
    # Several threads would add up in an order of their own, and could end elsewhere.
    with threadpool_limits(1):
        kmeans.fit(features)
    found, labels = np.unique(kmeans.labels_, return_inverse=True)
    first = np.full(len(found), count)
    np.minimum.at(first, labels, np.arange(count))
    rank = np.empty(len(found), int)
    rank[np.lexsort((first, -np.bincount(labels)))] = np.arange(len(found))
    to_centre = np.linalg.norm(features - kmeans.cluster_centers_[kmeans.labels_], axis=1)
    return rank[labels], to_centre


# ------------------------------------------------------------------------------------------------------ near-duplicates


def near_duplicates(
    features: np.ndarray, labels: np.ndarray, geometries: Sequence[bytes | None], preference: np.ndarray
) -> dict[int, int]:
    """Find the sets that show a place as another set of their cluster does.

    Two sets are near-duplicates if their footprints overlap by half of the smaller one, or the place of either is
    unknown; and their features are closer than `NEAR_SHARE` of the distance at which, in the median over the cluster,
    the nearest other place lies. In clusters that are wider than most, the median over the clusters counts.

    Args:
        features: (n, D) as `comparable` returns them.
        labels: (n,) cluster of each, as `find_clusters` returns it.
        geometries: Footprints as WKB; None where the place is unknown.
        preference: (n,) unlike numbers; of two near-duplicates the one with the lower number stays.

    Returns:
        For every set to leave out, one that stays and that it repeats, by index.
    """
    groups = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    overlaps = [_overlapping([geometries[index] for index in members.tolist()]) for members in groups]
    typical = [_typical_distance(features[members], pairs) for members, pairs in zip(groups, overlaps, strict=True)]
    known = [distance for distance in typical if math.isfinite(distance)]
    repeats: dict[int, int] = {}
    if not known:
        return repeats
    usual = float(np.median(known))
    is_unknown = np.array([geometry is None for geometry in geometries])
    for members, pairs, distance in zip(groups, overlaps, typical, strict=True):
        limit = NEAR_SHARE * min(distance, usual)
        near = members[_near_pairs(features[members], pairs, is_unknown[members], limit)]
        near = np.take_along_axis(near, preference[near].argsort(axis=1), axis=1)
        # In this order, whether the first of a pair stays is settled before its pairs come up.
        for first, second in near[np.lexsort(preference[near].T[::-1])].tolist():
            if first not in repeats:
                repeats.setdefault(second, first)
    return repeats


def _overlapping(geometries: Sequence[bytes | None]) -> np.ndarray:
    """Return the pairs of footprints that show one place, (pairs, 2) with the lower index first."""
    import shapely

    shapes = shapely.from_wkb(np.array(geometries, dtype=object))
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    first, second = first[first < second], second[first < second]
    smaller = np.minimum(shapely.area(shapes[first]), shapely.area(shapes[second]))
    shared = shapely.area(shapely.intersection(shapes[first], shapes[second]))
    return np.stack([first, second], axis=1)[shared >= _OVERLAP * smaller]


def _typical_distance(features: np.ndarray, same_place: np.ndarray) -> float:
    """Return the median distance of a set to the nearest one of another place; infinite where there is none."""
    nearest = np.full(len(features), np.inf)
    both_ways = np.concatenate([same_place, same_place[:, ::-1]])
    for rows, distances in _distances(features):
        here = both_ways[(both_ways[:, 0] >= rows.start) & (both_ways[:, 0] < rows.stop)]
        distances[here[:, 0] - rows.start, here[:, 1]] = np.inf
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = np.inf
        nearest[rows] = distances.min(axis=1)
    finite = nearest[np.isfinite(nearest)]
    return float(np.median(finite)) if len(finite) else math.inf


def _near_pairs(features: np.ndarray, same_place: np.ndarray, is_unknown: np.ndarray, limit: float) -> np.ndarray:
    """Return the pairs closer than the limit that are, or may be, one place: (pairs, 2), the lower index first."""
    count = len(features)
    same_codes = same_place @ (count, 1)
    found = [np.zeros((0, 2), int)]
    for rows, distances in _distances(features):
        first, second = np.nonzero(distances <= limit)
        pairs = np.stack([first + rows.start, second], axis=1)
        pairs = pairs[pairs[:, 0] < pairs[:, 1]]
        found.append(pairs[np.isin(pairs @ (count, 1), same_codes) | is_unknown[pairs].any(axis=1)])
    return np.concatenate(found)


def _distances(features: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Iterate over blocks of rows of the matrix of distances, (rows, n) float64 each."""
    from scipy.spatial.distance import cdist  # comes with scikit-learn

    count = len(features)
    step = max(1, _DISTANCES_AT_ONCE // count)
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        yield rows, cdist(features[rows], features)


# --------------------------------------------------------------------------------------------------------------- choice


def water_fill(sizes: Sequence[int] | np.ndarray, total: int) -> np.ndarray:
    """Return how many to keep of each cluster: the same of all, and the whole of those that have no more.

    Args:
        sizes: Members of each cluster.
        total: How many to keep in all.

    Returns:
        (clusters,) int64 that sum to `total`, or to all members where there are fewer. No two clusters that keep less
        than they have differ by more than one; the larger ones get what does not divide.
    """
    sizes = np.asarray(sizes, np.int64)
    quotas = np.zeros_like(sizes)
    left = total
    for done, cluster in enumerate(np.argsort(sizes, kind="stable").tolist()):
        quotas[cluster] = min(int(sizes[cluster]), left // (len(sizes) - done))
        left -= int(quotas[cluster])
    return quotas


def choose(
    labels: np.ndarray,
    to_centre: np.ndarray,
    spread: np.ndarray,
    ties: np.ndarray,
    wanted: int,
    hard_share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the sets to keep: of every cluster its quota, some of it for the hard ones, the rest spread evenly.

    Args:
        labels: (n,) cluster of each.
        to_centre: (n,) distance to the centre of the cluster.
        spread: (n,) heterogeneity; NaN where unknown.
        ties: (n,) unlike numbers; of two sets that are equal otherwise the one with the lower number goes first.
        wanted: How many to keep.
        hard_share: Share of them that are kept for being the least heterogeneous of their cluster.

    Returns:
        Which to keep, and which of them for being hard, (n,) bool each.
    """
    chosen, hard = np.zeros(len(labels), bool), np.zeros(len(labels), bool)
    quotas = water_fill(np.bincount(labels), wanted)
    # Rounded along the clusters, so that quotas too small for a whole hard set add up to the share all the same.
    hard_quotas = np.diff(np.floor(np.cumsum(quotas) * hard_share + 0.5), prepend=0).astype(int)
    for label, (quota, hard_quota) in enumerate(zip(quotas.tolist(), hard_quotas.tolist(), strict=True)):
        members = np.flatnonzero(labels == label)
        members = members[np.lexsort((ties[members], np.nan_to_num(spread[members], nan=np.inf)))]
        rest = members[hard_quota:]
        rest = rest[np.lexsort((ties[rest], to_centre[rest]))]
        # From the centre of the cluster to its rim, at equal steps of rank.
        steps = ((np.arange(quota - hard_quota) + 0.5) * len(rest) / max(quota - hard_quota, 1)).astype(int)
        hard[members[:hard_quota]] = True
        chosen[members[:hard_quota]] = True
        chosen[rest[steps]] = True
    return chosen, hard
