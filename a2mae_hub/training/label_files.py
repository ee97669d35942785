"""Labelled images by convention: which files are the images, which hold the labels, and what these say.

Nothing is decided here about what labels mean: a folder or table gives texts and numbers, a mask the numbers it stores.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from a2mae_hub.grids import Grid
from a2mae_hub.images import ImageSet
from a2mae_hub.products import RASTER_SUFFIXES
from a2mae_hub.raster import read_image_set
from a2mae_hub.scene_files import no_georeference_warning, one_line, open_scenes

CLASSIFICATION, SEGMENTATION, CHANGE = "classification", "segmentation", "change"
TASKS = (CLASSIFICATION, SEGMENTATION, CHANGE)
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
IGNORED = 255
"""Label of pixels without one; masks have fewer classes than that."""
SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {**{name: name for name in SPLITS}, "training": "train", "val": "validation", "testing": "test"}
_MASK_SUFFIXES = (*RASTER_SUFFIXES, ".png")
_FILE_COLUMNS = ("file", "file_name", "filename", "image", "path", "name")


@dataclass(frozen=True)
class Declaration:
    """What is said of images that do not say it themselves; as in `a2mae_hub.read_image_set`."""

    sensor: str | None = None
    bands: Sequence[str] | None = None
    scale: float | Sequence[float] | None = None
    offset: float | Sequence[float] | None = None
    nodata: float | None = None

    def read(self, paths: Sequence[str], name: str) -> ImageSet:
        """Read the image set of some files, the first image being the anchor."""
        return read_image_set(paths, name=name, **vars(self))

    def anchor_grid(self, paths: Sequence[str]) -> Grid:
        """Return the pixel grid of the first image, from the headers of its files alone."""
        return open_scenes(paths[:1], **vars(self))[0].grid


@dataclass(frozen=True)
class Mask:
    """The label of every pixel of an image.

    Attributes:
        values: (height, width) whole numbers as stored.
        known: (height, width) bool, False where a pixel has no label.
        source: The file, quoted in errors.
    """

    values: np.ndarray
    known: np.ndarray
    source: str

    @cached_property
    def numbers(self) -> frozenset[int]:
        """The numbers of the classes that it shows."""
        return frozenset(np.unique(self.values[self.known]).astype(int).tolist())


class LabelledFiles(NamedTuple):
    """An image set that can be read, with its label as the files have it."""

    name: str
    read: Callable[[], ImageSet]
    label: Any  # a text, a number, a list of either, or a `Mask`
    split: str | None  # one of `SPLITS` where the files say so


def split_named(name: str) -> str | None:
    """Return the part of the data that a folder or a cell names, None if it is none of `SPLITS`."""
    return _SPLIT_NAMES.get(name.strip().lower())


def find_split_folders(root: Path) -> list[tuple[Path, str | None]]:
    """Return the folders of the parts of the data, with what each is for; the folder itself where it has none.

    Raises:
        ValueError: If parts are missing, there are two of one, or there are other folders beside them; names them.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {path: split_named(path.name) for path in folders}
    parts = [split for split in found.values() if split is not None]
    if not parts:
        return [(root, None)]
    named = " and ".join(repr(path.name) for path, split in found.items() if split is not None)
    if "train" not in parts or len(set(parts)) == 1:
        raise ValueError(
            f"{root}: has {named} alone of the folders train, validation and test; make 'train' and one of the others,"
            " or none."
        )
    if len(set(parts)) < len(parts):
        raise ValueError(f"{root}: has {named}, two of them for one part; put these into one folder.")
    others = [path.name for path, split in found.items() if split is None]
    if others:
        raise ValueError(
            f"{root}: has a folder {others[0]!r} beside {named}; call it train, validation or test, or move it."
        )
    return list(found.items())


