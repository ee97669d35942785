"""STAC items as several providers write them, of an invented place, and what they describe."""

import json
from datetime import date, datetime, timezone

import pystac

from a2mae_hub import read_image, write_raster
from a2mae_hub.simulate import Acquisition, observe, overpass
from a2mae_hub.stssd.stac import source_of_item

COG = "image/tiff; application=geotiff; profile=cloud-optimized"
EO = "https://stac-extensions.github.io/eo/v1.1.0/schema.json"
RASTER = "https://stac-extensions.github.io/raster/v1.1.0/schema.json"
LANDSAT = "LC08_L2SP_218074_20230705_20230710_02_T1"
MINUTE = datetime(2023, 7, 5, 10, 50, 31, 24000, tzinfo=timezone.utc)


def item_dict(id, assets, *, collection=None, version="1.0.0", links=(), **properties):
    """A STAC item of an invented place."""
    return {
        "type": "Feature",
        "stac_version": version,
        "stac_extensions": [EO, RASTER] if version == "1.0.0" else [],
        "id": id,
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[9.0, 48.0], [9.1, 48.0], [9.1, 48.1], [9.0, 48.1], [9.0, 48.0]]],
        },
        "bbox": [9.0, 48.0, 9.1, 48.1],
        "properties": {"datetime": "2023-07-05T10:50:31.024000Z", **properties},
        "links": list(links),
        "assets": assets,
        **({"collection": collection} if collection else {}),
    }


def source_of(item, **options):
    return source_of_item(pystac.Item.from_dict(item, href="/archive/item.json"), **options)


