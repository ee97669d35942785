"""The data a user holds: images, and sets of images of one place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from a2mae_hub.modeling.georeference_a2mae import PixelGrid, crs_text, ground_resolution, place_images


@dataclass(eq=False)
class Image:
    """One acquisition: a stack of bands on one pixel grid, with what is known about it.

    Nothing is computed here; `A2MAEImageProcessor` turns images into tokens and checks them. A plain dict with the same
    keys works wherever an `Image` does.

    Attributes:
        pixels: (bands, height, width), any numeric dtype. Stored numbers; physical value = pixels × scale + offset.
        bands: One name per band, in the order of `pixels`: the sensor's own ("B08") or the common name ("nir").
        sensor: Name in the sensor registry, for example "sentinel-2-l2a".
        acquired: Acquisition time (naive times are UTC), or None where unknown.
        crs: Coordinate reference system: EPSG code, WKT or PROJ text; None where unknown.
        transform: The six numbers (a, b, c, d, e, f) of the affine map from (column, row) to CRS coordinates,
            x = a·column + b·row + c and y = d·column + e·row + f, as rasterio's `Affine` lists them.
        gsd: Ground sample distance in metres per pixel; only needed where there is no georeference.
        nodata: Stored number that means "no data"; NaN is always read so.
        valid: True where a pixel is real: (height, width) or (bands, height, width) bool.
        scale: Factor from stored number to physical value; None takes the sensor's default.
        offset: Offset from stored number to physical value; None takes the sensor's default.
        source: Where the image comes from (a path, a URL), quoted in error messages.
    """

    pixels: np.ndarray
    bands: Sequence[str]
    sensor: str
    acquired: datetime | None = None
    crs: str | None = None
    transform: Sequence[float] | None = None
    gsd: float | None = None
    nodata: float | None = None
    valid: np.ndarray | None = None
    scale: float | Sequence[float] | None = None
    offset: float | Sequence[float] | None = None
    source: str | None = None

    def valid_values(self) -> np.ndarray:
        """Return where values are real: not `nodata`, not NaN or infinite, and `valid`; (bands, height, width) bool."""
        real = np.isfinite(self.pixels) if self.pixels.dtype.kind == "f" else np.ones(self.pixels.shape, bool)
        if self.nodata is not None:
            real &= self.pixels != self.nodata
        if self.valid is not None:
            real &= self.valid
        return real

    def ground_resolution(self) -> float | None:
        """Return metres per pixel on the ground by the georeference, else `gsd`, else None."""
        if self.crs is None or self.transform is None:
            return self.gsd
        height, width = self.pixels.shape[1:]
        grid = PixelGrid("the image", height, width, 0.0, crs_text(self.crs), tuple(self.transform)[:6])
        return ground_resolution(place_images([grid]).corners[0], height, width)

    def __repr__(self) -> str:
        """Describe the image in one line, without its pixels."""
        when = self.acquired.isoformat(sep=" ", timespec="minutes") if self.acquired else "unknown date"
        bands, height, width = self.pixels.shape
        return f"Image({self.sensor}, {when}, {bands} bands, {height} × {width} {self.pixels.dtype})"


@dataclass(eq=False)
class ImageSet:
    """Images of one ground footprint, of any sensors, dates, bands and ground resolutions.

    Attributes:
        images: One or more images that overlap on the ground.
        longitude: Degrees east of the footprint centre, where the images carry no georeference.
        latitude: Degrees north of the footprint centre, where the images carry no georeference.
        anchor: Index of the anchor image, whose metadata decides how every image is masked in pre-training, and whose
            pixel grid and footprint are the set's.
        name: Free text that tells the set apart in messages and outputs.
    """

    images: list[Image] = field(default_factory=list)
    longitude: float | None = None
    latitude: float | None = None
    anchor: int = 0
    name: str | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __iter__(self) -> Iterator[Image]:
        """Iterate over the images."""
        return iter(self.images)

    def __getitem__(self, index: int) -> Image:
        """Return one image."""
        return self.images[index]


def cut_image(image: Image, rows: slice, columns: slice) -> Image:
    """Return the pixels of some rows and columns of an image, at their place."""
    transform, valid = image.transform, image.valid
    if transform is not None:
        a, b, c, d, e, f = tuple(transform)[:6]
        row, column = rows.start, columns.start
        transform = (a, b, a * column + b * row + c, d, e, d * column + e * row + f)
    return replace(
        image,
        pixels=image.pixels[:, rows, columns],
        valid=None if valid is None else valid[..., rows, columns],
        transform=transform,
    )