def find_class_folders(root: Path, declaration: Declaration, split: str | None = None) -> Iterator[LabelledFiles]:
    """Yield the image sets in folders that are classes: a raster is one set, a folder of rasters one of several dates.

    Raises:
        FileNotFoundError: If there is no folder.
        ValueError: If a folder holds no raster; names it.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise FileNotFoundError(f"{root}: holds no folders; put the images of every class into a folder of its name.")
    for folder in folders:
        entries = _rasters_or_folders(folder, RASTER_SUFFIXES)
        if not entries:
            raise ValueError(f"{folder}: the class {folder.name!r} has no images; add some, or remove the folder.")
        for path in entries:
            name = os.fspath(path)
            yield LabelledFiles(name, partial(declaration.read, [name], name), folder.name, split)


def find_table_rows(path: Path, declaration: Declaration) -> Iterator[LabelledFiles]:
    """Yield the image sets of the rows of a CSV or GeoJSON.

    Its columns (properties of features) are the file or folder of images, relative to the table, under one of the names
    file, file_name, filename, image, path or name (several separated by ";" are one set); `label`, which several
    separated by ";" may make up; and `split` where the table says which rows are for training, validation and test.

    Raises:
        FileNotFoundError: If an image is not there; names the row.
        ValueError: If the table cannot be read, lacks a column or a label; names the row.
    """
    rows = _table(path)
    if not rows:
        raise ValueError(f"{path}: holds no rows; give one to every image.")
    file_column = next((column for column in _FILE_COLUMNS if column in rows[0]), None)
    if file_column is None or "label" not in rows[0]:
        missing = "'label'" if file_column else f"with file names ({', '.join(_FILE_COLUMNS)})"
        raise ValueError(f"{path}: has no column {missing}; it has {', '.join(map(str, rows[0])) or 'none'}.")
    for number, row in enumerate(rows, start=1):
        where = f"{path}: row {number}"
        label = row.get("label")
        is_blank = isinstance(label, str) and not label.replace(";", "").strip()
        if label is None or is_blank or label != label:  # NaN is what pandas writes for nothing
            raise ValueError(f"{where}: {row.get(file_column)} has no label; give one, or remove the row.")
        told = row.get("split")
        split = split_named(str(told)) if told else None
        if told and split is None:
            raise ValueError(f"{where}: the split {told!r} is none of train, validation and test; correct it.")
        names = [name.strip() for name in str(row.get(file_column) or "").split(";")]
        paths = [name if _is_remote(name) else os.fspath(path.parent / name) for name in names]
        for name, file in zip(names, paths, strict=True):
            if not name or not (os.path.exists(file) or _is_remote(name)):
                raise FileNotFoundError(f"{where}: there is no image {file}; correct the column {file_column!r}.")
        yield LabelledFiles(names[0], partial(declaration.read, paths, names[0]), _typed(label), split)


def _table(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV, or the properties of the features of a GeoJSON."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
            if any(None in row for row in rows):
                raise ValueError("a row has more cells than there are columns")
            return rows
        features = json.loads(text)["features"]
        return [dict(feature["properties"]) for feature in features]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no CSV or GeoJSON with a row for every image ({one_line(error)}).") from error


def _is_remote(name: str) -> bool:
    """Return whether a file is one that GDAL reaches otherwise than as a path of this machine."""
    return "://" in name or name.startswith("/vsi")


def _typed(label: Any) -> Any:
    """Return a cell as a number, a text, or a list of either where it has several parts."""
    if isinstance(label, int):
        return float(label)  # as in a CSV, where numbers have no types
    if not isinstance(label, str):
        return label
    parts = [_number_or_text(part.strip()) for part in label.split(";") if part.strip()]
    if any(isinstance(part, str) for part in parts):
        parts = [part.strip() for part in label.split(";") if part.strip()]
    return parts if ";" in label else parts[0]


def _number_or_text(text: str) -> float | str:
    """Return a text as a number where it is one."""
    try:
        return float(text)
    except ValueError:
        return text


def find_masked_images(
    root: Path,
    images: Sequence[str],
    masks: str,
    declaration: Declaration,
    *,
    band: int = 1,
    ignore: Sequence[float] = (),
    split: str | None = None,
) -> Iterator[LabelledFiles]:
    """Yield image sets with a mask of equal name each: pairs of image and mask, or triples of before, after and mask.

    Args:
        root: Folder that patterns are relative to.
        images: One pattern per image of a set, each with one "*"; what this stands for tells which belong together.
        masks: The pattern of the masks.
        declaration: Of the images.
        band: Of the mask files, counted from 1.
        ignore: Stored numbers that mean "no label".
        split: Which part they are.

    Raises:
        FileNotFoundError: If a pattern fits nothing.
        ValueError: If an image has no mask, or one of another size, place or CRS; names both.
    """
    found = [_matches(root, pattern, RASTER_SUFFIXES) for pattern in images]
    labels = _matches(root, masks, _MASK_SUFFIXES)
    for key, path in found[0].items():
        others = [(matches.get(key), pattern) for matches, pattern in zip(found[1:], images[1:], strict=True)]
        paths = [os.fspath(path)]
        for other, pattern in [*others, (labels.get(key), masks)]:
            if other is None:
                raise ValueError(f"{path}: has no {pattern.replace('*', key)} beside it in {root}; add it.")
            paths.append(os.fspath(other))
        paths.pop()  # the mask
        mask, grid = read_mask(labels[key], band, ignore)
        check_grid(mask.source, grid, paths[0], declaration.anchor_grid(paths))
        yield LabelledFiles(paths[0], partial(declaration.read, paths, paths[0]), mask, split)
    for key, path in labels.items():
        if key not in found[0]:
            raise ValueError(f"{path}: is the mask of no image {images[0].replace('*', key)} in {root}; add or remove.")


def read_mask(path: str | os.PathLike[str], band: int = 1, ignore: Sequence[float] = ()) -> tuple[Mask, Grid]:
    """Read the labels of the pixels of an image; the file's own nodata, and NaN, mean "no label" too.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, has no such band, or holds numbers that are not whole; names the file.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such mask; check the path.")
    try:
        with no_georeference_warning(), rasterio.open(path) as dataset:
            if not 1 <= band <= dataset.count:
                raise ValueError(f"{path}: has {dataset.count} bands, and label_band={band} is none of them.")
            values, nodata = dataset.read(band), dataset.nodatavals[band - 1]
            crs = None if dataset.crs is None else CRS.from_user_input(dataset.crs)
            grid = Grid(dataset.height, dataset.width, tuple(dataset.transform)[:6], crs)
    except RasterioError as error:
        raise ValueError(f"{path}: cannot be read as a mask ({one_line(error)}).") from error
    return mask_of(values, [*ignore, *([] if nodata is None else [nodata])], os.fspath(path)), grid


