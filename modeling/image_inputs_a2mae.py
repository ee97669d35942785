"""What a caller may hand to the processor, read and checked: image sets, images, pixels, bands, units.

No class of ours is required: an image is anything with `pixels`, a set anything with `images`, and plain dicts and
arrays do as well. Everything that cannot be what it says it is becomes a `ValueError` that names the image and the way
out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .georeference_a2mae import PixelGrid, crs_text, minutes_since_2000
from .sensors_a2mae import Sensor

IMAGE_FIELDS = (
    "pixels",
    "bands",
    "sensor",
    "acquired",
    "crs",
    "transform",
    "gsd",
    "nodata",
    "valid",
    "scale",
    "offset",
    "source",
)
SET_FIELDS = ("images", "longitude", "latitude", "anchor", "name")

# The unit check looks at about this many values of each band.
_CHECKED_VALUES = 1024


class BandTable(NamedTuple):
    """What a sensor says of the bands of an image, in the image's order: C bands."""

    source_id: int
    sensor: Sensor
    names: tuple[str, ...]
    wavelengths: np.ndarray  # (C,) float32, nanometres
    widths: np.ndarray  # (C,) float32, nanometres
    means: np.ndarray  # (C,) float64, in the unit of the sensor
    stds: np.ndarray  # (C,) float64, in the unit of the sensor
    ranges: np.ndarray  # (C, 2) float64, lowest and highest possible value
    resolution: float  # finest of the bands, metres per pixel


class InputSet(NamedTuple):
    """One set as the caller gave it."""

    images: Sequence[Any]
    longitude: float | None
    latitude: float | None
    anchor: int
    label: str

    def image_label(self, index: int, image: Any) -> str:
        """Name an image in errors: its index, its set where there are more, and where it comes from."""
        source = image.get("source") if isinstance(image, Mapping) else getattr(image, "source", None)
        of_set = "" if self.label == "the set" else f" of {self.label}"
        return f"image {index}{of_set}" + (f" ({source})" if source else "")


class InputImage(NamedTuple):
    """One image, read and checked: C bands."""

    label: str
    pixels: np.ndarray  # (C, height, width), stored numbers
    valid: np.ndarray | None  # (C, height, width) bool; None where every value is
    table: BandTable
    scale: np.ndarray  # (C,) float64; physical value = pixels × scale + offset
    offset: np.ndarray  # (C,) float64
    acquired: int  # minutes since 2000-01-01 UTC
    grid: PixelGrid


def gather_sets(image_sets: Any) -> list[InputSet]:
    """Return the sets in what the caller gave: one set, one image, or a list of either."""
    if _is_image(image_sets):
        return [_as_set([image_sets], "the set")]
    if not isinstance(image_sets, (list, tuple)):
        return [_as_set(image_sets, "the set")]
    if not image_sets:
        raise ValueError("The list of image sets is empty: pass at least one image.")
    are_images = [_is_image(item) for item in image_sets]
    if all(are_images):
        return [_as_set(image_sets, "the set")]
    if any(are_images):
        raise ValueError(
            f"Item {are_images.index(True)} of the list is an image and item {are_images.index(False)} is none: pass a "
            "list of images, which is one set, or a list of sets."
        )
    if len(image_sets) == 1:
        return [_as_set(image_sets[0], "the set")]
    return [_as_set(item, f"set {index}") for index, item in enumerate(image_sets)]


def _is_image(item: Any) -> bool:
    """Return whether an item is one image: an object or dict with pixels, or an array that is no stack of images."""
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return item.ndim != 4
    return "pixels" in item if isinstance(item, Mapping) else hasattr(item, "pixels")


