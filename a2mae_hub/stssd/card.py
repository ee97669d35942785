"""The card of a data set on the Hub: what it holds, where it comes from, under which terms, and how to read it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from huggingface_hub import DatasetCardData

from a2mae_hub.licences import hub_licence
from a2mae_hub.modeling.sensors_a2mae import get_sensor
from a2mae_hub.whole_files import write_atomically

from .figures import plot_histograms, plot_inspection
from .schema import FORMAT_VERSION, IMAGE_TYPE, PROVENANCES, SCHEMA
from .statistics import Statistics, inspect

MARK = "<!-- Written by a2mae-hub (`a2mae stssd card`), which replaces this file when it is asked to again. -->"
_TAGS = ["geospatial", "remote-sensing", "earth-observation", "satellite", "geoparquet", "stssd", "a2mae"]
_MOST_ROWS = 20  # of a table whose length the data set decides

_COLUMNS = {
    "id": "unique in the data set",
    "kind": 'kind of set: "grid", "city", "gf1", "gf2", or another',
    "split": '"train", "validation", or another',
    "longitude": "degrees east of the footprint's centre; null where the place is unknown",
    "latitude": "degrees north of it",
    "geometry": "footprint in longitude and latitude (OGC:CRS84), as WKB",
    "bbox": "box around the footprint, for queries that skip row groups",
    "heterogeneity": "how much the ground varies: the standard deviation over the pixels of an image in standardised "
    "values, averaged over bands and images",
    "sensors": "sensors of the images, each once",
    "first_acquired": "earliest acquisition time",
    "last_acquired": "latest acquisition time",
    "images": "the images, one after the other:",
}
_IMAGE_FIELDS = {
    "sensor": "name in the sensor registry of a2mae-hub",
    "bands": "band names, in the order of the pixels",
    "acquired": "acquisition time; null where unknown",
    "crs": "coordinate reference system; null where unknown",
    "transform": "(a, b, c, d, e, f): x = a·column + b·row + c, y = d·column + e·row + f",
    "gsd": "metres per pixel, where there is no georeference",
    "shape": "bands, rows, columns",
    "dtype": "type of the stored numbers",
    "scale": "factor from stored number to physical value, one or one per band; null: the sensor's",
    "offset": "offset likewise: physical value = stored × scale + offset",
    "nodata": 'stored number that means "no data"',
    "cloud_share": "share of the image under cloud (and shadow, by quality layers), 0 to 1; null where unknown",
    "provenance": '"observed", or "derived" from an observed image of another sensor',
    "source": "the scene that the image comes from",
    "licence": "terms of use",
    "valid": "where pixels are real, as `np.packbits` of (rows, columns) or of the shape; null: everywhere",
    "pixels": "stored numbers in the order of the shape, little-endian",
}


def write_card(
    path: str | os.PathLike[str], *, name: str | None = None, licence: str | None = None, repo_id: str | None = None
) -> Path:
    """Write the card of a data set, `README.md`, and the figures that it shows, into the folder of its shards.

    Args:
        path: The folder.
        name: Name of the data set; None takes that of the repository, else of the folder.
        licence: Licence of the data set as a whole, an SPDX identifier; None takes that of its images.
        repo_id: Id that the data set has or will have on the Hub ("org/name"), for the examples; None writes them for
            the folder.

    Returns:
        The card's path.

    Raises:
        FileNotFoundError: If there is no such folder, or no shard in it.
        ValueError: If there is a README.md that was not written here, `repo_id` is no id, or a shard is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; a card is written into the folder of the shards.")
    target = folder / "README.md"
    if target.exists() and MARK not in target.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{target}: is there already and was not written by a2mae-hub; move it away to get a card.")
    _check_repo_id(repo_id)
    statistics = inspect(folder)
    plot_inspection(statistics, folder / "inspect.png")
    plot_histograms(statistics, folder / "histograms.png")
    write_atomically(target, dataset_card(statistics, name=name, licence=licence, repo_id=repo_id, figures=True))
    return target


