"""STAC items as sources of scenes: which assets are the bands, of what sensor, from when, and in what numbers.

Fields are those of the STAC specification 1.0 and 1.1 (https://github.com/radiantearth/stac-spec) and its extensions
electro-optical (`eo:`), raster (`raster:`) and view (`view:`). Providers differ in the rest; what is known of them
here:

- Element 84 Earth Search v1: an asset per band named by common name, a second one as JPEG 2000 ("nir", "nir-jp2").
- Microsoft Planetary Computer: Landsat bands named "OLI_B4"; all red-edge bands share the common name "rededge".
- Copernicus Data Space: an asset per band and resolution ("B02_10m", "B02_20m").
- NASA LP DAAC: HLS bands named as those of the parent sensor, which mean other bands in L30 than in S30.
- Planet: all bands in one raster, as surface reflectance and as radiance.
"""

from __future__ import annotations

import json
import math
import os
import re
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from http.client import HTTPException
from typing import Any, TypeGuard
from urllib.parse import urlparse

import pystac
from pystac.serialization import identify_stac_object_type

from a2mae_hub.modeling.sensors_a2mae import SENSORS, Sensor, get_sensor
from a2mae_hub.products import (
    FILE_ORDER,
    RASTER_SUFFIXES,
    is_quality_layer,
    is_radar,
    parse_time,
    product_from_name,
    split_band_file,
)
from a2mae_hub.stssd.clouds import quality_kind
from a2mae_hub.stssd.sources import SceneSource

PathLike = str | os.PathLike[str]

_FETCH_SECONDS = 60
_MOST_BYTES = 2**29  # of one fetched document: some ten thousand items

# Previews are no bands, whatever an item says of their roles (the true-colour image of Sentinel-2 has the role "data").
_PREVIEW = re.compile(r"thumb|preview|overview|quicklook|browse|visual|tci|true.?colou?r", re.IGNORECASE)
_NO_BAND_ROLES = frozenset(
    ("thumbnail", "overview", "metadata", "tiles", "data-mask", "cloud", "cloud-shadow", "snow-ice", "water-mask")
)
# Surface reflectance, where a provider has radiance of the same bands beside it: "ortho_analytic_4b_sr".
_SURFACE = re.compile(r"(?<![a-z])sr(?![a-z])", re.IGNORECASE)
# Licences that say only that the terms stand elsewhere (STAC Collection Specification, field `license`).
_TERMS_ELSEWHERE = ("proprietary", "various", "other")


# Reading items


