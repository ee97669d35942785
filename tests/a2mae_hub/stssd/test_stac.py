"""STAC items of several providers become sources of scenes that open with the right bands, numbers and times."""

import json
import math
import subprocess
import sys
from datetime import date, datetime, timezone

import numpy as np
import pystac
import pytest

from a2mae_hub import read_image, write_raster
from a2mae_hub.landscape import simulate_place
from a2mae_hub.simulate import Acquisition, observe, overpass
from a2mae_hub.stssd.stac import read_items, source_of_item, sources_of_items

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


@pytest.fixture(scope="module")
def place():
    return simulate_place(7, extent=480.0)


def simulated(place, sensor):
    return observe(place, Acquisition(sensor, overpass(date(2023, 7, 5), place.longitude)))


def write_bands(folder, image, names):
    """Write one file per band, without anything that tells which band it is but the name of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    for band, name in zip(image.pixels, names, strict=True):
        write_raster(folder / name, band, like=image)


# ------------------------------------------------------------------------------------------ Sentinel-2, Earth Search v1

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


def test_a_sentinel_2_item_of_earth_search_opens_with_every_band_in_its_place(tmp_path, place):
    image = simulated(place, "sentinel-2-l2a")
    write_bands(tmp_path / "scene", image, [f"{band}.tif" for band in image.bands])
    path = save(tmp_path / "scene" / "item.json", earth_search_item(prefix="./"))
    (source,) = sources_of_items([path])
    assert source.bands == tuple(band for band, *_ in EARTH_SEARCH_BANDS.values()) == tuple(image.bands)
    assert (source.sensor, source.acquired, source.cloud_share) == ("sentinel-2-l2a", MINUTE, 0.125)
    assert (source.scale, source.offset, source.nodata) == (0.0001, -0.1, 0)
    assert source.name == "sentinel-2-c1-l2a/S2A_T32TNS_20230705T105031_L2A"
    assert source.quality == str(tmp_path / "scene" / "SCL.tif")
    read = opened(source)
    np.testing.assert_array_equal(read.pixels, image.pixels)
    assert (read.sensor, list(read.bands), read.acquired) == ("sentinel-2-l2a", list(image.bands), MINUTE)


def test_wanted_bands_come_in_the_order_asked_by_any_of_their_names(tmp_path, place):
    image = simulated(place, "sentinel-2-l2a")
    write_bands(tmp_path, image, [f"{band}.tif" for band in image.bands])
    (source,) = sources_of_items(
        [save(tmp_path / "item.json", earth_search_item())], bands=["nir", "B04", "rededge075"]
    )
    assert source.bands == ("B08", "B04", "B06")
    wanted = [list(image.bands).index(band) for band in source.bands]
    np.testing.assert_array_equal(opened(source).pixels, image.pixels[wanted])


def test_an_offset_that_element_84_has_applied_to_the_pixels_is_not_applied_again():
    item = earth_search_item(offset=-0.1, **{"earthsearch:boa_offset_applied": True})
    assert source_of(item).offset == 0
    assert source_of(earth_search_item(offset=-0.1, **{"earthsearch:boa_offset_applied": False})).offset == -0.1


def test_jpeg_2000_is_taken_where_there_is_no_geotiff():
    item = earth_search_item()
    item["assets"] = {key: asset for key, asset in item["assets"].items() if key.endswith("-jp2")}
    source = source_of(item, bands=["B8A", "B02"])
    assert source.paths == ("/vsis3/sentinel-s2-l2a/tiles/B8A.jp2", "/vsis3/sentinel-s2-l2a/tiles/B02.jp2")
    assert source.quality == "/vsis3/sentinel-s2-l2a/tiles/SCL.jp2"


def test_references_become_paths_of_gdal():
    item = earth_search_item()
    hrefs = {
        "red": ("https://host/a/B04.tif?sig=x%2Fy", "/vsicurl/https://host/a/B04.tif?sig=x%2Fy"),
        "green": ("s3://bucket/a/B03.tif", "/vsis3/bucket/a/B03.tif"),
        "blue": ("gs://bucket/a/B02.tif", "/vsigs/bucket/a/B02.tif"),
        "nir": ("/data/B08.tif", "/data/B08.tif"),
        "nir08": ("file:///data/B%208A.tif", "/data/B 8A.tif"),
        "swir16": ("../b/B11.tif", "/b/B11.tif"),
        "swir22": ("/vsizip/a.zip/B12.tif", "/vsizip/a.zip/B12.tif"),
    }
    for key, (href, _) in hrefs.items():
        item["assets"][key]["href"] = href
    assert source_of(item, bands=list(hrefs)).paths == tuple(path for _, path in hrefs.values())


def test_of_the_resolutions_of_the_copernicus_data_space_the_finest_is_taken():
    root = "s3://eodata/S2A_MSIL2A.SAFE/IMG_DATA"
    assets = {
        f"{band}_{size}m": {
            "href": f"{root}/R{size}m/T32TNS_20230705T105031_{band}_{size}m.jp2",
            "type": "image/jp2",
            "roles": ["data", "reflectance"] if band.startswith("B") else ["data"],
            "bands": [{"name": band}],
        }
        for band, size in (("B02", 60), ("B02", 20), ("B02", 10), ("B05", 60), ("B05", 20), ("SCL", 60), ("SCL", 20))
    }
    assets["TCI_10m"] = {
        "href": f"{root}/R10m/T32TNS_20230705T105031_TCI_10m.jp2",
        "type": "image/jp2",
        "roles": ["visual"],
        "bands": [{"name": "B04"}, {"name": "B03"}, {"name": "B02"}],
    }
    item = item_dict(
        "S2A_T32TNS",
        assets,
        version="1.1.0",
        constellation="sentinel-2",
        **{"processing:level": "L2", "product:type": "S2MSI2A"},
    )
    source = source_of(item)
    assert [path.rpartition("_")[2] for path in source.paths] == ["10m.jp2", "20m.jp2"]
    assert source.quality.endswith("R20m/T32TNS_20230705T105031_SCL_20m.jp2")
    assert (source.sensor, source.bands, source.scale, source.offset) == ("sentinel-2-l2a", ("B02", "B05"), None, None)


def test_level_1_of_sentinel_2_is_told_by_the_product_type():
    item = item_dict(
        "scene",
        {"B04": {"href": "B04.jp2", "type": "image/jp2", "roles": ["data"]}},
        platform="Sentinel-2B",
        **{"s2:product_type": "S2MSI1C"},
    )
    assert source_of(item).sensor == "sentinel-2-l1c"


# ------------------------------------------------------------------------------------------- what tells sensor and band


def bands_of(assets, **options):
    """The bands taken of assets of an otherwise plain Sentinel-2 item."""
    assets = {key: {"href": f"{key}.tif", "type": COG, "roles": ["data"], **asset} for key, asset in assets.items()}
    return source_of(item_dict("scene", assets, collection="sentinel-2-l2a"), **options).bands


@pytest.mark.parametrize(
    ("key", "asset"),
    [
        ("other", {"roles": ["visual"]}),
        ("other", {"roles": ["overview"]}),
        ("other", {"roles": ["data", "cloud"]}),
        ("nir_preview", {}),
        ("aot", {"href": "1.tif"}),
        ("other", {"href": "T32TNS_20230705T105031_AOT_10m.tif"}),
        ("other", {"type": "image/png", "href": "other.png"}),
        ("other", {"type": "application/json", "href": "other.json"}),
    ],
)
def test_previews_masks_and_other_layers_are_no_bands_whatever_they_claim(key, asset):
    claim = {"eo:bands": [{"name": "B08", "common_name": "nir"}]}
    assert bands_of({"B04": {}, key: {**claim, **asset}}) == ("B04",)
    assert bands_of({"B04": {}, "other": claim}) == ("B04", "B08")


@pytest.mark.parametrize(
    ("asset", "band"),
    [
        ({"eo:bands": [{"name": "B8A", "common_name": "rededge"}]}, "B8A"),  # as the Planetary Computer has it
        ({"eo:bands": [{"common_name": "rededge", "center_wavelength": 0.74}]}, "B06"),
        ({"eo:bands": [{"common_name": "nir08", "center_wavelength": 0.842}]}, "B8A"),
        ({"bands": [{"eo:common_name": "rededge078"}]}, "B07"),
        ({"bands": [{"eo:center_wavelength": 1.61}]}, "B11"),
        ({"href": "T32TNS_20230705T105031_B03_10m.tif"}, "B03"),
        ({"eo:bands": [{"common_name": "rededge"}]}, None),  # one of three
        ({"eo:bands": [{"center_wavelength": 1.2}]}, None),
        ({"eo:bands": [{"common_name": "pan", "center_wavelength": 0.56}]}, None),
    ],
)
def test_a_band_is_told_by_name_then_common_name_then_wavelength(asset, band):
    assert bands_of({"B04": {}, "other": asset}) == tuple(sorted(filter(None, ["B04", band])))


def test_a_raster_per_band_is_preferred_to_a_stack_that_has_no_more():
    stack = {"eo:bands": [{"name": "B02"}, {"name": "B04"}]}
    single = item_dict(
        "scene",
        {key: {"href": f"{key}.tif", "type": COG} for key in ("B02", "B04")} | {"all": {"href": "all.tif", **stack}},
        collection="sentinel-2-l2a",
    )
    assert source_of(single).paths == ("/archive/B02.tif", "/archive/B04.tif")
    single["assets"]["all"]["eo:bands"].append({"name": "B08"})
    assert source_of(single).paths == ("/archive/all.tif",)


@pytest.mark.parametrize(
    ("id", "collection", "sensor"),
    [
        ("S2A_31TCJ_20200621_0_L2A", "mine", "sentinel-2-l2a"),
        ("scene", "sentinel-2-l1c", "sentinel-2-l1c"),
        ("scene", "usda-naip", "naip"),
        ("scene", "HLSS30.v2.0", "hls"),
    ],
)
def test_names_of_products_and_collections_tell_the_sensor(id, collection, sensor):
    asset = {"href": "red.tif", "type": COG, "roles": ["data"]}
    number = {"href": "B05.tif", "type": COG, "roles": ["data"]}  # of HLS, known only with the product
    item = item_dict(id, {"red": asset, "B05": number} if sensor == "hls" else {"red": asset}, collection=collection)
    source = source_of(item)
    assert (source.sensor, len(source.bands)) == (sensor, 1)


def test_of_several_rasters_that_tell_no_band_none_is_guessed():
    with pytest.raises(ValueError, match=r"no asset is known to be an optical band of the sensor \(assets: one, two\)"):
        bands_of({"one": {}, "two": {}})
    assert bands_of({"one": {}}) is None
    assert bands_of({"one": {}}, bands=["red", "B08"]) == ("B04", "B08")


# --------------------------------------------------------------------------------------- Landsat, Planetary Computer


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


def test_a_landsat_item_opens_with_its_reflective_bands_alone(tmp_path, place):
    image = simulated(place, "landsat-8-sr")
    write_bands(tmp_path, image, [f"{LANDSAT}_SR_{band}.TIF" for band in image.bands])
    (source,) = sources_of_items([save(tmp_path / "item.json", landsat_item())])
    assert (source.sensor, source.bands) == ("landsat-8-sr", ("B1", "B2", "B3", "B4", "B5", "B6", "B7"))
    assert (source.scale, source.offset, source.nodata) == (2.75e-5, -0.2, 0)
    assert source.cloud_share is None  # -1 stands for unknown
    assert source.quality == str(tmp_path / f"{LANDSAT}_QA_PIXEL.TIF")
    np.testing.assert_array_equal(opened(source).pixels, image.pixels)


@pytest.mark.parametrize(
    ("platform", "correction", "sensor"),
    [
        ("landsat-9", "L2SP", "landsat-9-sr"),
        ("LANDSAT_8", "L2SR", "landsat-8-sr"),
        ("landsat-9", "L1TP", "landsat-9-toa"),
        ("landsat-8", "L1GT", "landsat-8-toa"),
    ],
)
def test_landsat_level_and_number_decide_the_sensor(platform, correction, sensor):
    item = landsat_item(platform=platform, **{"landsat:correction": correction})
    item["id"] = "scene"
    for asset in item["assets"].values():
        asset["href"] = asset["href"].replace(f"{LANDSAT}_", "")
    assert source_of(item).sensor == sensor


@pytest.mark.parametrize(
    "changed", [{"platform": "landsat-7"}, {"landsat:collection_number": "01"}, {"platform": "sentinel-1a"}]
)
def test_what_the_registry_does_not_know_is_not_taken_for_its_neighbour(changed):
    item = landsat_item(**changed)
    item["id"] = "scene"
    for asset in item["assets"].values():
        asset["href"] = asset["href"].replace(f"{LANDSAT}_", "")
    with pytest.raises(ValueError, match=r"^STAC item landsat-c2-l2/scene: tells no sensor known here .* pass sensor="):
        source_of(item)
    assert source_of(item, sensor="landsat-8-sr").bands[3] == "B4"


def test_landsat_top_of_atmosphere_without_factors_takes_the_height_of_the_sun_into_account():
    item = landsat_item(**{"landsat:correction": "L1TP", "view:sun_elevation": 30.0})
    item["id"] = "scene"
    for asset in item["assets"].values():
        asset["href"] = asset["href"].replace(f"{LANDSAT}_", "")
        asset.pop("raster:bands", None)
    source = source_of(item)
    assert math.isclose(source.scale, 2e-5 / 0.5) and math.isclose(source.offset, -0.1 / 0.5)


# ---------------------------------------------------------------------------------------------------------- HLS


@pytest.mark.parametrize(
    ("product", "bands"),
    [
        ("L30", {"B01": "coastal", "B04": "red", "B05": "nir", "B06": "swir16", "B10": None}),
        ("S30", {"B01": "coastal", "B05": None, "B08": None, "B8A": "nir", "B11": "swir16"}),
    ],
)
def test_a_band_number_of_hls_means_what_its_product_says(tmp_path, place, product, bands):
    image = simulated(place, "hls")
    id = f"HLS.{product}.T32TNS.2023186T105031.v2.0"
    common = {"B05": "nir" if product == "L30" else "rededge", "B08": "nir", "B8A": "nir08"}
    assets = {
        key: {"href": f"{id}.{key}.tif", "type": COG, "roles": ["data"], "eo:bands": [{"name": key}]} for key in bands
    }
    for key, name in common.items():
        if key in assets:
            assets[key]["eo:bands"][0]["common_name"] = name
    assets["Fmask"] = {"href": f"{id}.Fmask.tif", "type": COG, "roles": ["data"]}
    assets["SZA"] = {"href": f"{id}.SZA.tif", "type": COG, "roles": ["data"]}
    held = {key: name for key, name in bands.items() if name}
    pixels = [image.pixels[list(image.bands).index(name)] for name in held.values()]
    for key, band in zip(held, pixels, strict=True):
        write_raster(tmp_path / f"{id}.{key}.tif", band, like=image)
    item = item_dict(
        id, assets, collection=f"hls2-{product.lower()}", platform="sentinel-2a", **{"processing:level": "2A"}
    )
    (source,) = sources_of_items([save(tmp_path / "item.json", item)])
    assert (source.sensor, source.bands) == ("hls", tuple(held.values()))
    assert source.quality == str(tmp_path / f"{id}.Fmask.tif")
    np.testing.assert_array_equal(opened(source).pixels, pixels)


# -------------------------------------------------------------------------------------------- one raster of many bands


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


@pytest.fixture
def naip_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 255, (4, 6, 5), np.uint8)
    write_raster(tmp_path / "image.tif", pixels, crs="EPSG:26916", transform=(0.6, 0, 5e5, 0, -0.6, 3.5e6))
    return pixels


def test_the_bands_of_one_raster_come_in_the_order_of_the_file(tmp_path, naip_pixels):
    (source,) = sources_of_items([save(tmp_path / "item.json", naip_item())])
    assert (source.paths, source.bands) == ((str(tmp_path / "image.tif"),), ("red", "green", "blue", "nir"))
    assert (source.sensor, source.scale, source.nodata, source.cloud_share) == ("naip", None, None, None)
    np.testing.assert_array_equal(opened(source).pixels, naip_pixels)


@pytest.mark.parametrize("bands", [["nir", "red"], ["blue", "green", "red"], ["green", "red", "nir", "blue"]])
def test_some_bands_of_one_raster_are_read_from_where_they_lie_in_it(tmp_path, naip_pixels, bands):
    (source,) = sources_of_items([save(tmp_path / "item.json", naip_item())], bands=bands)
    assert source.bands == tuple(bands)
    expected = naip_pixels[[("red", "green", "blue", "nir").index(band) for band in bands]]
    np.testing.assert_array_equal(opened(source).pixels, expected)


def test_some_bands_of_a_signed_url_are_refused_rather_than_misread():
    item = naip_item(href="https://host/image.tif?sig=1")
    assert source_of(item).paths == ("/vsicurl/https://host/image.tif?sig=1",)
    with pytest.raises(ValueError, match=r"^STAC item naip/al_place_2023: asset 'image' .* signed URL; take all"):
        source_of(item, bands=["red", "nir"])


def test_bands_that_are_only_counted_tell_nothing(tmp_path, place):
    """rio-stac names the bands of any raster b1, b2, …; b4 of this one is no B4."""
    image = simulated(place, "landsat-8-sr")
    chosen = ["B2", "B3", "B4", "B5"]
    pixels = image.pixels[[list(image.bands).index(name) for name in chosen]]
    write_raster(tmp_path / "stack.tif", pixels, like=image, descriptions=chosen)
    asset = {"href": "stack.tif", "type": COG, "roles": ["data"], "eo:bands": [{"name": f"b{n}"} for n in (1, 2, 3, 4)]}
    path = save(tmp_path / "item.json", item_dict("scene", {"asset": asset}))
    (source,) = sources_of_items([path], sensor="landsat-8-sr")
    assert source.bands is None
    assert list(opened(source).bands) == chosen
    (source,) = sources_of_items([path], sensor="landsat-8-sr", bands=["red", "blue"])
    np.testing.assert_array_equal(opened(source).pixels, pixels[[2, 0]])


def test_planetscope_surface_reflectance_is_preferred_and_its_two_greens_are_told_apart_by_wavelength():
    bands = [
        ("coastal", 0.443),
        ("blue", 0.490),
        ("green", 0.531),
        ("green", 0.565),
        ("yellow", 0.610),
        ("red", 0.665),
        ("rededge", 0.705),
        ("nir", 0.865),
    ]
    eo = [{"name": f"band{n}", "common_name": name, "center_wavelength": w} for n, (name, w) in enumerate(bands)]
    assets = {
        "ortho_analytic_8b": {"href": "x_3B_AnalyticMS_8b.tif", "type": COG, "roles": ["data"], "eo:bands": eo},
        "ortho_analytic_8b_sr": {"href": "x_3B_AnalyticMS_SR_8b.tif", "type": COG, "roles": ["data"], "eo:bands": eo},
        "ortho_udm2": {"href": "x_3B_udm2.tif", "type": COG, "roles": ["data-mask"]},
        "ortho_visual": {"href": "x_3B_Visual.tif", "type": COG, "roles": ["visual"], "eo:bands": eo[:3]},
    }
    item = item_dict("20230705_105031_24", assets, constellation="planetscope", instruments=["PSB.SD"])
    source = source_of(item)
    order = ("coastal_blue", "blue", "green_i", "green", "yellow", "red", "rededge", "nir")
    assert (source.sensor, source.bands) == ("planetscope-8", order)
    assert source.paths == ("/archive/x_3B_AnalyticMS_SR_8b.tif",)
    for band in eo:
        del band["center_wavelength"]
    assert source_of(item).bands == order  # then by the order that the product has
    del assets["ortho_analytic_8b_sr"]
    with pytest.raises(ValueError, match="tells no sensor known here"):
        source_of(item)  # radiance


# ----------------------------------------------------------------------------------------------------------- STAC 1.1


def test_bands_of_stac_1_1_carry_names_and_numbers_and_inherit_those_of_their_asset(tmp_path, place):
    image = simulated(place, "sentinel-2-l2a")
    chosen = {"B04": "red", "B08": "nir", "B05": "rededge071"}
    pixels = np.stack([image.pixels[list(image.bands).index(name)] for name in chosen])
    assets = {}
    for number, (band, common) in enumerate(chosen.items()):
        write_raster(tmp_path / f"{number}.tif", image.pixels[list(image.bands).index(band)], like=image)
        assets[f"asset-{number}"] = {
            "href": f"{number}.tif",
            "type": COG,
            "roles": ["data"],
            "nodata": 0,
            "raster:scale": 0.0001,
            "bands": [{"eo:common_name": common, "raster:offset": -0.1 * number}],
        }
    item = item_dict("scene", assets, version="1.1.0", constellation="sentinel-2", **{"processing:level": "L2A"})
    (source,) = sources_of_items([save(tmp_path / "item.json", item)], bands=["B04", "B08", "B05"])
    assert (source.scale, source.nodata) == (0.0001, 0)
    assert source.offset == pytest.approx((0.0, -0.1, -0.2))
    np.testing.assert_array_equal(opened(source).pixels, pixels)


def test_factors_that_are_not_told_of_every_band_are_left_to_the_files():
    item = earth_search_item()
    del item["assets"]["red"]["raster:bands"][0]["scale"]
    assert source_of(item).scale is None
    assert source_of(item, bands=["B03", "B02"]).scale == 0.0001


@pytest.mark.parametrize(("nodata", "told"), [(0, 0.0), (-9999, -9999.0), ("nan", None), (None, None)])
def test_nodata_is_a_number_or_left_to_the_files(nodata, told):
    item = earth_search_item()
    for asset in item["assets"].values():
        for band in asset.get("raster:bands", ()):
            band["nodata"] = nodata
    assert source_of(item).nodata == told


# ------------------------------------------------------------------------------------------------------ time and terms


@pytest.mark.parametrize(
    ("start", "end", "middle"),
    [
        ("2023-07-05T10:00:00Z", "2023-07-05T11:00:00Z", datetime(2023, 7, 5, 10, 30, tzinfo=timezone.utc)),
        ("2023-07-05T00:00:00Z", "2023-07-06T00:00:00Z", datetime(2023, 7, 5, 12, tzinfo=timezone.utc)),
        ("2023-07-01T00:00:00Z", "2023-07-31T00:00:00Z", None),  # a composite
        ("2023-07-05T11:00:00Z", "2023-07-05T10:00:00Z", None),
    ],
)
def test_a_period_of_up_to_a_day_has_a_middle(start, end, middle):
    item = earth_search_item()
    item["properties"] |= {"datetime": None, "start_datetime": start, "end_datetime": end}
    assert source_of(item).acquired == middle


def test_the_licence_is_that_of_the_item_else_of_its_collection_else_where_the_terms_stand(tmp_path):
    terms = {"rel": "license", "href": "https://host/terms.pdf"}
    item = earth_search_item()
    assert source_of(item).licence is None
    assert source_of({**item, "links": [terms]}).licence == "https://host/terms.pdf"
    item["properties"]["license"] = "CC-BY-4.0"
    assert source_of({**item, "links": [terms]}).licence == "CC-BY-4.0"
    item["properties"]["license"] = "proprietary"
    assert source_of({**item, "links": [terms]}).licence == "https://host/terms.pdf"

    del item["properties"]["license"]
    save(tmp_path / "collection.json", collection_dict("sentinel-2-c1-l2a", license="CC0-1.0"))
    item["links"] = [{"rel": "collection", "href": "../collection.json"}]
    (source,) = sources_of_items([save(tmp_path / "a" / "item.json", item)])
    assert source.licence == "CC0-1.0"
    item["links"][0]["href"] = "https://host.invalid/collection.json"  # not fetched
    assert source_of(item).licence is None


# ------------------------------------------------------------------------------------------------------- reading items


def collection_dict(id, items=(), license="CC-BY-4.0"):
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": id,
        "description": "Invented.",
        "license": license,
        "extent": {"spatial": {"bbox": [[9, 48, 10, 49]]}, "temporal": {"interval": [["2023-01-01T00:00:00Z", None]]}},
        "links": [{"rel": "item", "href": href} for href in items],
    }


def catalog_dict(children=(), items=()):
    links = [{"rel": "child", "href": href} for href in children] + [{"rel": "item", "href": href} for href in items]
    return {"type": "Catalog", "stac_version": "1.0.0", "id": "root", "description": "Invented.", "links": links}


def named(id):
    return {**earth_search_item(), "id": id}


def ids(paths):
    return [item.id for item in read_items(paths)]


def test_items_are_read_from_files_collections_of_items_folders_and_catalogs(tmp_path):
    one = save(tmp_path / "items" / "1.json", named("one"))
    two = save(tmp_path / "items" / "2.geojson", named("two"))
    save(tmp_path / "items" / "MTL.json", {"LANDSAT_METADATA_FILE": {}})  # beside items, but no STAC
    many = save(tmp_path / "search.json", {"type": "FeatureCollection", "features": [named("three"), named("four")]})
    save(tmp_path / "c" / "collection.json", collection_dict("s2", ["../items/2.geojson", "five/five.json"]))
    save(tmp_path / "c" / "five" / "five.json", named("five"))
    catalog = save(tmp_path / "catalog.json", catalog_dict(["./c/collection.json", "catalog.json"], ["items/1.json"]))
    assert ids(one) == ["one"]
    assert ids([two, str(one), one]) == ["two", "one"]
    assert ids([many]) == ["three", "four"]
    assert ids([tmp_path / "items"]) == ["one", "two"]
    assert ids([catalog]) == ["one", "two", "five"]  # a link back to itself ends nowhere
    assert ids([catalog, tmp_path / "items", many]) == ["one", "two", "five", "three", "four"]
    assert ids([one.as_uri()]) == ["one"]


def test_relative_references_start_where_the_document_lies(tmp_path, monkeypatch):
    save(tmp_path / "deep" / "search.json", {"type": "FeatureCollection", "features": [earth_search_item("../scene/")]})
    monkeypatch.chdir(tmp_path)
    (source,) = sources_of_items(["deep/search.json"], bands=["B04"])
    assert source.paths == (str(tmp_path / "scene" / "B04.tif"),)


def test_a_collection_hands_its_licence_to_its_items(tmp_path):
    save(tmp_path / "one.json", {key: value for key, value in earth_search_item().items() if key != "collection"})
    collection = save(tmp_path / "collection.json", collection_dict("mine", ["one.json"], license="CC0-1.0"))
    (source,) = sources_of_items([collection])
    assert (source.licence, source.name.split("/")[0]) == ("CC0-1.0", "mine")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a server of a folder, in a process of its own."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        port = process.stdout.readline().partition(" port ")[2].split()[0]
        yield folder, f"http://127.0.0.1:{port}"
        process.terminate()


def test_items_and_pixels_come_over_http(server, place):
    folder, address = server
    image = simulated(place, "sentinel-2-l2a")
    write_bands(folder / "scene", image, [f"{band}.tif" for band in image.bands])
    save(folder / "scene" / "item.json", earth_search_item())
    save(folder / "catalog.json", catalog_dict(items=["scene/item.json"]))
    (source,) = sources_of_items([f"{address}/catalog.json"], bands=["B04", "B02"])
    assert source.paths == (f"/vsicurl/{address}/scene/B04.tif", f"/vsicurl/{address}/scene/B02.tif")
    wanted = [list(image.bands).index(band) for band in ("B04", "B02")]
    np.testing.assert_array_equal(opened(source).pixels, image.pixels[wanted])
    with pytest.raises(ValueError, match=rf"^{address}/no\.json: could not be fetched \(.*404.*\)"):
        read_items([f"{address}/no.json"])


def test_an_address_that_nobody_answers_is_named():
    with pytest.raises(ValueError, match=r"^http://127\.0\.0\.1:1/item\.json: could not be fetched"):
        read_items(["http://127.0.0.1:1/item.json"])


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<html>", "is not JSON"),
        ("\xff", "is not JSON"),
        ("[1, 2]", "is JSON, but not a STAC item"),
        ('{"type": "FeatureCollection", "features": [{"type": "Feature"}]}', "is JSON, but not a STAC item"),
        ('{"type": "Feature", "stac_version": "1.0.0", "id": "x"}', "not a STAC item that can be read"),
        ('{"type": "Feature", "stac_version": [], "id": "x"}', "is JSON, but not a STAC item"),
        (json.dumps({**earth_search_item(), "id": None}), r"not a STAC item that can be read \(id is"),
        (json.dumps(naip_item(roles="data")), r"not a STAC item that can be read \(roles of asset 'image'"),
        (json.dumps(naip_item(type=1)), r"not a STAC item that can be read \(href or type of asset 'image'"),
        (json.dumps({**naip_item(), "collection": []}), r"not a STAC item that can be read \(collection is"),
        (json.dumps({**naip_item(), "links": [{"rel": "license", "href": ""}]}), "not a STAC item .* leads nowhere"),
        (json.dumps(catalog_dict(items=[5])), "not a STAC catalog that can be read"),
        (json.dumps(catalog_dict()), "leads to no STAC item"),
        ('{"type": "FeatureCollection", "features": []}', "leads to no STAC item"),
    ],
)
def test_a_document_that_is_no_item_is_named_with_the_fault(tmp_path, text, complaint):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"^{path}: {complaint}"):
        read_items([path])


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/no.json: no such file"):
        read_items([tmp_path / "no.json"])
    catalog = save(tmp_path / "catalog.json", catalog_dict(items=["gone.json"]))
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/gone.json: no such file"):
        read_items([catalog])
    with pytest.raises(ValueError, match=f"^{tmp_path}/empty: leads to no STAC item"):
        (tmp_path / "empty").mkdir()
        read_items([tmp_path / "empty"])
    with pytest.raises(ValueError, match="No STAC items were given"):
        read_items([])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sensor": "sentinel-9"}, "No sensor is named 'sentinel-9'"),
        ({"bands": ["B10"]}, "Sensor 'sentinel-2-l2a' has no band 'B10'"),
        ({"bands": ["B04", "red"]}, "must name at least one band, and each only once"),
        ({"bands": []}, "must name at least one band, and each only once"),
    ],
)
def test_what_is_asked_of_an_item_must_be_there(options, complaint):
    with pytest.raises(ValueError, match=f"^STAC item sentinel-2-c1-l2a/S2A_T32TNS_20230705T105031_L2A: .*{complaint}"):
        source_of(earth_search_item(), **options)


def test_bands_that_no_asset_holds_and_items_without_bands_are_named():
    item = earth_search_item()
    del item["assets"]["nir"], item["assets"]["nir-jp2"]
    with pytest.raises(ValueError, match=r"S2A_T32TNS_20230705T105031_L2A: holds no B08 .* it has B02, B03, B04"):
        source_of(item, bands=["B08", "B04"])
    item = landsat_item()
    item["assets"] = {key: item["assets"][key] for key in ("lwir11", "qa_pixel", "rendered_preview")}
    with pytest.raises(ValueError, match=r"no asset is known to be an optical band .*lwir11, qa_pixel"):
        source_of(item)
    item["assets"] = {}
    with pytest.raises(ValueError, match=r"no asset is known to be an optical band"):
        source_of(item)


def test_a_relative_reference_of_an_item_that_lies_nowhere_is_refused():
    item = pystac.Item.from_dict(earth_search_item())
    with pytest.raises(ValueError, match=r"asset '.*' has the relative reference"):
        source_of_item(item)
