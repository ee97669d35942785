"""What an archive holds: the scenes, places or shards of which every one gives one output.

Files are told by their names alone, without opening them, so that a damaged one is no more than a unit that fails.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .products import RASTER_SUFFIXES, is_quality_layer, names_a_product, split_band_file, stem_of
from .scene_files import PathLike
from .stssd.shards import ShardFiles, find_shards

Source = PathLike | Sequence[PathLike]
"""A folder, a STAC document, shards, or a list of scenes."""


@dataclass(frozen=True)
class Unit:
    """What one output is made of.

    Attributes:
        name: Of the output below its folder, "/" between folders, without suffix.
        paths: Images of one place.
        declared: What a catalogue tells of them, in the terms of `embed_scene`.
        fault: Why it cannot be used.
    """

    name: str
    paths: tuple[str, ...]
    declared: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None


def find_units(
    source: Source, output: Path, settings: Mapping[str, Any], place: str | None = None
) -> list[Unit] | ShardFiles:
    """Find what an archive holds.

    Args:
        source: As for `a2mae_hub.distributed.embed_archive`.
        output: Folder of the outputs, which are no part of the archive where it lies within.
        settings: What is declared of the scenes.
        place: As for `embed_archive`.

    Returns:
        The units in the order of their names, or of the source where that is a list; or the shards.

    Raises:
        FileNotFoundError: If the source is missing or holds nothing.
        ValueError: If the source, the settings or the pattern cannot be.
    """
    given = [os.fspath(source)] if isinstance(source, (str, os.PathLike)) else [os.fspath(path) for path in source]
    if not given:
        raise ValueError("source is empty; name a folder, a STAC document, shards, or scenes.")
    units: list[Unit] | ShardFiles
    first = given[0]
    if all(map(_is_stac, given)):
        units = _from_stac(given, settings)
    elif len(given) > 1 or not isinstance(source, (str, os.PathLike)) or first.startswith("/vsi"):
        units = [Unit(_stem(path), (_located(path),)) for path in given]
    elif first.lower().endswith(".parquet") or "://" in first:
        units = find_shards(first)
    elif not os.path.isdir(first):
        units = [Unit(_stem(first), (_located(first),))]
    else:
        units = _from_folder(os.path.abspath(first), output, settings)
    if isinstance(units, ShardFiles):
        if place is not None or settings:
            named = "place" if place is not None else next(iter(settings))
            raise ValueError(f"{named}= is on scenes, and {first} holds shards, whose image sets are complete.")
        return units
    return _together(units, place) if place is not None else units


def _is_stac(path: str) -> bool:
    """Return whether a path or URL names a STAC document: JSON, or a URL that names no raster."""
    name = path.split("?")[0].lower()
    is_remote = name.startswith(("http://", "https://"))
    return name.endswith((".json", ".geojson")) or (is_remote and not name.endswith(RASTER_SUFFIXES))


def _located(path: str) -> str:
    """Return a path that holds in whatever folder a worker stands, or say that there is nothing."""
    if path.startswith("/vsi") or "://" in path:
        return path
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file or folder; name a folder of scenes, rasters, STAC or shards.")
    return os.path.abspath(path)


def _stem(path: str) -> str:
    """Return the name of a scene that is named by its path."""
    return _safe(stem_of(os.path.abspath(path) if "://" not in path else path))


def _safe(name: str) -> str:
    """Return a name that a catalogue or pattern gives as one that leads to no other folder and is not hidden."""
    return "/".join(re.sub(r"[^\w.+-]", "_", part).lstrip(".") or "_" for part in name.split("/"))


def _from_folder(folder: str, output: Path, settings: Mapping[str, Any]) -> list[Unit] | ShardFiles:
    """Return the scenes below a folder, or the shards that it holds."""
    products: dict[str, list[str]] = {}
    beside: dict[str, set[str]] = {}
    documents = False
    for at, inside, names in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith(".") and Path(at, name) != output)
        names = sorted(name for name in names if not name.startswith("."))
        if any(name.endswith(".parquet") for name in names):
            return find_shards(folder)
        documents = documents or any(map(_is_stac, names))
        for name in names:
            path = os.path.join(at, name)
            if not name.lower().endswith(RASTER_SUFFIXES) or is_quality_layer(path):
                continue
            band_file = split_band_file(path)
            key = path
            if band_file:
                # As for `read_image_set`: a name with place and date is one product wherever its files lie.
                key = f"{'' if names_a_product(band_file.product) else at}/{band_file.product}_"
            products.setdefault(key, []).append(path)
            beside.setdefault(at, set()).add(key)
    units = [_of_files(folder, files, beside) for files in products.values()]
    if units:
        return sorted(units, key=lambda unit: unit.name)
    if documents:
        return _from_stac([folder], settings)
    raise FileNotFoundError(f"{folder}: holds no raster ({', '.join(RASTER_SUFFIXES)}), no shard and no STAC document.")


def _of_files(root: str, files: list[str], beside: dict[str, set[str]]) -> Unit:
    """Return the scene of the files of one product."""
    band_file = split_band_file(files[0])
    folders = list(dict.fromkeys(map(os.path.dirname, files)))
    if band_file is None or (len(files) == 1 and len(beside[folders[0]]) > 1):
        at = os.path.relpath(os.path.dirname(files[0]), root)
        return Unit(os.path.normpath(os.path.join(at, stem_of(files[0]))), (files[0],))
    # Of a folder that is named as a whole, layers that are no optical band are left out by what they are.
    whole = all(len(beside[folder]) == 1 for folder in folders)
    at = os.path.relpath(os.path.commonpath(folders), root)
    if len(folders) > 1 or not whole:
        at = os.path.normpath(os.path.join(at, band_file.product))
    return Unit(os.path.basename(root) if at == "." else at, tuple(folders if whole else files))


def _from_stac(paths: list[str], settings: Mapping[str, Any]) -> list[Unit]:
    """Return a scene for every STAC item."""
    from a2mae_hub.stssd.packages import check_packages

    check_packages("pystac")
    from a2mae_hub.stssd.stac import read_items, source_of_item

    units = []
    for item in read_items(paths):
        name = _safe(f"{item.collection_id}/{item.id}" if item.collection_id else item.id)
        try:
            told = source_of_item(item, sensor=settings.get("sensor"), bands=settings.get("bands"))
        except ValueError as error:
            units.append(Unit(name, (), fault=str(error)))
            continue
        per_image = {"sensor": [told.sensor], "bands": [told.bands], "acquired": [told.acquired]}
        declared = {**per_image, "scale": told.scale, "offset": told.offset, "nodata": told.nodata}
        units.append(Unit(name, told.paths, declared))
    return units


def _together(units: Sequence[Unit], place: str) -> list[Unit]:
    """Return the units of one place as one each."""
    try:
        pattern = re.compile(place)
    except re.error as error:
        raise ValueError(f"place={place!r} is no regular expression ({error}).") from error
    places: dict[str, list[Unit]] = {}
    for unit in sorted(units, key=lambda unit: unit.name):
        match = pattern.search(unit.name)
        if match is None or not (match[1] if pattern.groups else match[0]):
            raise ValueError(f"{unit.name}: place={place!r} finds no place in this name; correct the pattern.")
        places.setdefault(_safe(match[1] if pattern.groups else match[0]), []).append(unit)
    return [_merged(name, dates) for name, dates in places.items()]


def _merged(name: str, dates: Sequence[Unit]) -> Unit:
    """Return the unit of several dates."""
    fault = next((date.fault for date in dates if date.fault), None)
    declared: dict[str, Any] = {}
    for key in dates[0].declared if fault is None else ():
        told = [date.declared[key] for date in dates]
        if key in ("sensor", "bands", "acquired"):
            declared[key] = [value for values in told for value in values]
        elif all(value == told[0] for value in told):
            declared[key] = told[0]
        else:
            fault = f"{dates[0].name}: its {key} is not that of all dates of the place; declare {key}=."
    return Unit(name, tuple(path for date in dates for path in date.paths), declared, fault)
