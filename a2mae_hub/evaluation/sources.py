"""The images of a task with their labels, in training and test part."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from rasterio.errors import RasterioError

from a2mae_hub.images import Image
from a2mae_hub.products import RASTER_SUFFIXES
from a2mae_hub.raster import read_image

from .recipe import Task
from .segmentation import NO_LABEL

_COLUMNS = ("image", "label", "name")


@dataclass(frozen=True)
class LabelledImages:
    """N images in file order.

    Attributes:
        images: The images.
        labels: (N,) int64 class numbers; or, of segmentation, N arrays (height, width) int64, −1 where there is no
            label.
        is_test: (N,) bool.
        classes: Names of the classes, by number.
    """

    images: list[Image]
    labels: Any
    is_test: np.ndarray
    classes: list[str]

    def images_of(self, test: bool) -> list[Image]:
        """Return the images of the test or training part."""
        return [image for image, tested in zip(self.images, self.is_test, strict=True) if tested == test]

    def labels_of(self, test: bool) -> Any:
        """Return the labels of the test or training part."""
        if isinstance(self.labels, np.ndarray):
            return self.labels[self.is_test == test]
        return [labels for labels, tested in zip(self.labels, self.is_test, strict=True) if tested == test]


def read_classified_images(task: Task, root: Path) -> LabelledImages:
    """Read images with one label each.

    Args:
        task: A task with `parquet` or `folders`.
        root: Folder that its paths are relative to.

    Raises:
        FileNotFoundError: If a file is missing, or a pattern fits none.
        ValueError: If an image cannot be read, or one of the parts is empty; names the file.
    """
    if task.parquet is not None:
        source = root / task.parquet
        images, names, labels = _from_parquet(task, source)
    else:
        source = root / str(task.folders)
        images, names, labels = _from_folders(task, root)
    classes = sorted(set(labels))
    numbers = np.array([classes.index(label) for label in labels], np.int64)
    return LabelledImages(images, numbers, _test_part(task, names, labels, source), classes)


def _from_parquet(task: Task, path: Path) -> tuple[list[Image], list[str], list[str]]:
    """Return images, names and labels of a Parquet file of encoded images."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check parquet in the recipe, and --root.")
    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())}).") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise ValueError(f"{path}: has no column {missing[0]!r}; it needs {', '.join(_COLUMNS)}.")
    names = [str(name) for name in table.column("name").to_pylist()]
    encoded = table.column("image").to_pylist()
    images = [_decoded(task, data, f"{path}: {name}") for data, name in zip(encoded, names, strict=True)]
    return images, names, [str(label) for label in table.column("label").to_pylist()]


def _decoded(task: Task, data: Any, source: str) -> Image:
    """Return the image of an encoded picture."""
    import PIL.Image

    bands = list(task.bands or ())
    if not isinstance(data, bytes):
        raise ValueError(f"{source}: the column image holds {type(data).__name__}, and must hold encoded bytes.")
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            pixels = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
    except OSError as error:
        raise ValueError(f"{source}: cannot be decoded ({' '.join(str(error).split())}).") from error
    if len(pixels) != len(bands):
        raise ValueError(f"{source}: holds {len(pixels)} bands, and the recipe names {len(bands)}; correct bands.")
    return Image(
        np.ascontiguousarray(pixels),
        bands,
        str(task.sensor),
        scale=task.scale,
        offset=task.offset,
        nodata=task.nodata,
        source=source,
    )


def _from_folders(task: Task, root: Path) -> tuple[list[Image], list[str], list[str]]:
    """Return images, file names and labels of folders of GeoTIFFs, each a class."""
    folders = [path for path in _matching(root, str(task.folders), "folders") if path.is_dir()]
    files = [(path, folder.name) for folder in folders for path in _rasters(folder)]
    if not files:
        raise FileNotFoundError(f"{root / str(task.folders)}: no folder that this fits holds a raster; check folders.")
    return [_read(task, path) for path, _ in files], [path.name for path, _ in files], [label for _, label in files]