def _as_set(item: Any, label: str) -> InputSet:
    """Read one set: an `ImageSet`, its dict, a list of images, or an array (images, bands, height, width)."""
    facts: Mapping[str, Any] = {}
    if isinstance(item, Mapping):
        _check_keys(item, SET_FIELDS, "images", label)
        facts, images = item, item["images"]
    elif hasattr(item, "images"):
        facts, images = {name: getattr(item, name, None) for name in SET_FIELDS}, item.images
    elif isinstance(item, (list, tuple, np.ndarray, torch.Tensor)):
        images = item
    else:
        raise ValueError(
            f"{label} is of type {type(item).__name__}: pass an ImageSet, a dict with the key 'images', a list of "
            "images, or an array of pixels."
        )
    if facts.get("name") and label != "the set":
        label = f"set {facts['name']!r}"
    if len(images) == 0:
        raise ValueError(f"{label} holds no images: a set needs at least one.")
    anchor = facts.get("anchor")
    anchor = 0 if anchor is None else anchor
    if not is_whole(anchor) or not 0 <= anchor < len(images):
        raise ValueError(f"{label} has anchor={anchor!r}, but its images are numbered 0 to {len(images) - 1}.")
    return InputSet(images, facts.get("longitude"), facts.get("latitude"), int(anchor), label)


def image_fields(raw: Any, label: str) -> Mapping[str, Any]:
    """Return an image's fields by name; those missing are unknown."""
    if isinstance(raw, (np.ndarray, torch.Tensor)):
        return {"pixels": raw}
    if isinstance(raw, Mapping):
        _check_keys(raw, IMAGE_FIELDS, "pixels", label)
        return raw
    if hasattr(raw, "pixels"):
        return {name: getattr(raw, name, None) for name in IMAGE_FIELDS}
    raise ValueError(
        f"{label} is of type {type(raw).__name__}: pass an Image, a dict with the key 'pixels', or an array of pixels."
    )


def _check_keys(given: Mapping[str, Any], known: Sequence[str], needed: str, label: str) -> None:
    """Raise ValueError unless a dict has the key it needs and none that is unknown."""
    unknown = [str(key) for key in given if key not in known]
    if unknown:
        raise ValueError(f"{label} has unknown keys {', '.join(unknown)}: the keys are {', '.join(known)}.")
    if needed not in given:
        raise ValueError(f"{label} is a dict without the key {needed!r}: the keys are {', '.join(known)}.")


def band_table(sensors: Sequence[Sensor], name: str, bands: Sequence[str], label: str) -> BandTable:
    """Return what the sensor called `name` says of the bands.

    Args:
        sensors: The sensors that may be named.
        name: Name of one of them.
        bands: Own or common names of its bands, each once.
        label: Name of the image in errors.

    Raises:
        ValueError: The sensor or a band is unknown, or a band is named twice.
    """
    source_id = next((index for index, sensor in enumerate(sensors) if sensor.name == name), None)
    if source_id is None:
        known = ", ".join(sensor.name for sensor in sensors)
        raise ValueError(
            f"{label} has sensor {name!r}, which this processor does not know: it knows {known}; add yours with "
            "A2MAEImageProcessor(sensors=[..., Sensor(...)])."
        )
    sensor = sensors[source_id]
    try:
        found = [sensor.find(band) for band in bands]
    except ValueError as reason:
        raise ValueError(f"{label}: {reason}") from None
    names = tuple(band.name for band in found)
    for band in names:
        if names.count(band) > 1:
            raise ValueError(f"{label} names band {band} of {name} more than once: pass every band once.")
    if not found:
        raise ValueError(f"{label} names no band at all: pass one name for each band of its pixels.")
    return BandTable(
        source_id=source_id,
        sensor=sensor,
        names=names,
        wavelengths=np.array([band.wavelength for band in found], dtype=np.float32),
        widths=np.array([band.width for band in found], dtype=np.float32),
        means=np.array([band.mean for band in found]),
        stds=np.array([band.std for band in found]),
        ranges=np.array([band.valid_range for band in found]),
        resolution=min(band.resolution for band in found),
    )


def read_image(fields: Mapping[str, Any], table: BandTable, label: str) -> InputImage:
    """Read one image and check that it can be what it says it is.

    Args:
        fields: The image's fields, as `image_fields` returns them.
        table: Its bands, as `band_table` returns them.
        label: Its name in errors.

    Raises:
        ValueError: Pixels, bands, masks, scale, unit, date or georeference cannot be right; names the image and the
            field.
    """
    pixels, unmasked = _read_pixels(fields["pixels"], label)
    count, height, width = pixels.shape
    if len(table.names) != count:
        raise ValueError(
            f"{label} has {count} bands of pixels but {len(table.names)} band names ({', '.join(table.names)}): pass "
            "bands= with one name for each band, in the order of the pixels."
        )
    valid = _valid_values(pixels, unmasked, fields, label)
    scale = _per_band(fields.get("scale"), table.sensor.scale, count, "scale", label)
    offset = _per_band(fields.get("offset"), table.sensor.offset, count, "offset", label)
    _check_unit(pixels, valid, scale, offset, table, label)
    return InputImage(
        label=label,
        pixels=pixels,
        valid=valid,
        table=table,
        scale=scale,
        offset=offset,
        acquired=minutes_since_2000(fields.get("acquired"), label),
        grid=_pixel_grid(fields, height, width, table.resolution, label),
    )


