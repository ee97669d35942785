"""The row of an STSSD shard: one image set, as GeoParquet 1.1 stores it and as Python holds it.

    id, kind, split           texts
    longitude, latitude       degrees of the footprint's centre; null where the place is unknown
    geometry, bbox            the footprint as WKB in longitude and latitude (OGC:CRS84), and the box around it
    heterogeneity             how much the ground varies (`a2mae_hub.stssd.features`)
    sensors                   the sensors of the images, each once
    first_acquired, last_…    the earliest and latest acquisition time, so that readers can skip whole row groups
    images                    a list; per image its metadata and its pixels, plain numbers in the order (bands, rows,
                              columns), little-endian: `np.frombuffer(pixels, dtype).reshape(shape)`

Other columns, such as `label` and `mask`, are the user's own: readers hand them through.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timezone
from typing import Any

import numpy as np
import pyarrow as pa

from a2mae_hub.images import Image, ImageSet

FORMAT_VERSION = 1
"""Version of this layout. A reader refuses a higher one; a column more does not raise it."""

VERSION_KEY = b"stssd"
PROVENANCES = ("observed", "derived")
PIXEL_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")

# What an image of a set may claim to be: four times the side of a Sentinel-2 tile would be 2 ** 15.6.
_MOST_BANDS, _LONGEST_SIDE, _MOST_BYTES = 1024, 2**15, 2**30

_TIME = pa.timestamp("us", tz="UTC")
_BOX = ("xmin", "ymin", "xmax", "ymax")

IMAGE_TYPE = pa.struct(
    [
        ("sensor", pa.string()),
        ("bands", pa.list_(pa.string())),
        ("acquired", _TIME),
        ("crs", pa.string()),
        ("transform", pa.list_(pa.float64())),
        ("gsd", pa.float64()),
        ("shape", pa.list_(pa.int32())),
        ("dtype", pa.string()),
        ("scale", pa.list_(pa.float64())),
        ("offset", pa.list_(pa.float64())),
        ("nodata", pa.float64()),
        ("cloud_share", pa.float32()),
        ("provenance", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("valid", pa.binary()),
        ("pixels", pa.binary()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("split", pa.string()),
        ("longitude", pa.float64()),
        ("latitude", pa.float64()),
        ("geometry", pa.binary()),
        ("bbox", pa.struct([(side, pa.float64()) for side in _BOX])),
        ("heterogeneity", pa.float32()),
        ("sensors", pa.list_(pa.string())),
        ("first_acquired", _TIME),
        ("last_acquired", _TIME),
        ("images", pa.list_(IMAGE_TYPE)),
    ],
    metadata={
        VERSION_KEY: json.dumps({"version": FORMAT_VERSION}),
        b"geo": json.dumps(
            {
                "version": "1.1.0",
                "primary_column": "geometry",
                "columns": {
                    "geometry": {
                        "encoding": "WKB",
                        "geometry_types": ["Polygon", "MultiPolygon"],
                        "covering": {"bbox": {side: ["bbox", side] for side in _BOX}},
                    }
                },
            }
        ),
    },
)
BINARY_FIELDS = ("valid", "pixels")
"""The fields of an image that make up its bulk."""


@dataclass(eq=False, repr=False)
class StoredImage(Image):
    """An image of a shard.

    Attributes:
        cloud_share: Share of the image under cloud, 0 to 1. By the quality layer of its product it is the share of what
            has data there, cloud shadow included; by the reflectance test (`a2mae_hub.stssd.clouds`) that of all
            pixels, bright clouds alone. Of a derived image it is that of its source. None where neither can tell.
        provenance: "observed", or "derived" from an observed image of another sensor.
        licence: Terms of use.
    """

    cloud_share: float | None = None
    provenance: str = "observed"
    licence: str | None = None


@dataclass(eq=False, repr=False)
class StoredSet(ImageSet):
    """An image set of a shard. `longitude` and `latitude` are those of the footprint's centre.

    Attributes:
        id: Unique in its data set.
        kind: "grid", "city", "gf1", "gf2", or the user's own.
        split: "train", "validation", or the user's own.
        geometry: The footprint in longitude and latitude, as WKB; None where the place is unknown.
        heterogeneity: How much the ground varies; see `a2mae_hub.stssd.features`.
        seed: Decides what is random about the set in this epoch: a function of its id, the run's seed and the epoch.
    """

    id: str = ""
    kind: str = "grid"
    split: str = "train"
    geometry: bytes | None = None
    heterogeneity: float | None = None
    seed: int = 0


def to_row(image_set: StoredSet) -> dict[str, Any]:
    """Return the row of an image set, in the types that `SCHEMA` asks for.

    Args:
        image_set: The set; its images may be `Image` or `StoredImage`.

    Raises:
        ValueError: If an image cannot be stored (its type of numbers, its shape); names the set and the image.
    """
    images = [_image_row(image, f"image {index} of {image_set.id}") for index, image in enumerate(image_set)]
    times = [image["acquired"] for image in images if image["acquired"] is not None]
    return {
        "id": image_set.id,
        "kind": image_set.kind,
        "split": image_set.split,
        "longitude": image_set.longitude,
        "latitude": image_set.latitude,
        "geometry": image_set.geometry,
        "bbox": None if image_set.geometry is None else _box_of(image_set.geometry),
        "heterogeneity": image_set.heterogeneity,
        "sensors": list(dict.fromkeys(image["sensor"] for image in images)),
        "first_acquired": min(times, default=None),
        "last_acquired": max(times, default=None),
        "images": images,
    }


def _box_of(geometry: bytes) -> dict[str, float]:
    """Return the box around a geometry."""
    import shapely  # only writers need it

    return dict(zip(_BOX, shapely.from_wkb(geometry).bounds, strict=True))


def _image_row(image: Image, label: str) -> dict[str, Any]:
    """Return the fields of one image."""
    pixels = np.asarray(image.pixels)
    if pixels.dtype.name not in PIXEL_TYPES:
        raise ValueError(
            f"{label} has pixels of type {pixels.dtype}, which shards do not hold; convert them to uint16."
        )
    if pixels.ndim != 3 or len(image.bands) != len(pixels):
        raise ValueError(
            f"{label} has pixels of shape {pixels.shape} and {len(image.bands)} band names; pixels are (bands, height, "
            "width)."
        )
    acquired = image.acquired
    if acquired is not None:
        acquired = acquired.replace(tzinfo=timezone.utc) if acquired.tzinfo is None else acquired
    valid = None if image.valid is None else np.asarray(image.valid, bool)
    if valid is not None and -(-valid.size // 8) == -(-pixels.size // 8):
        # As many bytes as the mask of every value: `_mask` takes it for that.
        valid = np.broadcast_to(valid, pixels.shape)
    return {
        "sensor": image.sensor,
        "bands": list(image.bands),
        "acquired": acquired,
        "crs": image.crs,
        "transform": None if image.transform is None else [float(number) for number in image.transform][:6],
        "gsd": image.gsd,
        "shape": list(pixels.shape),
        "dtype": pixels.dtype.name,
        "scale": _numbers(image.scale),
        "offset": _numbers(image.offset),
        "nodata": image.nodata,
        # A plain `Image` has none of the facts that are asked for by name.
        "cloud_share": getattr(image, "cloud_share", None),
        "provenance": getattr(image, "provenance", "observed"),
        "source": image.source,
        "licence": getattr(image, "licence", None),
        "valid": None if valid is None else np.packbits(valid, axis=None).tobytes(),
        "pixels": np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).tobytes(),
    }


def _numbers(factor: float | Sequence[float] | None) -> list[float] | None:
    """Return scale or offset as a list: one number, or one per band."""
    return None if factor is None else [float(number) for number in np.atleast_1d(factor)]


def decode(table: pa.Table, where: str, first_row: int = 0) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of a table of a shard as dicts, pixels as arrays.

    The arrays look into the memory of the table: nothing is copied, and nothing can be written to.

    Args:
        table: Rows with at least the columns of `SCHEMA`.
        where: The file, quoted in errors.
        first_row: Number of the table's first row in the file, for errors.

    Yields:
        The columns by name; every image of `images` with `pixels` (bands, height, width) and `valid` (bool, (height,
        width) or as the pixels) or None.

    Raises:
        ValueError: If a row cannot be what it says (no id, no images, a place off the Earth, an unknown dtype, a shape
            that its bytes do not fill); names the file, the row and the way out.
    """
    if not len(table):
        return
    images = table.column("images")
    # Combining copies, even a single chunk.
    images = images.chunk(0) if images.num_chunks == 1 else images.combine_chunks()
    flat = images.flatten()
    ends = images.offsets.to_numpy() - images.offsets[0].as_py()
    columns = dict(zip([field.name for field in flat.type], flat.flatten(), strict=True))
    # Arrow looks the time zone up anew for every time it turns to Python's.
    columns["acquired"] = columns["acquired"].cast(pa.timestamp("us"))
    small = [name for name in columns if name not in BINARY_FIELDS]
    facts = pa.StructArray.from_arrays([columns[name] for name in small], small).to_pylist()
    pixels, masks = _Binaries(columns["pixels"]), _Binaries(columns["valid"])
    for number, row in enumerate(table.drop_columns("images").to_pylist()):
        _check_set(row, ends[number + 1] - ends[number], f"{where}: row {first_row + number}")
        row["images"] = []
        for index in range(ends[number], ends[number + 1]):
            label = f"{where}: row {first_row + number}, image {index - ends[number]}"
            image = facts[index]
            _check_image(image, label)
            if image["acquired"] is not None:
                image["acquired"] = image["acquired"].replace(tzinfo=timezone.utc)
            image["pixels"] = _pixels(pixels[index], image, label)
            image["valid"] = _mask(masks[index], image["pixels"].shape, label)
            row["images"].append(image)
        yield row