def read_segmented_images(task: Task, root: Path) -> LabelledImages:
    """Read images with a label for every pixel.

    Classes are the values found in the training part. A pixel has no label where its value is one of `task.ignore` or
    the label file's nodata, or where no band of the image has data; values that only the test part has keep numbers of
    their own, which no prediction meets.

    Args:
        task: A task with `images` and `labels`.
        root: Folder that its paths are relative to.

    Raises:
        FileNotFoundError: If a label file is missing, or the pattern fits no image.
        ValueError: If an image or its labels cannot be read or differ in size, the training part has fewer than two
            classes, or one of the parts is empty; names the file.
    """
    replace, by = task.labels or ("", "")
    # The labels may fit the pattern themselves.
    paths = [path for path in _matching(root, str(task.images), "images") if replace in path.name]
    if not paths:
        raise FileNotFoundError(f"{root / str(task.images)}: no file that this fits has {replace!r} in its name.")
    images = [_read(task, path) for path in paths]
    stored = [
        _read_labels(task, path.with_name(path.name.replace(replace, by)), image)
        for path, image in zip(paths, images, strict=True)
    ]
    names = [path.name for path in paths]
    is_test = _test_part(task, names, [""] * len(names), root / str(task.images))
    trained, tested = (
        np.unique(
            np.concatenate([values[known] for (values, known), at in zip(stored, is_test, strict=True) if at == part])
        )
        for part in (False, True)
    )
    if len(trained) < 2:
        raise ValueError(
            f"{root / str(task.images)}: the training labels hold {len(trained)} classes, and two are the least; check"
            " label_band and ignore."
        )
    values = np.concatenate([trained, np.setdiff1d(tested, trained)])
    order = np.argsort(values)
    labels = [
        np.where(known, order[np.searchsorted(values, one, sorter=order).clip(max=len(values) - 1)], NO_LABEL)
        for one, known in stored
    ]
    return LabelledImages(images, labels, is_test, [f"{value:g}" for value in trained])


def _read_labels(task: Task, path: Path, image: Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the stored labels (height, width) of an image, and where a pixel has one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such labels of {image.source}; check labels in the recipe.")
    band = task.label_band or 1
    try:
        with rasterio.open(path) as dataset:
            if band > dataset.count:
                raise ValueError(f"{path}: has {dataset.count} bands, so label_band {band} is none of them.")
            values, nodata = dataset.read(band), dataset.nodatavals[band - 1]
    except RasterioError as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())}).") from error
    if values.shape != image.pixels.shape[1:]:
        raise ValueError(
            f"{path}: {values.shape[0]} × {values.shape[1]} labels do not lie on the {image.pixels.shape[1]} ×"
            f" {image.pixels.shape[2]} pixels of {image.source}."
        )
    known = ~np.isin(values, [*(task.ignore or ()), *([] if nodata is None else [nodata])]) & np.isfinite(values)
    return values, known & image.valid_values().any(0)


def _read(task: Task, path: Path) -> Image:
    """Read one GeoTIFF as the task declares it."""
    return read_image(
        path, sensor=task.sensor, bands=task.bands, scale=task.scale, offset=task.offset, nodata=task.nodata
    )


def _matching(root: Path, pattern: str, key: str) -> list[Path]:
    """Return the paths that a pattern fits, in order."""
    import glob

    found = sorted(glob.glob(os.path.join(root, pattern), recursive=True))
    if not found:
        raise FileNotFoundError(f"{os.path.join(root, pattern)}: nothing fits; check {key} in the recipe, and --root.")
    return [Path(path) for path in found]


def _rasters(folder: Path) -> list[Path]:
    """Return the rasters of a folder, in order."""
    return sorted(path for path in folder.iterdir() if path.name.lower().endswith(RASTER_SUFFIXES))


def _test_part(task: Task, names: Sequence[str], labels: Sequence[str], source: Path) -> np.ndarray:
    """Return which images are tested on, (N,) bool."""
    if task.test_names is not None:
        is_test = np.array([re.search(task.test_names, name) is not None for name in names])
    elif task.test_every is not None:
        seen: dict[str, int] = {}
        is_test = np.zeros(len(names), bool)
        for index, label in enumerate(labels):
            seen[label] = seen.get(label, 0) + 1
            is_test[index] = seen[label] % task.test_every == 0
    else:
        return np.zeros(len(names), bool)
    if is_test.all() or not is_test.any():
        raise ValueError(
            f"{source}: {is_test.sum()} of {len(names)} images are the test part; both parts need some, so correct"
            f" {'test_names' if task.test_names is not None else 'test_every'}."
        )
    return is_test
