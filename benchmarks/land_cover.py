"""The figure of the README: images of HLS that were not learnt from, ESA WorldCover, and what a fine-tuned model says.

    python benchmarks/land_cover.py out/labelled/hls-worldcover-0/full --data ../shared/data -o land_cover.png

The run is one that `benchmarks/labelled.py` has left.
"""

import argparse
from pathlib import Path

import numpy as np
import rasterio
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from a2mae_hub import read_image_set
from a2mae_hub.prediction import load_task_checkpoint, predict_map

BANDS = ["coastal", "blue", "green", "red", "nir", "swir16", "swir22"]
NUMBERS = ("156", "067", "237", "296")
# Codes, names (shortened) and colours of ESA WorldCover (Product User Manual); 95, mangroves, is not here.
CLASSES = {
    10: ("trees", "#006400"),
    20: ("shrubs", "#ffbb22"),
    30: ("grass", "#ffff4c"),
    40: ("crops", "#f096ff"),
    50: ("built-up", "#fa0000"),
    60: ("bare", "#b4b4b4"),
    70: ("snow", "#f0f0f0"),
    80: ("water", "#0064c8"),
    90: ("wetland", "#0096a0"),
    100: ("moss", "#fae6a0"),
}


def main() -> None:
    """Draw an image, its labels and the prediction above each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of the fine-tuned model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", "-o", type=Path, required=True)
    arguments = parser.parse_args()
    checkpoint, folder = load_task_checkpoint(arguments.run), arguments.data / "hls_water"
    names, colours = zip(*CLASSES.values(), strict=True)
    shown = {"cmap": ListedColormap(colours), "norm": BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names))}
    figure = Figure(figsize=(2.1 * len(NUMBERS) + 0.2, 6.9), dpi=120)
    axes = figure.subplots(3, len(NUMBERS))
    found: set[int] = set()
    for column, number in zip(axes.T, NUMBERS, strict=True):
        image_set = read_image_set([folder / f"image_{number}.tif"], sensor="hls", bands=BANDS, scale=1e-4, offset=0.0)
        with rasterio.open(folder / f"label_{number}.tif") as dataset:
            stored = dataset.read(2)
        labels = np.ma.masked_all(stored.shape, np.int64)
        for place, code in enumerate(CLASSES):
            labels[stored == code] = place
        predicted = predict_map(checkpoint, image_set)
        found |= set(labels.compressed().tolist()) | set(predicted.ravel().tolist())
        print(f"image {number}: {(labels == predicted).mean():.3f} of the pixels alike")
        colour = image_set[0].pixels[[BANDS.index(name) for name in ("red", "green", "blue")]] * 1e-4
        low, high = np.percentile(colour, [2, 98])
        column[0].imshow(np.clip((colour - low) / (high - low), 0, 1).transpose(1, 2, 0) ** 0.8)
        for axis, values in zip(column[1:], (labels, predicted), strict=True):
            axis.imshow(values, interpolation="nearest", **shown)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, title in zip(axes[:, 0], ("image", "WorldCover", "prediction"), strict=True):
        axis.set_ylabel(title, fontsize=11)
    handles = [Patch(color=colours[place], label=names[place]) for place in sorted(found)]
    figure.legend(handles=handles, loc="lower center", ncols=5, frameon=False, fontsize=9)
    figure.subplots_adjust(left=0.05, right=0.995, top=0.995, bottom=0.085, wspace=0.03, hspace=0.03)
    figure.savefig(arguments.output)


if __name__ == "__main__":
    main()