def read_items(paths: PathLike | Sequence[PathLike]) -> list[pystac.Item]:
    """Read STAC items.

    A path is the JSON file, or the http(s) URL, of an item, of an item collection (as a search returns; further pages
    are not fetched), or of a catalog or collection, whose links to children and items are followed. A folder stands for
    the JSON files directly in it; those that are not STAC are left out.

    Args:
        paths: One path, or many.

    Returns:
        The items in the order of the paths, of the links, and in a folder of the names; each once.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a document cannot be fetched, is not JSON or not STAC, or a path leads to no item; names it.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not given:
        raise ValueError("No STAC items were given; pass at least one JSON file, folder or URL.")
    items: dict[tuple[str | None, str | None, str], pystac.Item] = {}
    for path in given:
        found = False
        for item in _items_below(os.fspath(path)):
            items.setdefault((item.get_self_href(), item.collection_id, item.id), item)
            found = True
        if not found:
            raise ValueError(
                f"{path}: leads to no STAC item; name items, an item collection (a saved search), or a catalog that "
                "links to its items."
            )
    return list(items.values())


def _items_below(path: str) -> Iterator[pystac.Item]:
    """Iterate over the items that a document, or the documents of a folder, hold or link to."""
    is_folder = os.path.isdir(path)
    names = sorted(os.listdir(path)) if is_folder else []
    listed = [os.path.join(path, name) for name in names if name.lower().endswith((".json", ".geojson"))]
    todo: list[tuple[str, pystac.Collection | None]] = [(href, None) for href in (listed if is_folder else [path])]
    todo.reverse()
    seen = set()
    while todo:
        href, collection = todo.pop()
        href = href if _is_remote(href) else os.path.abspath(_local(href))
        if href in seen:
            continue
        seen.add(href)
        document = _load(href)
        kind = _kind(document)
        if kind is None and is_folder and os.path.dirname(href) == os.path.abspath(path):
            continue  # Metadata files of other kinds lie beside items.
        if kind is None:
            raise ValueError(
                f"{href}: is JSON, but not a STAC item, item collection, collection or catalog; check the path."
            )
        if kind == "item":
            yield _item(document, href, href, collection)
        elif kind == "items":
            for number, feature in enumerate(document["features"]):
                yield _item(feature, None, f"{href}: item {number}", None, base=href)
        else:
            parent = _parse(pystac.Collection if kind == "collection" else pystac.Catalog, document, href, href)
            inside = parent if isinstance(parent, pystac.Collection) else None
            links = [(link, inside) for link in parent.get_links(pystac.RelType.ITEM)]
            links += [(link, None) for link in parent.get_links(pystac.RelType.CHILD)]
            for link, owner in reversed(links):
                target = link.get_absolute_href()
                if target:
                    todo.append((target, owner))


def _load(href: str) -> Any:
    """Return the JSON document at a path or URL."""
    if _is_remote(href):
        # Not by pystac's own reader, whose errors have no type of their own to tell them by.
        request = urllib.request.Request(href, headers={"Accept": "application/json", "User-Agent": "a2mae-hub"})
        try:
            with urllib.request.urlopen(request, timeout=_FETCH_SECONDS) as response:
                raw = response.read(_MOST_BYTES + 1)
        except (OSError, HTTPException) as error:
            raise ValueError(
                f"{href}: could not be fetched ({error}); check the address and the connection."
            ) from error
        if len(raw) > _MOST_BYTES:
            raise ValueError(f"{href}: is larger than {_MOST_BYTES} bytes; fetch the items in several parts.")
    else:
        path = _local(href)
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path}: no such file or folder; check the path.")
        with open(path, "rb") as file:
            raw = file.read()
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{href}: is not JSON ({error}); name JSON documents of STAC.") from error


def _kind(document: Any) -> str | None:
    """Return what a document is: "item", "items", "collection" or "catalog"; None where it is not STAC."""
    if not isinstance(document, dict):
        return None
    if document.get("type") == "FeatureCollection":
        features = document.get("features")
        is_stac = isinstance(features, list) and all(_kind(feature) == "item" for feature in features)
        return "items" if is_stac else None
    try:
        found = identify_stac_object_type(document)
    except (AttributeError, TypeError, ValueError):
        return None  # `stac_version` is no version.
    return {"Feature": "item"}.get(found.value, found.value.lower()) if found else None


def _parse(cls: type[Any], document: dict[str, Any], href: str | None, label: str) -> Any:
    """Return the pystac object of a document, or raise ValueError starting with the label."""
    try:
        parsed = cls.from_dict(document, href=href)
        if not all(isinstance(link["href"], str) and link["href"] for link in document.get("links", ())):
            raise ValueError("a link leads nowhere")
        return parsed
    except (pystac.STACError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{label}: not a STAC {cls.__name__.lower()} that can be read ({type(error).__name__}: {error}); validate "
            "it against the STAC specification."
        ) from error


def _item(
    document: dict[str, Any],
    href: str | None,
    label: str,
    collection: pystac.Collection | None,
    *,
    base: str | None = None,
) -> pystac.Item:
    """Return the item of a document; relative references start at `base` where it does not say where it lies."""
    item = _parse(pystac.Item, document, href, label)
    wrong = _wrong_field(item)
    if wrong:
        raise ValueError(
            f"{label}: not a STAC item that can be read ({wrong} is missing or of another type); validate it against "
            "the STAC specification."
        )
    if collection is not None and item.collection_id in (None, collection.id):
        item.set_collection(collection)
    if base is not None and item.get_self_href() is None:
        item.set_self_href(base)
    return item


def _wrong_field(item: pystac.Item) -> str | None:
    """Return a field that is used here and is not of the type that STAC gives it; pystac checks none."""
    if not isinstance(item.id, str) or not item.id:
        return "id"
    if not isinstance(item.collection_id, (str, type(None))):
        return "collection"
    for key, asset in item.assets.items():
        roles = asset.roles if asset.roles is not None else []
        if not isinstance(asset.href, str) or not isinstance(asset.media_type, (str, type(None))):
            return f"href or type of asset {key!r}"
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            return f"roles of asset {key!r}"
    return None


# Describing items


def sources_of_items(
    paths: PathLike | Sequence[PathLike], *, sensor: str | None = None, bands: Sequence[str] | None = None
) -> list[SceneSource]:
    """Return the scenes of STAC items: `source_of_item` of every item of `read_items`."""
    return [source_of_item(item, sensor=sensor, bands=bands) for item in read_items(paths)]


def source_of_item(item: pystac.Item, *, sensor: str | None = None, bands: Sequence[str] | None = None) -> SceneSource:
    """Return what a STAC item says of its scene.

    Of two assets of one band the GeoTIFF is taken, then surface reflectance, then the finer one. References to
    http(s), s3 and gs become paths of GDAL (`/vsicurl/…`, `/vsis3/…`, `/vsigs/…`), which takes credentials from its own
    environment variables; signed URLs work as they are. If only some of the bands of one raster are wanted, the path is
    GDAL's `vrt://…?bands=…`.

    Args:
        item: The item.
        sensor: Name in the sensor registry; None takes what the item tells.
        bands: Bands to take, own or common names, in this order; None takes all that the sensor has.

    Returns:
        The scene; with the time half way through the period where the item gives a period of up to a day, without scale
        and offset where the item does not tell them for every band.

    Raises:
        ValueError: If the item does not tell a known sensor, no asset or not every wanted band is there, or its
            metadata cannot be; names the item.
    """
    name = f"{item.collection_id}/{item.id}" if item.collection_id else item.id
    if isinstance(bands, str):
        raise ValueError(f"bands={bands!r} is one text; pass a list of names.")
    try:
        assets = _raster_assets(item)
        known = get_sensor(sensor or _sensor_of(item, assets))
        layers = [asset for asset in assets if not _is_no_band(asset)]
        wanted = None if bands is None else [known.find(band).name for band in bands]
        if wanted is not None and (not wanted or len(set(wanted)) < len(wanted)):
            raise ValueError(f"bands={list(bands or ())!r} must name at least one band, and each only once.")
        paths, names, facts = _choose(layers, item, known, wanted)
        scale, offset = _calibration(item, known, facts)
        return SceneSource(
            paths=paths,
            name=name,
            sensor=known.name,
            bands=names,
            acquired=_acquired(item),
            scale=scale,
            offset=offset,
            nodata=_nodata(facts),
            quality=_quality(assets),
            cloud_share=_cloud_share(item),
            licence=_licence(item),
        )
    except ValueError as error:
        raise ValueError(f"STAC item {name}: {error}") from error


@dataclass(frozen=True)
class _Asset:
    """An asset that is a raster.

    Attributes:
        key: Name of the asset in its item.
        path: Where GDAL finds it.
        roles: What it is for.
        facts: Per band what the item tells of it, under the names of STAC 1.1 without prefix ("common_name", "scale");
            one entry, perhaps empty, where it lists no bands.
        rank: Comes first among assets of the same bands.
    """

    key: str
    path: str
    roles: frozenset[str]
    facts: tuple[Mapping[str, Any], ...]
    rank: tuple[bool, bool, float]


def _raster_assets(item: pystac.Item) -> list[_Asset]:
    """Return the assets that are rasters, the best of several of one kind first."""
    assets = []
    for key, asset in item.assets.items():
        media = (asset.media_type or "").lower()
        file = os.path.basename(urlparse(asset.href).path).lower()
        is_tiff = "tiff" in media or file.endswith((".tif", ".tiff"))
        if not is_tiff and "jp2" not in media and not file.endswith(RASTER_SUFFIXES):
            continue
        href = asset.get_absolute_href()
        if href is None:
            raise ValueError(
                f"asset {key!r} has the relative reference {asset.href}, but where the item lies is unknown."
            )
        facts = _facts(asset)
        surface = "reflectance" in (asset.roles or ()) or bool(_SURFACE.search(key) or _SURFACE.search(file))
        rank = (not is_tiff, not surface, _resolution(key, facts[0]))
        assets.append(_Asset(key, _gdal_path(href), frozenset(asset.roles or ()), facts, rank))
    return sorted(assets, key=lambda asset: asset.rank)


def _facts(asset: pystac.Asset) -> tuple[Mapping[str, Any], ...]:
    """Return what the asset tells of each of its bands, from the fields of STAC 1.0 and 1.1."""
    lists = [asset.extra_fields.get(field) for field in ("eo:bands", "raster:bands", "bands")]
    listed = [bands for bands in lists if isinstance(bands, list) and all(isinstance(band, dict) for band in bands)]
    # In STAC 1.1 bands inherit the fields of their asset.
    facts = [_plain(asset.extra_fields) for _ in range(max(map(len, listed), default=0) or 1)]
    for bands in listed:
        for fact, band in zip(facts, bands, strict=False):
            fact.update(_plain(band))
    return tuple(facts)


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields without the prefixes of the electro-optical and raster extensions."""
    return {re.sub(r"^(?:eo|raster):", "", key): value for key, value in fields.items()}