def dataset_card(
    statistics: Statistics,
    *,
    name: str | None = None,
    licence: str | None = None,
    repo_id: str | None = None,
    figures: bool = False,
) -> str:
    """Return the card of a data set: metadata in YAML for the Hub, and text in Markdown.

    Args:
        statistics: What the data set holds.
        name: As in `write_card`.
        licence: As in `write_card`.
        repo_id: As in `write_card`.
        figures: Whether `inspect.png` and `histograms.png` lie beside the card.

    Raises:
        ValueError: If `repo_id` is no id.
    """
    _check_repo_id(repo_id)
    title = name or (repo_id.split("/")[1] if repo_id else statistics.name)
    sections = [
        _front_matter(statistics, title, licence),
        MARK,
        f"# {title}",
        _summary(statistics),
        "![Where the sets lie, when and by which sensors their images were taken](inspect.png)" if figures else "",
        "## What is in it",
        _contents(statistics),
        "## How to read it",
        _examples(statistics, repo_id),
        "## Columns",
        _columns(statistics),
        "## Values",
        "Valid values of all images, in the unit of the sensor.",
        _values(statistics),
        "![Histograms of every band](histograms.png)" if figures else "",
        "## Where it comes from",
        _provenance(statistics),
        "## Licences",
        _licences(statistics, licence),
        "## Limits",
        _limits(statistics),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _check_repo_id(repo_id: str | None) -> None:
    """Raise ValueError unless an id is one of the Hub's."""
    if repo_id is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"repo_id is {repo_id!r}: an id on the Hub is written owner/name.")


# ------------------------------------------------------------------------------------------------------------- sections


def _front_matter(statistics: Statistics, title: str, licence: str | None) -> str:
    """Return the metadata that the Hub reads."""
    data = DatasetCardData(
        pretty_name=title,
        task_categories=["image-feature-extraction"],
        tags=_TAGS,
        size_categories=[_size_category(len(statistics))],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": _pattern(statistics)}]}],
        **_hub_licence(statistics, licence),
    )
    return f"---\n{data.to_yaml()}\n---"


def _hub_licence(statistics: Statistics, licence: str | None) -> dict[str, Any]:
    """Return what the Hub wants to know of the licence."""
    names = [licence] if licence else sorted(statistics.licences)
    if len(names) > 1:
        return {"license": "other", "license_name": "several", "license_link": "README.md"}
    return hub_licence(None if names == ["unknown"] else names[0])


def _size_category(count: int) -> str:
    """Return the Hub's category of a number of rows."""
    limits = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
    power = max(0, int(math.log10(max(count, 1)) + 1e-9) - 2)
    return f"n<{limits[0]}" if not power else f"{limits[power - 1]}<n<{limits[power]}"


def _pattern(statistics: Statistics) -> str:
    """Return the pattern that finds the shards in the data set's folder."""
    return "**/*.parquet" if any("/" in shard for shard in statistics.shards) else "*.parquet"


def _summary(statistics: Statistics) -> str:
    """Say what the data set is."""
    sensors = _listed(list(statistics.values))
    first, last = statistics.first_acquired, statistics.last_acquired
    when = "" if first is None or last is None else f", taken from {first:%Y-%m-%d} to {last:%Y-%m-%d}"
    return (
        f"{len(statistics):,} sets of satellite images, {statistics.images.total():,} images of {sensors}{when}. Every "
        "set shows one place on the ground, by several sensors or at several dates. It is laid out as STSSD, the "
        "pre-training data of [A²-MAE](https://arxiv.org/abs/2406.08079), whose own images were not published; these "
        "are others. Shards are [GeoParquet](https://geoparquet.org) 1.1, a row a set, pixels as plain bytes: one file "
        "streams through `datasets`, opens in QGIS and answers DuckDB."
    )


