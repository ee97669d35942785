"""STAC items of several providers become sources of scenes that open with the right bands and numbers."""

import math

import numpy as np
import pytest

from a2mae_hub import write_raster
from a2mae_hub.stssd.stac import sources_of_items

from .items import (
    COG,
    EARTH_SEARCH_BANDS,
    LANDSAT,
    MINUTE,
    earth_search_item,
    item_dict,
    landsat_item,
    naip_item,
    opened,
    save,
    simulated,
    source_of,
    write_bands,
)

# ------------------------------------------------------------------------------------------ Sentinel-2, Earth Search v1


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
