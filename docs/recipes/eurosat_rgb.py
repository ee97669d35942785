"""Make shards of the 64 × 64 pictures of EuroSAT, whose pixels are JPEG bytes in a Parquet and not rasters.

    python docs/recipes/eurosat_rgb.py ../shared/data/eurosat_rgb/train.parquet out/eurosat-rgb

Any other source of images becomes shards the same way: arrays in, image sets out. Labels are not written. Every sixth
picture of a class goes to the split "validation", which `docs/recipes/open_evaluation.yaml` tests with.
"""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from a2mae_hub.stssd.features import heterogeneity
from a2mae_hub.stssd.schema import StoredImage, StoredSet
from a2mae_hub.stssd.shards import ShardWriter

SIXTH = 6
# EuroSAT stretches reflectance 0 to 0.275 of Sentinel-2 level 1C to 0 to 255, as its 13-band version shows: the means
# of the two agree within 1 % (B04: 946.8 of 10 000 and 87.8 of 255).
SCALE = 0.275 / 255


def main(source: Path, folder: Path) -> None:
    """Write one shard."""
    table = pq.read_table(source)
    folder.mkdir(parents=True, exist_ok=True)
    seen: Counter[str] = Counter()
    with ShardWriter(folder / "eurosat-rgb-00000.parquet") as shard:
        for row in table.to_pylist():
            split = "validation" if seen[row["label"]] % SIXTH == SIXTH - 1 else "train"
            seen[row["label"]] += 1
            picture = np.moveaxis(np.asarray(Image.open(io.BytesIO(row["image"]))), -1, 0)
            image = StoredImage(
                pixels=picture,
                bands=["B04", "B03", "B02"],
                sensor="sentinel-2-l1c",
                gsd=10.0,
                scale=SCALE,
                offset=0.0,
                source=row["name"],
                licence="MIT; contains modified Copernicus Sentinel data",
            )
            image_set = StoredSet(images=[image], id=f"eurosat-rgb/{row['name']}", kind="eurosat", split=split)
            image_set.heterogeneity = heterogeneity(image_set)
            shard.write(image_set)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
