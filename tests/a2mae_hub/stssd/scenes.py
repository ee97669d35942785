"""Small scenes whose numbers tell the ground they show, so that a test can see where an image was taken."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import rasterio
from rasterio.warp import transform as transform_points

from a2mae_hub.raster import write_raster

UTM = "EPSG:32631"
WEST, NORTH = 500_040.0, 4_700_040.0
BANDS = {"sentinel-2-l2a": ("B02", "B03", "B04", "B08"), "landsat-8-sr": ("B2", "B3", "B4", "B5")}
PIXEL = {"sentinel-2-l2a": 10.0, "landsat-8-sr": 30.0}


def ground(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Return the reflectance of a place in UTM: two ramps, 0.1 at the corner and 0.2 three kilometres east or south."""
    return 0.1 + 0.05 * ((xs - WEST) + (NORTH - ys)) / 3_000


def write_scene(
    path: Path,
    *,
    sensor: str = "sentinel-2-l2a",
    acquired: str | None = "2020-06-01T10:50:00",
    crs: str | None = UTM,
    corner: tuple[float, float] = (WEST, NORTH),
    pixel: float | tuple[float, float] | None = None,
    shape: tuple[int, int] | None = None,
    turn: float = 0.0,
    cloudy: slice | None = None,
    missing: slice | None = None,
    factor: float = 1.0,
) -> Path:
    """Write a scene: 3 km wide by default, rows of `cloudy` as bright as cloud, rows of `missing` without data."""
    width_m, height_m = (pixel, pixel) if isinstance(pixel, float) else (pixel or (PIXEL[sensor],) * 2)
    height, width = shape or (round(3_000 / height_m), round(3_000 / width_m))
    place = (
        rasterio.Affine.translation(*corner)
        @ rasterio.Affine.rotation(turn)
        @ rasterio.Affine.scale(width_m, -height_m)
    )
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    a, b, c, d, e, f = tuple(place)[:6]
    xs, ys = a * columns + b * rows + c, d * columns + e * rows + f
    if crs not in (UTM, None):
        moved = transform_points(crs, UTM, xs.ravel(), ys.ravel())
        xs, ys = (np.asarray(values).reshape(xs.shape) for values in moved)
    reflectance = ground(xs, ys)
    if cloudy is not None:
        reflectance[cloudy] = 0.7
    scale, offset = (1e-4, 0.0) if sensor.startswith("sentinel") else (2.75e-5, -0.2)
    stored = np.rint((reflectance * factor - offset) / scale).astype(np.uint16)
    if missing is not None:
        stored[missing] = 0
    tags = {"sensor": sensor}
    if acquired is not None:
        tags["acquired"] = datetime.fromisoformat(acquired).isoformat()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_raster(
        path,
        np.stack([stored] * 4),
        crs=crs,
        transform=None if crs is None else tuple(place)[:6],
        descriptions=BANDS[sensor],
        nodata=0,
        tags=tags,
    )
    return path


def write_archive(folder: Path) -> Path:
    """Write eight dates of Sentinel-2 and four of Landsat-8 over one place."""
    for date in ("03-05", "03-15", "06-01", "06-11", "08-20", "10-04", "10-14", "12-23"):
        write_scene(folder / "s2" / f"s2_2020-{date}.tif", acquired=f"2020-{date}T10:50:00")
    for date in ("03-06", "06-12", "10-03", "12-01"):
        write_scene(folder / "l8" / f"l8_2020-{date}.tif", sensor="landsat-8-sr", acquired=f"2020-{date}T10:20:00")
    return folder