def _resolution(key: str, fact: Mapping[str, Any]) -> float:
    """Return the ground resolution of an asset in metres, infinite where it is not told."""
    told = fact.get("spatial_resolution", fact.get("gsd"))
    in_key = re.search(r"_(\d+)m$", key)
    return float(told) if _is_finite(told) else float(in_key[1]) if in_key else math.inf


def _gdal_path(href: str) -> str:
    """Return the path under which GDAL opens a reference."""
    scheme, _, rest = href.partition("://")
    if scheme.lower() in ("http", "https"):
        return f"/vsicurl/{href}"
    if scheme.lower() in ("s3", "gs"):
        return f"/vsi{scheme.lower()}/{rest}"
    return _local(href)


def _is_no_band(asset: _Asset) -> bool:
    """Return whether an asset is a preview, a mask, an angle or another layer that is no optical band."""
    if asset.roles & _NO_BAND_ROLES or ("visual" in asset.roles and not asset.roles & {"data", "reflectance"}):
        return True
    layer = is_quality_layer(asset.key) or is_quality_layer(asset.path) or is_radar(asset.path)
    return layer or bool(_PREVIEW.search(asset.key))


def _sensor_of(item: pystac.Item, assets: Sequence[_Asset]) -> str:
    """Return the name in the registry of the sensor and level that an item tells."""
    collection = (item.collection_id or "").lower()
    if collection in SENSORS:
        return collection
    for text in (item.id, *(asset.path for asset in assets)):
        named = product_from_name(text).sensor
        if named:
            return named
    properties = item.properties
    craft = f"{properties.get('constellation', '')} {properties.get('platform', '')}".lower()
    fields = ("s2:product_type", "product:type", "processing:level", "landsat:correction")
    level = " ".join([*(str(properties.get(field, "")) for field in fields), collection, item.id])
    if collection.startswith("hls"):
        return "hls"
    if "naip" in re.split(r"[^a-z]+", collection):
        return "naip"
    if "sentinel-2" in craft and (match := re.search(r"(?:L|MSI)(1C|2A)", level, re.IGNORECASE)):
        return f"sentinel-2-l{match[1].lower()}"
    # Surface reflectance of Collection 1 is stored in other numbers.
    if (craft_number := re.search(r"landsat[-_ ]?0?([89])", craft)) and (
        str(properties.get("landsat:collection_number", "02")) == "02"
    ):
        if match := re.search(r"(?<![a-z])(?:(L2S[PR]|L2)|L1(?:TP|GT|GS))(?![a-z0-9])", level, re.IGNORECASE):
            return f"landsat-{craft_number[1]}-{'sr' if match[1] else 'toa'}"
    if "planetscope" in f"{craft} {collection}" or any(key.startswith("ps:") for key in properties):
        counts = [len(asset.facts) for asset in assets if not _is_no_band(asset) and not asset.rank[1]]
        super_dove = "PSB.SD" in (properties.get("instruments") or ())
        if counts:
            return "planetscope-8" if super_dove or max(counts) == 8 else "planetscope-4"
    told = f"constellation and platform {craft.strip()!r}, collection {collection!r}"
    raise ValueError(f"tells no sensor known here ({told}); pass sensor=, one of {', '.join(sorted(SENSORS))}.")


