"""The demonstration behind `make demo`: from GeoTIFFs to features and reconstructions, with what it did in words."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from . import inference, plotting
from .images import ImageSet
from .raster import read_image_set


def run_demo(out: Path, image_set: ImageSet | None = None, checkpoint: str | None = None, seed: int = 1) -> None:
    """Encode and reconstruct an image set, draw both, and say so.

    Args:
        out: Folder to write to; made if absent.
        image_set: Images of one place. None simulates a place, and writes and reads the GeoTIFFs of two sensors on two
            dates.
        checkpoint: As `inference.load_checkpoint` takes it.
        seed: Of the simulated place and of the mask.

    Raises:
        ValueError: If the set is not what it says it is.
        ImportError: If matplotlib is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    if image_set is None:
        from .simulate import write_scenes

        paths = write_scenes(out / "scenes", seed)
        typer.echo(f"Simulated a place; its {len(paths)} GeoTIFFs and its true land cover lie in {out / 'scenes'}.")
        image_set = read_image_set(paths, name=f"simulated place {seed}")
    for index, image in enumerate(image_set):
        typer.echo(f"  {'anchor' if index == image_set.anchor else 'image '} {image}")

    loaded = inference.load_checkpoint(checkpoint)
    typer.echo(f"Model: {loaded.name}, {sum(p.numel() for p in loaded.model.parameters()) / 1e6:.2f} M parameters.")

    start = time.perf_counter()
    features = inference.embed(loaded, image_set)
    channels, rows, columns = features.maps.shape
    typer.echo(
        f"Encoded the set in {time.perf_counter() - start:.2f} s: {channels} features on {rows} × {columns} patches of"
        " the anchor, all images fused."
    )
    for name in ("embeddings.npz", "embeddings.tif"):
        inference.save_features(features, image_set, out / name)
    anchor = image_set[image_set.anchor]
    background = plotting.composite(plotting.physical_pixels(anchor), anchor.bands, anchor.sensor)
    plotting.plot_embedding(features.maps, out / "embeddings.png", background=background, title=loaded.name)

    images, masks = inference.reconstruct(loaded, image_set, seed=seed)
    plotting.plot_reconstruction(image_set, images, masks, out / "reconstruction.png", title=loaded.name)
    hidden = sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)
    strategy = loaded.model.config.masking_strategy
    typer.echo(f"Hid {hidden:.0%} of the pixels (masking {strategy!r}) and predicted them from the rest.")
    typer.echo("Wrote " + ", ".join(str(out / name) for name in ("embeddings.npz", "embeddings.tif")) + ",")
    typer.echo("      " + ", ".join(str(out / name) for name in ("embeddings.png", "reconstruction.png")) + ".")