_WAY_OUT = "the row is damaged or hostile, so build or fetch the shard again"


def _check_set(row: Mapping[str, Any], images: int, label: str) -> None:
    """Raise ValueError unless the facts of a set can be true."""
    for name in ("id", "kind", "split"):
        if not row[name]:
            raise ValueError(f"{label} has no {name}; {_WAY_OUT}.")
    if not images:
        raise ValueError(f"{label} has no images; {_WAY_OUT}.")
    for name, limit in (("longitude", 180), ("latitude", 90)):
        if row[name] is not None and not abs(row[name]) <= limit:
            raise ValueError(f"{label} has {name} {row[name]}, which is no place on Earth; {_WAY_OUT}.")


def _check_image(image: Mapping[str, Any], label: str) -> None:
    """Raise ValueError unless the facts of an image, but for its pixels, can be true."""
    for name in ("sensor", "provenance"):
        if not image[name]:
            raise ValueError(f"{label} has no {name}; {_WAY_OUT}.")
    counts = {"transform": (6,), "scale": (1, len(image["bands"] or ())), "offset": (1, len(image["bands"] or ()))}
    for name, allowed in counts.items():
        numbers = image[name]
        if numbers is not None and (len(numbers) not in allowed or not all(map(_is_finite, numbers))):
            raise ValueError(f"{label} has {name} {numbers}; {_WAY_OUT}.")
    for name, limit in (("gsd", math.inf), ("cloud_share", 1.0)):
        if image[name] is not None and not (_is_finite(image[name]) and 0 <= image[name] <= limit):
            raise ValueError(f"{label} has {name} {image[name]}; {_WAY_OUT}.")