# Choosing bands

_Choice = tuple[tuple[str, ...], tuple[str, ...] | None, list[Mapping[str, Any]]]


def _choose(assets: Sequence[_Asset], item: pystac.Item, sensor: Sensor, wanted: Sequence[str] | None) -> _Choice:
    """Return paths, band names and what is told of every band: of an asset per band, or of one raster with many."""
    named = [(asset, _band_names(asset, item, sensor)) for asset in assets]
    singles: dict[str, tuple[_Asset, int]] = {}
    stacks: list[dict[str, tuple[_Asset, int]]] = []
    for asset, names in named:
        if len(names) > 1:
            stacks.append({name: (asset, index) for index, name in enumerate(names) if name})
        elif names[0]:
            singles.setdefault(names[0], (asset, 0))
    best = max([singles, *stacks], key=lambda held: len([name for name in wanted or held if name in held]))
    if not best:
        return _unnamed(assets, item, wanted)
    missing = [name for name in wanted or () if name not in best]
    if missing:
        raise ValueError(f"holds no {', '.join(missing)} with the other bands asked for; it has {', '.join(best)}.")
    if best is singles:
        order = list(wanted or (band.name for band in sensor.bands if band.name in singles))
        paths = tuple(singles[name][0].path for name in order)
    else:
        order = list(wanted or best)
        asset, indexes = next(iter(best.values()))[0], [best[name][1] for name in order]
        paths = (asset.path if indexes == list(range(len(asset.facts))) else _subset(asset, indexes),)
    return paths, tuple(order), [best[name][0].facts[best[name][1]] for name in order]


