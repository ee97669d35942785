"""STAC documents are read from files, folders, catalogs and servers; their numbers, times and terms come along."""

import json
import subprocess
import sys
from datetime import datetime, timezone

import numpy as np
import pystac
import pytest

from a2mae_hub import write_raster
from a2mae_hub.stssd.stac import read_items, source_of_item, sources_of_items

from .items import (
    COG,
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
