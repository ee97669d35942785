"""What is declared of a scene before it is opened: its files, and what they do not say themselves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class SceneSource:
    """The files of one scene, from a folder or a STAC item. None: as the files say (see `a2mae_hub.raster`).

    Attributes:
        paths: Rasters that make up one image: anything GDAL opens.
        name: What the scene is called in provenance and messages; no path of this machine.
        sensor: Name in the sensor registry.
        bands: Band names: in file order, one per file where the files hold one band each.
        acquired: Acquisition time.
        scale: Factor from stored number to physical value, one or one per band.
        offset: Offset from stored number to physical value, one or one per band.
        nodata: Stored number that means "no data".
        quality: Path of a quality layer (SCL, QA_PIXEL, Fmask).
        cloud_share: Share of the whole scene under cloud, 0 to 1, as its catalogue says.
        licence: Terms of use.
    """

    paths: tuple[str, ...]
    name: str
    sensor: str | None = None
    bands: tuple[str, ...] | None = None
    acquired: datetime | None = None
    scale: float | tuple[float, ...] | None = None
    offset: float | tuple[float, ...] | None = None
    nodata: float | None = None
    quality: str | None = None
    cloud_share: float | None = None
    licence: str | None = None
