"""A tiny checkpoint, and small files of every kind that a recipe names."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from a2mae_hub import A2MAEConfig, A2MAEForPreTraining, A2MAEImageProcessor, Image, write_raster
from a2mae_hub.inference import Checkpoint
from a2mae_hub.stssd.schema import SCHEMA, StoredSet, to_row

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}
GREY = {"forest": 40, "field": 90, "town": 180}


@pytest.fixture(scope="session")
def tiny() -> Checkpoint:
    """A checkpoint of random weights, other ones than those of the protocol's untrained model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = A2MAEForPreTraining(A2MAEConfig.nano(**SIZES)).eval()
    return Checkpoint("tiny", model, A2MAEImageProcessor(patch_size=8), True)


@pytest.fixture
def make_image() -> Callable[..., Image]:
    """A function that makes an image of four bands of Sentinel-2, reflectance about 0.1."""

    def make(height: int = 16, width: int = 16, seed: int = 0, **fields) -> Image:
        pixels = np.random.default_rng(seed).integers(500, 2_000, (4, height, width)).astype(np.uint16)
        known = {"bands": ["B02", "B03", "B04", "B08"], "sensor": "sentinel-2-l2a", "gsd": 10.0}
        return Image(**{"pixels": pixels, **known, **fields})

    return make


@pytest.fixture
def make_set(make_image: Callable[..., Image]) -> Callable[..., StoredSet]:
    """A function that makes a set of images of one sensor, `days` after 2020-01-01."""

    def make(*days: int | None, seed: int = 0, **fields) -> StoredSet:
        first = datetime(2020, 1, 1)
        images = [
            make_image(32, 32, 100 * seed + number, acquired=None if day is None else first + timedelta(day), **fields)
            for number, day in enumerate(days)
        ]
        return StoredSet(images=images, id=f"set-{seed}", seed=seed)

    return make


@pytest.fixture
def collection(tmp_path: Path, make_set: Callable[..., StoredSet]) -> Path:
    """A folder with a file of every source, and `recipe.yaml` over them."""
    rng = np.random.default_rng(0)

    def picture(grey: int) -> np.ndarray:
        return np.clip(rng.normal(grey, 10, (16, 16, 3)), 1, 255).astype(np.uint8)

    rows = []
    for number in range(8):
        for label, grey in GREY.items():
            buffer = io.BytesIO()
            PIL.Image.fromarray(picture(grey)).save(buffer, "PNG")
            rows.append({"image": buffer.getvalue(), "label": label, "name": f"{label}_{number}"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pictures.parquet")

    for label, grey in GREY.items():
        (tmp_path / "classes" / label).mkdir(parents=True)
        for number in range(5):
            pixels = picture(grey).transpose(2, 0, 1).astype(np.uint16) * 20
            write_raster(tmp_path / "classes" / label / f"{number}.tif", pixels)

    (tmp_path / "water").mkdir()
    for number in range(6):
        label = np.zeros((2, 32, 32), np.uint8)
        label[0, :, 16 if number % 2 else 8 :] = 1
        label[1] = label[0] * 10 + 10
        label[1, 0] = 0
        pixels = np.where(label[0] == 1, 300, 1_500) + rng.integers(0, 200, (2, 32, 32))
        write_raster(tmp_path / "water" / f"image_{number}.tif", pixels.astype(np.int16))
        write_raster(tmp_path / "water" / f"label_{number}.tif", label)

    (tmp_path / "shards").mkdir()
    sets = [to_row(make_set(0, 30, 60, seed=number)) for number in range(3)]
    pq.write_table(pa.Table.from_pylist(sets, schema=SCHEMA), tmp_path / "shards" / "sets-00000.parquet")

    (tmp_path / "recipe.yaml").write_text(
        """
tasks:
- {name: pictures, kind: classification, parquet: pictures.parquet, sensor: sentinel-2-l1c,
   bands: [B04, B03, B02], scale: 1e-3, test_every: 4}
- {name: few, kind: few-shot, folders: classes/*, sensor: sentinel-2-l2a, bands: [B04, B03, B02]}
- {name: water, kind: segmentation, images: water/*.tif, labels: [image_, label_], sensor: hls,
   bands: [green, nir], test_names: '[45]\\.tif$'}
- {name: cover, kind: segmentation, images: water/image_*.tif, labels: [image_, label_], label_band: 2, ignore: [0],
   sensor: hls, bands: [green, nir], test_every: 3}
- {name: sets, kind: reconstruction, shards: shards}
"""
    )
    return tmp_path