def _read_pixels(pixels: Any, label: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return pixels as numpy (bands, height, width), and where a numpy masked array leaves them unmasked."""
    unmasked = None
    if isinstance(pixels, np.ma.MaskedArray):
        unmasked = ~np.ma.getmaskarray(pixels)
        pixels = pixels.data
    elif isinstance(pixels, torch.Tensor):
        pixels = to_numpy(pixels)
    pixels = np.asarray(pixels)
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ValueError(
            f"{label} has pixels of shape {pixels.shape}: they must be (bands, height, width), none of them 0."
        )
    if pixels.dtype.kind not in "uif":
        raise ValueError(f"{label} has pixels of type {pixels.dtype}: they must be integers or real numbers.")
    return pixels, unmasked


def _valid_values(
    pixels: np.ndarray, unmasked: np.ndarray | None, fields: Mapping[str, Any], label: str
) -> np.ndarray | None:
    """Return where values are finite, not nodata and not masked, (bands, height, width) bool; None where all are."""
    conditions = [] if unmasked is None else [unmasked]
    if pixels.dtype.kind == "f":
        conditions.append(np.isfinite(pixels))
    if fields.get("nodata") is not None:
        nodata = float(_numbers(fields["nodata"], "nodata", label))
        # A whole number is compared with integers as one, without turning every pixel into a float.
        conditions.append(pixels != (int(nodata) if pixels.dtype.kind != "f" and nodata.is_integer() else nodata))
    if fields.get("valid") is not None:
        given = fields["valid"]
        given = np.asarray(to_numpy(given) if isinstance(given, torch.Tensor) else given).astype(bool)
        if given.shape not in (pixels.shape, pixels.shape[1:]):
            raise ValueError(
                f"{label} has a valid mask of shape {given.shape} for pixels of shape {pixels.shape}: it must be "
                "(height, width) or (bands, height, width)."
            )
        conditions.append(np.broadcast_to(given, pixels.shape))
    conditions = [condition for condition in conditions if not condition.all()]
    if not conditions:
        return None
    valid = np.logical_and.reduce(conditions)
    if not valid.any():
        raise ValueError(
            f"{label} holds no valid pixel, only nodata, NaN or masked values: leave it out of the set, or check "
            "nodata and valid."
        )
    return valid


def _numbers(given: Any, what: str, label: str) -> np.ndarray:
    """Return what a field of an image gives as float64, one number or many."""
    try:
        return np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{label} has {what}={given!r}, which is no number: pass numbers, or leave it out.") from None


def _per_band(given: Any, default: float, count: int, what: str, label: str) -> np.ndarray:
    """Return scale or offset of every band, (bands,) float64."""
    values = _numbers(default if given is None else given, what, label)
    if values.shape not in ((), (1,), (count,)):
        raise ValueError(
            f"{label} has {values.size} numbers as {what} for {count} bands: pass one number, or one for each band."
        )
    if not np.isfinite(values).all() or (what == "scale" and (values == 0).any()):
        raise ValueError(f"{label} has {what} {given}: every number must be finite, and no scale 0.")
    return np.broadcast_to(values, (count,))


def _check_unit(
    pixels: np.ndarray,
    valid: np.ndarray | None,
    scale: np.ndarray,
    offset: np.ndarray,
    table: BandTable,
    label: str,
) -> None:
    """Raise ValueError where a sample of the values shows that they cannot be in the unit of the sensor.

    Two mistakes are caught: stored numbers taken for physical values, which leaves the range of what a band can be; and
    values scaled twice, or fill values, which are next to nothing in every band at once. One dark band (water in the
    infrared, the cirrus band) is no mistake.
    """
    step = max(1, int((pixels[0].size / _CHECKED_VALUES) ** 0.5))
    stored = pixels[:, ::step, ::step].reshape(len(pixels), -1).astype(np.float64)
    if valid is None:
        means, largest = stored.mean(1), np.abs(stored).max(1)
        counted = np.ones(len(pixels), dtype=bool)
    else:
        real = valid[:, ::step, ::step].reshape(len(pixels), -1)
        counted = np.asarray(real.any(1))
        means = stored.sum(1, where=real) / np.maximum(real.sum(1), 1)
        largest = np.abs(stored).max(1, where=real, initial=0.0)
    means = means * scale + offset
    lowest, highest = table.ranges.T
    outside = np.flatnonzero(counted & ((means < lowest) | (means > highest)))
    unit = table.sensor.unit
    if len(outside):
        band = outside[0]
        fault = (
            "look like stored numbers"
            if means[band] > highest[band]
            else "look like fill (then pass nodata=) or unscaled"
        )
        raise ValueError(
            f"band {table.names[band]} of {label} has mean {unit} {means[band]:.5g}, which no {unit} is "
            f"({lowest[band]:g} to {highest[band]:g}); the pixels {fault}: pass "
            f"{_scaling_hint(table.sensor, scale, offset)}."
        )
    # Far below what the band can be, and below what it usually is.
    next_to_nothing = np.minimum(highest * 1e-3, table.means * 0.1)
    if counted.any() and (largest * np.abs(scale) < next_to_nothing)[counted].all():
        band = np.flatnonzero(counted)[np.argmax(means[counted])]
        raise ValueError(
            f"{label} has next to nothing in every band, and mean {unit} {means[band]:.5g} in its brightest, "
            f"{table.names[band]}; the pixels look scaled twice, or like fill: pass scale=1 and offset=0 if they are "
            f"{unit} already, or nodata= if they are fill."
        )


def _scaling_hint(sensor: Sensor, scale: np.ndarray, offset: np.ndarray) -> str:
    """Say which scale and offset to try: the sensor's default, unless that is what failed."""
    if (scale == sensor.scale).all() and (offset == sensor.offset).all():
        return f"the scale and offset of the file, as scale={sensor.scale:g} and offset={sensor.offset:g} do not fit"
    return f"scale={sensor.scale:g} and offset={sensor.offset:g}, as {sensor.name} has by default"


def _pixel_grid(fields: Mapping[str, Any], height: int, width: int, resolution: float, label: str) -> PixelGrid:
    """Read what ties an image to the ground."""
    gsd = resolution if fields.get("gsd") is None else float(_numbers(fields["gsd"], "gsd", label))
    if not 0 < gsd < np.inf:
        raise ValueError(f"{label} has gsd={gsd}: it must be the positive number of metres that a pixel spans.")
    crs, transform = crs_text(fields.get("crs")), fields.get("transform")
    if crs is not None and transform is not None:
        return PixelGrid(label, height, width, gsd, crs, _affine(transform, label))
    if (crs is not None or transform is not None) and fields.get("gsd") is None:
        has, lacks = ("crs", "transform") if crs is not None else ("transform", "crs")
        raise ValueError(f"{label} has a {has} but no {lacks}: pass both, or gsd in metres per pixel.")
    return PixelGrid(label, height, width, gsd)


def _affine(transform: Sequence[float], label: str) -> tuple[float, ...]:
    """Return the six numbers of an affine map; rasterio's `Affine` lists nine, the last three being 0, 0, 1."""
    numbers = tuple(_numbers(transform, "transform", label).ravel().tolist())
    if len(numbers) not in (6, 9) or not np.isfinite(numbers).all():
        raise ValueError(f"{label} has transform {transform!r}: it must be six finite numbers (a, b, c, d, e, f).")
    a, b, _, d, e, _ = numbers[:6]
    if a * e == b * d:
        raise ValueError(f"{label} has transform {numbers[:6]}, whose pixels have no area: check the six numbers.")
    return numbers[:6]


def is_whole(number: Any) -> bool:
    """Return whether a value is a whole number (booleans are not)."""
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


def to_numpy(array: Any) -> np.ndarray:
    """Return a numpy array of an array or tensor; half precision, which numpy knows in part, becomes float32."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        return (array.float() if array.dtype in (torch.bfloat16, torch.float16) else array).numpy()
    return np.asarray(array)