def _contents(statistics: Statistics) -> str:
    """Return the tables of counts."""
    splits = sorted(set(statistics.splits))
    kinds = sorted(set(statistics.kinds))
    sets = list(zip(statistics.kinds, statistics.splits, strict=True))
    rows = [
        [kind, *(f"{sets.count((kind, s)):,}" for s in splits), f"{statistics.kinds.count(kind):,}"] for kind in kinds
    ]
    if len(kinds) > 1:
        rows.append(["all", *(f"{statistics.splits.count(split):,}" for split in splits), f"{len(statistics):,}"])
    sensors = []
    for sensor in statistics.values:
        metres = ", ".join(f"{m:g}" for name, m in sorted(statistics.resolutions) if name == sensor)
        bands = ", ".join(name for name in statistics.values[sensor])
        counts = [f"{statistics.images[sensor, p]:,}" for p in PROVENANCES]
        sensors.append([sensor, *counts, metres, bands])
    numbers = sorted(statistics.images_per_set)
    each = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return "\n\n".join(
        [
            _table(["kind", *(f"sets, {split}" for split in splits), "sets"], rows),
            f"A set has {each} images. Rows of all splits are mixed in the shards; `split` tells them apart.",
            _table(["sensor", "images observed", "images derived", "metres per pixel", "bands"], sensors),
        ]
    )