def mask_of(values: np.ndarray, ignore: Sequence[float], source: str) -> Mask:
    """Return (height, width) numbers as a mask; those to ignore, and NaN, mean "no label".

    Raises:
        ValueError: If it holds numbers that are not whole; names the source.
    """
    known = np.isfinite(values) & ~np.isin(values, ignore)
    whole = np.where(known, values, 0)
    if whole.dtype.kind == "f":
        if (whole != np.round(whole)).any():
            raise ValueError(f"{source}: holds {whole[whole != np.round(whole)][0]:g}, and classes are whole numbers.")
        whole = whole.astype(np.int64)
    return Mask(whole, known, source)


def stored_mask(stored: Any, shape: tuple[int, int], source: str, ignore: Sequence[float] = ()) -> Mask:
    """Return the labels of the pixels of an image as a shard stores them.

    Args:
        stored: Bytes, one class number for each pixel of the image, row by row; `IGNORED` where there is none.
        shape: Height and width of the image.
        source: What to call it in errors.
        ignore: Stored numbers that mean "no label" too.

    Raises:
        ValueError: If these are no bytes, or not as many as pixels.
    """
    if not isinstance(stored, bytes) or len(stored) != shape[0] * shape[1]:
        has = f"{len(stored):,} bytes" if isinstance(stored, bytes) else f"a {type(stored).__name__}"
        raise ValueError(
            f"{source}: its mask is {has}, and its first image has {shape[0]} × {shape[1]} pixels; store"
            " `mask.astype('uint8').tobytes()` of a mask on these."
        )
    values = np.frombuffer(stored, np.uint8).reshape(shape)
    return mask_of(values, [*ignore, IGNORED], source)


def check_grid(mask: str, mask_grid: Grid, image: str, image_grid: Grid) -> None:
    """Raise ValueError where a mask does not lie on the pixels of its image; what has no georeference lies anywhere."""
    way_out = "resample the mask to the pixels of its image."
    sizes = [f"{grid.height} × {grid.width}" for grid in (mask_grid, image_grid)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{mask}: is of {sizes[0]} pixels, and {image} of {sizes[1]}; {way_out}")
    if mask_grid.crs is None or image_grid.crs is None:
        return
    if mask_grid.crs != image_grid.crs:
        raise ValueError(f"{mask}: is in {mask_grid.crs_text}, and {image} in {image_grid.crs_text}; {way_out}")
    corners = np.array([(0, 0, 1), (mask_grid.width, 0, 1), (0, mask_grid.height, 1)], float).T
    apart = np.abs(mask_grid.pixels_in(image_grid) @ corners - corners).max()
    if apart > 0.5:
        raise ValueError(f"{mask}: lies up to {apart:.1f} pixels off {image}; {way_out}")


def _matches(root: Path, pattern: str, suffixes: Sequence[str]) -> dict[str, Path]:
    """Return the files and folders that a pattern fits, by what its "*" stands for, without the suffix of a raster."""
    if pattern.count("*") != 1:
        raise ValueError(f"The pattern {pattern!r} must have one * for what images and masks have in common.")
    before, after = map(re.escape, pattern.split("*"))
    expression = re.compile(rf"{before}([^/]+){after}")
    found: dict[str, Path] = {}
    folder = root / os.path.dirname(pattern)
    for path in _rasters_or_folders(folder, suffixes) if folder.is_dir() else []:
        match = expression.fullmatch(path.relative_to(root).as_posix())
        if match is None:
            continue
        key = match[1]
        if pattern.endswith("*") and key.lower().endswith(tuple(suffixes)):
            key = key.rpartition(".")[0]
        if key in found:
            raise ValueError(f"{path}: has the same name as {found[key].name}; remove one of the two.")
        found[key] = path
    if not found:
        raise FileNotFoundError(f"{root / pattern}: no raster fits this; check the folder and the patterns.")
    return found


def _rasters_or_folders(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the rasters and the folders in a folder, in order."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and (path.is_dir() or path.name.lower().endswith(tuple(suffixes)))
    )