def _unnamed(assets: Sequence[_Asset], item: pystac.Item, wanted: Sequence[str] | None) -> _Choice:
    """Return the only raster of an item that tells of no bands: the file itself, or the caller, names them."""
    untold = [asset for asset in assets if not any(_says_band(fact, asset) for fact in asset.facts)]
    if len(untold) != 1:
        keys = ", ".join(item.assets) or "none"
        raise ValueError(f"no asset is known to be an optical band of the sensor (assets: {keys}); check sensor=.")
    return (untold[0].path,), None if wanted is None else tuple(wanted), list(untold[0].facts)


def _subset(asset: _Asset, indexes: Sequence[int]) -> str:
    """Return the path under which GDAL shows some bands of a raster, in this order."""
    if "?" in asset.path:
        raise ValueError(
            f"asset {asset.key!r} holds bands beyond those asked for, and GDAL cannot leave them out of a signed URL; "
            "take all of its bands, or fetch the file."
        )
    return f"vrt://{asset.path}?bands={','.join(str(index + 1) for index in indexes)}"


def _band_names(asset: _Asset, item: pystac.Item, sensor: Sensor) -> list[str | None]:
    """Return the sensor's name of every band of an asset, None where the sensor has no such band."""
    if len(asset.facts) > 1:
        names = [_band_name(sensor, fact, (_own_name(fact, asset),)) for fact in asset.facts]
        told = [name for name in names if name]
        order = FILE_ORDER.get(sensor.name, ())
        if told and len(set(told)) < len(told) and len(order) == len(names):
            return list(order)  # Two bands of one common name, in a product whose order is fixed.
        return names if len(set(told)) == len(told) else [None] * len(names)
    fact = asset.facts[0]
    texts = [str(fact.get("name") or ""), asset.key]
    texts += [file.layer for file in map(split_band_file, (asset.key, asset.path)) if file]
    if sensor.name == "hls":
        # By number only: the near infrared common to both products is not the band of S30 that is named so in STAC.
        table = product_from_name(item.id).bands or product_from_name(asset.path).bands
        mapped = (table.get(text.upper()) if table else _found(sensor, text) for text in texts)
        return [next((name for name in mapped if name), None)]
    return [_band_name(sensor, fact, texts)]


def _band_name(sensor: Sensor, fact: Mapping[str, Any], texts: Sequence[str]) -> str | None:
    """Return the sensor's name of a band: by its names, else by its common name and wavelength."""
    for text in texts:
        found = _found(sensor, text)
        if found:
            return found
    common, wavelength = str(fact.get("common_name") or ""), fact.get("center_wavelength")
    if not _is_finite(wavelength):
        return _found(sensor, common)
    distances = {band.name: abs(band.wavelength - 1000 * wavelength) for band in sensor.bands}  # told in micrometres
    if common:
        # "rededge" is any of three bands; "nir08" is one.
        kind = common.lower().rstrip("0123456789")
        alike = [band.name for band in sensor.bands if band.common_name.rstrip("0123456789") == kind]
        exact = _found(sensor, common) if common[-1].isdigit() else None
        return exact or min(alike, key=lambda name: distances[name], default=None)
    nearest = min(sensor.bands, key=lambda band: distances[band.name])
    return nearest.name if distances[nearest.name] <= nearest.width / 2 else None


def _own_name(fact: Mapping[str, Any], asset: _Asset) -> str:
    """Return the name of a band of a raster with many; empty where it only counts ("b1", "b2", as rio-stac writes)."""
    names = [fact.get("name") for fact in asset.facts]
    counted = [f"b{number}" for number in range(1, len(names) + 1)]
    return "" if names == counted else str(fact.get("name") or "")