def _examples(statistics: Statistics, repo_id: str | None) -> str:
    """Return the pieces of code that read the data set."""
    address = repo_id or "."
    prefix = f"hf://datasets/{repo_id}/" if repo_id else ""
    arguments = f'"{repo_id}"' if repo_id else f'"parquet", data_files="{_pattern(statistics)}"'
    # As JSON, so that no name can end a text of the code.
    split = json.dumps("train" if "train" in statistics.splits else statistics.splits[0])
    pieces = [
        "" if repo_id else "Run these in the folder of the data set.",
        "With [a2mae-hub](https://pypi.org/project/a2mae-hub/), as image sets and as batches of the model:",
        f"""```python
from a2mae_hub import A2MAEImageProcessor
from a2mae_hub.stssd import load
from a2mae_hub.stssd.schema import from_row

processor = A2MAEImageProcessor(patch_size=16)
for row in load("{address}", split={split}).take(2):
    image_set = from_row(row)
    batch = processor(image_set, return_tensors="pt")
    print(image_set.id, list(image_set), batch["pixel_values"].shape)
```""",
        "With [datasets](https://huggingface.co/docs/datasets) and numpy alone. To `datasets`, all rows are one split:",
        f"""```python
import datasets
import numpy as np

rows = datasets.load_dataset({arguments}, split="train", streaming=True)
row = next(iter(rows.filter(lambda row: row["split"] == {split})))
for image in row["images"]:
    pixels = np.frombuffer(image["pixels"], np.dtype(image["dtype"]).newbyteorder("<")).reshape(image["shape"])
    print(image["sensor"], image["acquired"], image["bands"], pixels.shape)
```""",
    ]
    known = statistics.places[np.isfinite(statistics.places).all(axis=1)]
    if len(known):
        west, south = (math.floor(value) for value in known[len(known) // 2])
        pieces += [
            "By place, with [DuckDB](https://duckdb.org), which reads no pixels for it:",
            f'''```python
import duckdb

found = duckdb.sql("""
    SELECT id, kind, longitude, latitude, heterogeneity
    FROM read_parquet('{prefix}{_pattern(statistics)}')
    WHERE bbox.xmax >= {west} AND bbox.xmin <= {west + 1} AND bbox.ymax >= {south} AND bbox.ymin <= {south + 1}
""")
print(found)
```''',
            "As a map, with [geopandas](https://geopandas.org):",
            f"""```python
import geopandas

columns = ["id", "kind", "split", "heterogeneity", "geometry"]
frame = geopandas.read_parquet({json.dumps(prefix + statistics.shards[0])}, columns=columns)
print(frame.total_bounds)
```""",
        ]
    return "\n\n".join(piece for piece in pieces if piece)


def _columns(statistics: Statistics) -> str:
    """Return the table of columns, as the layout has them and then the data set's own."""
    rows = []
    for column in SCHEMA:
        rows.append([f"`{column.name}`", _type(column.type), _COLUMNS[column.name]])
        if column.name == "images":
            rows += [[f"`images[].{each.name}`", _type(each.type), _IMAGE_FIELDS[each.name]] for each in IMAGE_TYPE]
    rows += [[f"`{name}`", kind, "the data set's own"] for name, kind in statistics.columns.items()]
    return f"Version {FORMAT_VERSION} of the layout.\n\n" + _table(["column", "type", "meaning"], rows)


def _type(kind: pa.DataType) -> str:
    """Return a type as text."""
    if pa.types.is_list(kind):
        return f"list of {_type(kind.value_type)}"
    if pa.types.is_struct(kind):
        is_image = kind.equals(IMAGE_TYPE)
        return "struct" if is_image else f"struct of {', '.join(each.name for each in kind)}"
    return (
        "timestamp (UTC)"
        if pa.types.is_timestamp(kind)
        else {"float": "float32", "double": "float64"}.get(str(kind), str(kind))
    )


def _values(statistics: Statistics) -> str:
    """Return the table of means and standard deviations."""
    rows = []
    for sensor, bands in statistics.values.items():
        for band, of in bands.items():
            facts = get_sensor(sensor).find(band)
            if of.count:
                numbers = [f"{number:.4g}" for number in (of.mean, of.std, of.minimum, of.maximum)]
                rows.append([sensor, band, facts.common_name, f"{facts.wavelength:g}", *numbers])
    return _table(["sensor", "band", "common name", "nm", "mean", "std", "min", "max"], rows)


def _provenance(statistics: Statistics) -> str:
    """Return the table of sources, and what derived images are."""
    sources = sorted({source for source, _ in statistics.sources}, key=lambda s: (-_of_source(statistics, s), s))
    rows = [[source, *(f"{statistics.sources[source, p]:,}" for p in PROVENANCES)] for source in sources[:_MOST_ROWS]]
    if len(sources) > _MOST_ROWS:
        rest = sources[_MOST_ROWS:]
        counts = [f"{sum(statistics.sources[s, p] for s in rest):,}" for p in PROVENANCES]
        rows.append([f"{len(rest):,} more", *counts])
    text = "Images by the first part of `images[].source`, which names the scene of every image.\n\n"
    text += _table(["source", "images observed", "images derived"], rows)
    if any(statistics.images[sensor, "derived"] for sensor, _ in list(statistics.images)):
        text += (
            "\n\nA derived image is what another sensor would have taken of the same ground at the same moment, "
            "computed from an observed image (`a2mae_hub.stssd.derive`): every band is a weighted sum of observed "
            "bands, brought to the ground resolution of the other sensor behind its point spread, with its noise, and "
            "stored in its numbers. Its source is that of the observed image."
        )
    return text


def _licences(statistics: Statistics, licence: str | None) -> str:
    """Return the table of licences."""
    rows = sorted(statistics.licences.items(), key=lambda item: (-item[1], item[0]))
    text = f"The data set as a whole: {licence}.\n\n" if licence else ""
    text += "Terms of use of every image are in `images[].licence`.\n\n"
    return text + _table(["licence", "images"], [[name, f"{count:,}"] for name, count in rows[:_MOST_ROWS]])


def _limits(statistics: Statistics) -> str:
    """List what a user has to know."""
    images = statistics.images.total()
    unknown_places = int((~np.isfinite(statistics.places).all(axis=1)).sum())
    undated = sum(count for (_, month), count in statistics.months.items() if month == "unknown")
    derived = sum(count for (_, provenance), count in statistics.images.items() if provenance == "derived")
    lines = ["- Places are where scenes were at hand, no sample of the land at large."]
    if derived:
        lines.append(
            f"- {derived:,} of {images:,} images are derived. They hold no detail and no wavelength that the observed "
            "sensor did not see, and no other atmosphere, moment or direction of view. Leave them out of an evaluation "
            "of how well a model carries over between sensors."
        )
    if unknown_places:
        lines.append(f"- The place of {unknown_places:,} of {len(statistics):,} sets is not known.")
    if undated:
        lines.append(f"- The acquisition time of {undated:,} of {images:,} images is not known.")
    if statistics.clouds[None]:
        lines.append(f"- Whether there are clouds is not known of {statistics.clouds[None]:,} of {images:,} images.")
    if statistics.licences["unknown"]:
        lines.append(f"- The terms of use of {statistics.licences['unknown']:,} of {images:,} images are not known.")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------- parts


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [
        list(head),
        ["---"] * len(head),
        *([" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _of_source(statistics: Statistics, source: str) -> int:
    """Return the number of images of a source."""
    return sum(statistics.sources[source, provenance] for provenance in PROVENANCES)


def _listed(names: Sequence[str]) -> str:
    """Return names as text: "a, b and c"."""
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
