"""A scene on the disk and a small checkpoint, for tests of what is done with scenes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from a2mae_hub import A2MAEConfig, A2MAEForPreTraining, A2MAEImageProcessor, write_raster
from a2mae_hub.inference import Checkpoint, load_checkpoint

BANDS = ("B02", "B03", "B04", "B08")
UTM, CORNER = "EPSG:32631", (500_000.0, 4_690_000.0)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint of a few thousand parameters, with patches of 4 pixels."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("small")
    A2MAEForPreTraining(A2MAEConfig(**sizes, **decoder, patch_size=4)).save_pretrained(folder)
    A2MAEImageProcessor(patch_size=4).save_pretrained(folder)
    return load_checkpoint(folder)


@pytest.fixture
def scene(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a scene of made-up reflectance of Sentinel-2, and returns its path."""

    def write(
        name: str = "scene.tif",
        *,
        rows: int = 150,
        columns: int = 190,
        seed: int = 0,
        metres: float = 10.0,
        east: float = 0.0,
        south: float = 0.0,
        crs: str | None = UTM,
        empty: tuple[slice, slice] | None = None,
        day: str = "2023-07-05",
    ) -> Path:
        pixels = np.random.default_rng(seed).integers(500, 4000, (len(BANDS), rows, columns), dtype=np.uint16)
        if empty is not None:
            pixels[(slice(None), *empty)] = 0
        x, y = CORNER
        write_raster(
            tmp_path / name,
            pixels,
            crs=crs,
            transform=(metres, 0.0, x + east, 0.0, -metres, y - south) if crs else None,
            descriptions=list(BANDS),
            nodata=0,
            tags={"sensor": "sentinel-2-l2a", "acquired": day},
        )
        return tmp_path / name

    return write