def _is_finite(number: float | None) -> bool:
    """Return whether a number is there, and finite."""
    return number is not None and math.isfinite(number)


class _Binaries:
    """The values of a column of bytes, as views."""

    def __init__(self, column: pa.Array) -> None:
        _, offsets, values = column.buffers()
        count = len(column)
        self._starts = np.frombuffer(offsets, np.int32, count + 1, 4 * column.offset) if count else np.zeros(1, int)
        self._values = memoryview(b"" if values is None else values).toreadonly()
        self._known = column.is_valid().to_numpy(zero_copy_only=False)

    def __getitem__(self, index: int) -> memoryview | None:
        """Return one value, or None where it is null."""
        return self._values[self._starts[index] : self._starts[index + 1]] if self._known[index] else None


def _pixels(stored: memoryview | None, image: Mapping[str, Any], label: str) -> np.ndarray:
    """Return the pixels of an image, or raise ValueError if they are not what the row says."""
    shape, dtype = image["shape"], image["dtype"]
    if stored is None:
        raise ValueError(f"{label} has no pixels; {_WAY_OUT}.")
    if dtype not in PIXEL_TYPES:
        raise ValueError(
            f"{label} says its numbers are of type {dtype!r}, none of {', '.join(PIXEL_TYPES)}; {_WAY_OUT}."
        )
    limits = (_MOST_BANDS, _LONGEST_SIDE, _LONGEST_SIDE)
    if shape is None or len(shape) != 3 or not all(0 < (n or 0) <= most for n, most in zip(shape, limits, strict=True)):
        raise ValueError(f"{label} says its shape is {shape}, which is no (bands, height, width); {_WAY_OUT}.")
    needed = math.prod(shape) * np.dtype(dtype).itemsize
    if needed > _MOST_BYTES or len(stored) != needed:
        raise ValueError(
            f"{label} holds {len(stored)} bytes where shape {shape} of {dtype} takes {needed}; {_WAY_OUT}."
        )
    if len(image["bands"] or ()) != shape[0]:
        raise ValueError(f"{label} names {len(image['bands'] or ())} bands and holds {shape[0]}; {_WAY_OUT}.")
    return np.frombuffer(stored, np.dtype(dtype).newbyteorder("<")).reshape(shape)


def _mask(stored: memoryview | None, shape: tuple[int, ...], label: str) -> np.ndarray | None:
    """Return where pixels are valid, of the shape that fits the number of bits."""
    if stored is None:
        return None
    for candidate in (shape, shape[1:]):
        count = math.prod(candidate)
        if len(stored) == -(-count // 8):
            return np.unpackbits(np.frombuffer(stored, np.uint8), count=count).astype(bool).reshape(candidate)
    raise ValueError(f"{label} has a valid mask of {len(stored)} bytes, which fits no shape of it; build it again.")


_IMAGE_FIELDS = tuple(StoredImage.__dataclass_fields__)
_SET_FIELDS = tuple(name for name in StoredSet.__dataclass_fields__ if name not in ("images", "name"))


def from_row(row: Mapping[str, Any]) -> StoredSet:
    """Return the image set of a decoded row, as `A2MAEImageProcessor` takes it.

    Args:
        row: What `decode` or a stream yields; `anchor` and `seed`, where a stream has chosen them, come along.
    """
    images: list[Image] = []
    for image in row["images"]:
        images.append(StoredImage(**{name: image[name] for name in _IMAGE_FIELDS if name in image}))
    return StoredSet(images=images, name=row["id"], **{name: row[name] for name in _SET_FIELDS if name in row})