def _says_band(fact: Mapping[str, Any], asset: _Asset) -> bool:
    """Return whether anything tells which band this is."""
    name = _own_name(fact, asset) if len(asset.facts) > 1 else fact.get("name")
    return bool(name or fact.get("common_name") or fact.get("center_wavelength"))


def _found(sensor: Sensor, name: str) -> str | None:
    """Return the sensor's own name of a band, or None if it has none, or several, of that name."""
    try:
        return sensor.find(name).name
    except ValueError:
        return None


def _quality(assets: Sequence[_Asset]) -> str | None:
    """Return the path of the quality layer."""
    return next((asset.path for asset in assets if quality_kind(asset.path)), None)


# Numbers, times and terms


def _calibration(
    item: pystac.Item, sensor: Sensor, facts: Sequence[Mapping[str, Any]]
) -> tuple[float | tuple[float, ...] | None, float | tuple[float, ...] | None]:
    """Return scale and offset where they are told for every band."""
    scale, offset = (_numbers([fact.get(what) for fact in facts]) for what in ("scale", "offset"))
    if item.properties.get("earthsearch:boa_offset_applied") is True:
        # Element 84 has taken the offset of processing baseline 4 off the pixels, and may still list it.
        offset = 0.0
    elevation = item.properties.get("view:sun_elevation")
    if sensor.name.endswith("-toa") and scale is None and offset is None and _is_finite(elevation) and elevation > 0:
        # As for Landsat's own metadata file; see `read_landsat_mtl`.
        sine = math.sin(math.radians(elevation))
        scale, offset = sensor.scale / sine, sensor.offset / sine
    return scale, offset


def _numbers(values: Sequence[Any]) -> float | tuple[float, ...] | None:
    """Return one number where all are equal, a tuple where they differ, None where one is missing."""
    if not values or not all(_is_finite(value) for value in values):
        return None
    numbers = tuple(float(value) for value in values)
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _nodata(facts: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the stored number that means "no data" in every band; NaN needs no telling."""
    told = _numbers([fact.get("nodata") for fact in facts])
    return told if isinstance(told, float) else None


def _acquired(item: pystac.Item) -> datetime | None:
    """Return the acquisition time: as told, or the middle of a period of up to a day."""
    if item.datetime is not None:
        return parse_time(item.datetime)
    start, end = (parse_time(item.properties[key]) for key in ("start_datetime", "end_datetime"))
    return start + (end - start) / 2 if timedelta(0) <= end - start <= timedelta(days=1) else None


def _cloud_share(item: pystac.Item) -> float | None:
    """Return the cloud cover as a share; None where it is not told (Landsat writes −1)."""
    cover = item.properties.get("eo:cloud_cover")
    return cover / 100 if _is_finite(cover) and 0 <= cover <= 100 else None


def _licence(item: pystac.Item) -> str | None:
    """Return the licence of the item or of its collection; the address of the terms where that only points to them."""
    told = item.properties.get("license")
    links = item.get_links(pystac.RelType.LICENSE)
    collection = _collection(item)
    if collection is not None:
        told = told or collection.license
        links += collection.get_links(pystac.RelType.LICENSE)
    if told and told not in _TERMS_ELSEWHERE:
        return str(told)
    return next((link.get_href(transform_href=False) for link in links), None) or (str(told) if told else None)


def _collection(item: pystac.Item) -> pystac.Collection | None:
    """Return the collection of an item if it is at hand; a remote one is not fetched for its licence alone."""
    link = item.get_single_link(pystac.RelType.COLLECTION)
    if link is None:
        return None
    if link.is_resolved():
        return link.target if isinstance(link.target, pystac.Collection) else None
    href = link.get_absolute_href()
    if not href or not os.path.isfile(_local(href)):
        return None
    return _parse(pystac.Collection, _load(href), href, href)


def _is_finite(value: Any) -> TypeGuard[float]:
    """Return whether the value is a finite number (booleans and texts are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_remote(href: str) -> bool:
    """Return whether a reference is fetched over the network."""
    return href.lower().startswith(("http://", "https://"))


def _local(href: str) -> str:
    """Return the path of a reference to a local file, which may be a `file://` URL."""
    return urllib.request.url2pathname(urlparse(href).path) if href.lower().startswith("file://") else href