def save(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def opened(source):
    """The image of a source, read as the source says."""
    return read_image(
        list(source.paths),
        sensor=source.sensor,
        bands=source.bands,
        acquired=source.acquired,
        scale=source.scale,
        offset=source.offset,
        nodata=source.nodata,
    )


def simulated(place, sensor):
    return observe(place, Acquisition(sensor, overpass(date(2023, 7, 5), place.longitude)))


def write_bands(folder, image, names):
    """Write one file per band, without anything that tells which band it is but the name of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    for band, name in zip(image.pixels, names, strict=True):
        write_raster(folder / name, band, like=image)


EARTH_SEARCH_BANDS = {
    "coastal": ("B01", "coastal", 0.443, 60),
    "blue": ("B02", "blue", 0.49, 10),
    "green": ("B03", "green", 0.56, 10),
    "red": ("B04", "red", 0.665, 10),
    "rededge1": ("B05", "rededge", 0.704, 20),
    "rededge2": ("B06", "rededge", 0.74, 20),
    "rededge3": ("B07", "rededge", 0.783, 20),
    "nir": ("B08", "nir", 0.842, 10),
    "nir08": ("B8A", "nir08", 0.865, 20),
    "nir09": ("B09", "nir09", 0.945, 60),
    "swir16": ("B11", "swir16", 1.61, 20),
    "swir22": ("B12", "swir22", 2.19, 20),
}


def earth_search_item(prefix="", offset=-0.1, **properties):
    """As Element 84 writes it: assets by common name in alphabetical order, everything a second time as JPEG 2000."""
    assets = {
        "aot": {"href": f"{prefix}AOT.tif", "type": COG, "roles": ["data", "reflectance"]},
        "granule_metadata": {"href": f"{prefix}metadata.xml", "type": "application/xml", "roles": ["metadata"]},
        "scl": {"href": f"{prefix}SCL.tif", "type": COG, "roles": ["data", "reflectance"]},
        "thumbnail": {"href": f"{prefix}thumbnail.jpg", "type": "image/jpeg", "roles": ["thumbnail"]},
        "visual": {
            "href": f"{prefix}TCI.tif",
            "type": COG,
            "roles": ["visual"],
            "eo:bands": [{"name": name, "common_name": name} for name in ("red", "green", "blue")],
        },
        "wvp": {"href": f"{prefix}WVP.tif", "type": COG, "roles": ["data", "reflectance"]},
    }
    for key, (band, common, wavelength, size) in sorted(EARTH_SEARCH_BANDS.items()):
        facts = {
            "roles": ["data", "reflectance"],
            "gsd": size,
            "eo:bands": [{"name": key, "common_name": common, "center_wavelength": wavelength}],
            "raster:bands": [
                {"nodata": 0, "data_type": "uint16", "spatial_resolution": size, "scale": 0.0001, "offset": offset}
            ],
        }
        assets[f"{key}-jp2"] = {"href": f"s3://sentinel-s2-l2a/tiles/{band}.jp2", "type": "image/jp2", **facts}
        assets[key] = {"href": f"{prefix}{band}.tif", "type": COG, **facts}
    assets["scl-jp2"] = {"href": "s3://sentinel-s2-l2a/tiles/SCL.jp2", "type": "image/jp2", "roles": ["data"]}
    return item_dict(
        "S2A_T32TNS_20230705T105031_L2A",
        assets,
        collection="sentinel-2-c1-l2a",
        platform="sentinel-2a",
        constellation="sentinel-2",
        instruments=["msi"],
        **{"eo:cloud_cover": 12.5, "s2:product_type": "S2MSI2A", "s2:processing_baseline": "05.09", **properties},
    )


def landsat_item(**properties):
    bands = {
        "coastal": "B1",
        "blue": "B2",
        "green": "B3",
        "red": "B4",
        "nir08": "B5",
        "swir16": "B6",
        "swir22": "B7",
    }
    assets = {
        "qa": {"href": f"{LANDSAT}_ST_QA.TIF", "type": COG, "roles": ["data"]},
        "ang": {"href": f"{LANDSAT}_ANG.txt", "type": "text/plain", "roles": ["metadata"]},
        "drad": {"href": f"{LANDSAT}_ST_DRAD.TIF", "type": COG, "roles": ["data"]},
        "lwir11": {
            "href": f"{LANDSAT}_ST_B10.TIF",
            "type": COG,
            "roles": ["data", "temperature"],
            "eo:bands": [{"name": "TIRS_B10", "common_name": "lwir11", "center_wavelength": 10.9}],
            "raster:bands": [{"scale": 0.00341802, "offset": 149.0, "nodata": 0}],
        },
        "qa_pixel": {
            "href": f"{LANDSAT}_QA_PIXEL.TIF",
            "type": COG,
            "roles": ["cloud", "cloud-shadow", "snow-ice", "water-mask"],
        },
        "qa_aerosol": {"href": f"{LANDSAT}_SR_QA_AEROSOL.TIF", "type": COG, "roles": ["data-mask", "water-mask"]},
        "rendered_preview": {"href": "https://host/preview.png", "type": "image/png", "roles": ["overview"]},
    }
    for key, band in bands.items():
        assets[key] = {
            "href": f"{LANDSAT}_SR_{band}.TIF",
            "type": COG,
            "roles": ["data"],
            "eo:bands": [{"name": f"OLI_{band}", "common_name": key}],
            "raster:bands": [{"scale": 2.75e-05, "offset": -0.2, "nodata": 0, "spatial_resolution": 30}],
        }
    return item_dict(
        "LC08_L2SP_218074_20230705_02_T1",
        assets,
        collection="landsat-c2-l2",
        **{
            "platform": "landsat-8",
            "landsat:correction": "L2SP",
            "landsat:collection_number": "02",
            "eo:cloud_cover": -1,
            **properties,
        },
    )


def naip_item(**asset):
    bands = [("Red", "red"), ("Green", "green"), ("Blue", "blue"), ("NIR", "nir")]
    image = {
        "href": "./image.tif",
        "type": COG,
        "roles": ["data"],
        "eo:bands": [{"name": name, "common_name": common} for name, common in bands],
        **asset,
    }
    preview = {"href": "https://host/preview.png?assets=image", "type": "image/png", "roles": ["overview"]}
    thumbnail = {"href": "https://host/thumb.tif", "type": COG, "roles": ["thumbnail"]}
    return item_dict(
        "al_place_2023",
        {"thumbnail": thumbnail, "rendered_preview": preview, "image": image},
        collection="naip",
        gsd=0.6,
        **{"naip:state": "al"},
    )
