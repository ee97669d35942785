"""How alike the patches of a scene are to a place, from features that `embed_scene` wrote.

Features are read block by block, so memory does not grow with the scene.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from a2mae_hub.grids import Grid, window_of_box
from a2mae_hub.inference import check_output

from .feature_files import FeatureFile, open_features
from .outputs import COG_SUFFIXES, Layout, write_output

if TYPE_CHECKING:
    from .pictures import Picture

SIMILARITY_SUFFIXES = (*COG_SUFFIXES, ".png")

Place = tuple[float, float]
"""Longitude and latitude in degrees."""

_LONGITUDE_LATITUDE = CRS.from_epsg(4326)
# A patch whose feature differs less from the mean of the scene, as a part of its own length, has no direction.
_SMALLEST_DEVIATION = 1e-5


def similar_scene(
    features: str | os.PathLike[str],
    places: Sequence[Place],
    output: str | os.PathLike[str],
    *,
    picture: Picture | None = None,
) -> Grid:
    """Write how alike every patch of a scene is to the patches at one or more places.

    It is the cosine between what a patch and the places have beyond the mean feature of the scene, from −1 to 1. The
    mean goes first because the features of one encoder share a large common part: with it all cosines are near 1. The
    features are read twice therefore. Of several places the reference is the mean of their vectors, each of length 1.

    Args:
        features: GeoTIFF or Zarr, as `embed_scene` wrote it.
        places: Longitude and latitude in degrees.
        output: `.tif` (cloud-optimised GeoTIFF on the patches, float32, NaN where there is no data) or `.png` (figure).
        picture: The scene to look at beside the map, of a figure; see `scene_picture`.

    Returns:
        The patches that the map lies on.

    Raises:
        FileNotFoundError: If the features or the folder of the output are missing.
        ValueError: If a place lies outside the scene or has no data, or the files are not what they should be.
        OSError: If the disk does not take the output.
    """
    source, path = Path(features), Path(output)
    check_output(path, SIMILARITY_SUFFIXES)
    if not places:
        raise ValueError("places= names no place; give longitude and latitude of at least one.")
    if path.exists() and path.samefile(source):
        raise ValueError(f"{path}: holds the features themselves; write the map to another file.")
    with (
        open_features(source) as opened,
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as work,
    ):
        at_places = np.stack([_feature_at(opened, place) for place in places])
        mean = _mean_feature(opened)
        reference = _reference(at_places, mean, places)

        def blocks() -> Iterator[tuple[int, int, np.ndarray]]:
            for column, row, values in opened.blocks():
                yield column, row, _cosines(values, mean, reference)[None]

        is_figure = path.suffix.lower() == ".png"
        target = Path(work) / "similarity.tif" if is_figure else path
        write_output(target, blocks, _layout(opened, places), Path(work))
        if is_figure:
            from .pictures import draw_similarity

            draw_similarity(target, places, path, picture=picture)
    return opened.grid


def locate(grid: Grid, place: Place) -> tuple[int, int]:
    """Return column and row of the cell of a grid that a place lies in.

    Raises:
        ValueError: If it lies outside, or the grid is not georeferenced.
    """
    longitude, latitude = place
    if not (math.isfinite(longitude) and abs(latitude) <= 90):
        raise ValueError(f"The place {_text(place)} is not on Earth; give longitude, then latitude, in degrees.")
    if grid.crs is None:
        raise ValueError(f"The scene has no georeference, so that {_text(place)} cannot be found in it; give it one.")
    window = window_of_box(grid, (longitude, latitude, longitude, latitude), _LONGITUDE_LATITUDE)
    if window is None:
        raise ValueError(
            f"The place {_text(place)} lies outside the scene, which covers {_extent(grid)}; name a place within it,"
            " longitude first."
        )
    return window[0], window[1]


def _feature_at(opened: FeatureFile, place: Place) -> np.ndarray:
    """Return the feature of the patch at a place, (channels,) float64."""
    vector = opened.read((*locate(opened.grid, place), 1, 1), 1)[:, 0, 0].astype(np.float64)
    if np.isnan(vector).any():
        raise ValueError(
            f"The scene has no data at {_text(place)}; name another place of it (it covers {_extent(opened.grid)})."
        )
    return vector


def _mean_feature(opened: FeatureFile) -> np.ndarray:
    """Return the mean over all patches with data, (channels,) float64; there must be one."""
    total, count = np.zeros(opened.channels), 0
    for _, _, values in opened.blocks():
        real = values[:, ~np.isnan(values[0])]
        total += real.sum(axis=1, dtype=np.float64)
        count += real.shape[1]
    return total / count


def _reference(vectors: np.ndarray, mean: np.ndarray, places: Sequence[Place]) -> np.ndarray:
    """Return what (places, channels) vectors have in common beyond the mean, (channels,) of length 1."""
    beyond = vectors - mean
    lengths = np.linalg.norm(beyond, axis=1)
    plain = lengths <= _SMALLEST_DEVIATION * np.linalg.norm(vectors, axis=1)
    if plain.any():
        raise ValueError(
            f"The patch at {_text(places[int(plain.argmax())])} is as the mean of the scene, so that nothing is more"
            " like it than the rest; name another place."
        )
    together = (beyond / lengths[:, None]).mean(axis=0)
    length = np.linalg.norm(together)
    if length <= _SMALLEST_DEVIATION:
        raise ValueError(f"The places {_text(*places)} have nothing in common; make a map of each.")
    return together / length


def _cosines(values: np.ndarray, mean: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the cosine between values beyond the mean and a vector of length 1; 0 where there is nothing beyond.

    Args:
        values: (channels, height, width) float32, NaN where there is no data.
        mean: (channels,).
        reference: (channels,).

    Returns:
        (height, width) float32 from −1 to 1, NaN where there is no data.
    """
    beyond = values - mean.astype(np.float32)[:, None, None]
    lengths = np.sqrt(np.einsum("chw,chw->hw", beyond, beyond))
    products = np.tensordot(reference.astype(np.float32), beyond, axes=1)
    return np.clip(products / np.where(lengths == 0, np.float32(1), lengths), -1, 1)


def _layout(opened: FeatureFile, places: Sequence[Place]) -> Layout:
    """Return what a map of similarity on the patches is like."""
    grid = opened.grid
    return Layout(
        channels=1,
        rows=grid.height,
        columns=grid.width,
        block=opened.block,
        dtype="float32",
        crs=grid.crs_text,
        transform=grid.transform,
        names=["similarity"],
        nodata=float("nan"),
        tags={**_origin(opened.tags), "places": _text(*places)},
    )


def _origin(tags: dict[str, str]) -> dict[str, str]:
    """Return those tags of features that hold for what is made of them."""
    return {key: tags[key] for key in ("checkpoint", "sensors", "acquired") if key in tags}


def _extent(grid: Grid) -> str:
    """Return the box around a grid in degrees as text."""
    box = transform_bounds(grid.crs, _LONGITUDE_LATITUDE, *grid.footprint)
    return "west {:.5f}, south {:.5f}, east {:.5f}, north {:.5f}".format(*box)


def _text(*places: Place) -> str:
    """Return places as text."""
    return "; ".join(f"{longitude:.6g}, {latitude:.6g}" for longitude, latitude in places)
