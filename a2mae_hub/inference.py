"""Features and reconstructions of one image set that fits into memory, in one pass."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import cached_file

from .checkpoints import DEFAULT, embedded
from .checkpoints import checkpoint as embedded_checkpoint
from .images import Image, ImageSet
from .modeling.batch_a2mae import complete_batch
from .modeling.configuration_a2mae import A2MAEConfig
from .modeling.grids_a2mae import fuse_on_anchor_grid
from .modeling.image_processing_a2mae import A2MAEImageProcessor
from .modeling.modeling_a2mae import A2MAEForPreTraining, A2MAEModel
from .raster import write_raster
from .whole_files import whole_file

# Attention takes minutes beyond this on a few cores, and grows with the square.
MAX_TOKENS = 32_768
FEATURE_SUFFIXES = (".npz", ".tif", ".tiff")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Checkpoint:
    """A model with the processor it was trained with.

    Attributes:
        name: What it was loaded from.
        model: The masked autoencoder, encoder included, in evaluation mode.
        processor: Turns image sets into its input.
        has_decoder: False for a checkpoint of the encoder alone, which encodes and cannot reconstruct.
    """

    name: str
    model: A2MAEForPreTraining
    processor: A2MAEImageProcessor
    has_decoder: bool


@dataclass(frozen=True)
class Features:
    """What the encoder says of one image set.

    Attributes:
        pooled: (D,) float32, one vector for the set.
        maps: (hidden_size, rows, columns) float32 on the patch grid of the anchor, all images fused; NaN where no image
            has data.
        crs: Coordinate reference system of the map, None where the anchor has none.
        transform: The six numbers of the affine map from (column, row) of the patch grid to `crs`; None likewise.
    """

    pooled: np.ndarray
    maps: np.ndarray
    crs: str | None
    transform: tuple[float, ...] | None


def load_checkpoint(name: str | os.PathLike[str] | None = None, *, size: int | None = None) -> Checkpoint:
    """Load a checkpoint with its processor.

    Args:
        name: Folder, name of a checkpoint that comes with the package (`a2mae_hub.checkpoints`), or id on the Hugging
            Face Hub. None takes `a2mae-nano` of the package.
        size: Rows and columns to which the processor resamples every image; None leaves that to the checkpoint.

    Returns:
        The checkpoint, ready for inference.

    Raises:
        FileNotFoundError: If there is no such folder or id, or the folder lacks its configuration, its weights or the
            processor's configuration.
        ValueError: If a file of the checkpoint is damaged, it is of another kind of model, or its weights do not fill
            this one.
    """
    settings: dict[str, Any] = {} if size is None else {"size": size}
    called = DEFAULT if name is None else os.fspath(name)
    name = str(embedded_checkpoint(called)) if called in embedded() and not os.path.isdir(called) else called
    is_folder = os.path.isdir(name)
    if is_folder:
        _check_folder(Path(name))
    elif name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"{name}: no such folder; name a checkpoint folder, one of the package ({', '.join(embedded())}), or an id"
            " of the Hugging Face Hub (owner/name)."
        )
    try:
        kind = A2MAEConfig.get_config_dict(name)[0].get("model_type")
        if kind != A2MAEConfig.model_type:
            raise ValueError(f"{name}: a checkpoint of {kind!r}, not of {A2MAEConfig.model_type!r}; convert it first.")
        with quiet_loading():
            model, report = A2MAEForPreTraining.from_pretrained(
                name, output_loading_info=True, ignore_mismatched_sizes=True
            )
        processor = A2MAEImageProcessor.from_pretrained(name, **settings)
    except StrictDataclassError as error:
        raise ValueError(
            f"{name}: config.json describes no model ({_one_line(error.__cause__ or error)}); correct it there."
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"{name}: the weights cannot be read ({_one_line(error)}); the file is damaged or cut short: save or"
            " download the checkpoint again."
        ) from error
    except OSError as error:
        # transformers gives one exception for a file that is no JSON and for an id that it cannot fetch.
        if is_folder:
            raise ValueError(f"{_one_line(error)}; save the checkpoint again.") from error
        raise FileNotFoundError(
            f"{name}: no such folder, and no checkpoint of this id could be fetched from the Hugging Face Hub; check"
            " the name and the connection, and log in with `hf auth login` if it is private."
        ) from error
    _check_weights(name, report)
    if processor.patch_size != model.config.patch_size:
        raise ValueError(
            f"{name}: preprocessor_config.json cuts patches of {processor.patch_size} pixels, but config.json wants"
            f" {model.config.patch_size}; make patch_size the same in both."
        )
    has_decoder = not any(key.startswith("decoder.") for key in report["missing_keys"])
    return Checkpoint(called, model.eval(), processor, has_decoder)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers from listing weights that a checkpoint of another head lacks; we say what matters of them."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def read_beside(name: str | os.PathLike[str], file: str) -> dict[str, Any] | None:
    """Return what a file of JSON beside the weights of a checkpoint holds, None where there is none.

    Args:
        name: Folder, name of a checkpoint of the package, or id on the Hugging Face Hub.
        file: Its name.

    Raises:
        ValueError: If it is damaged; names it.
    """
    called = os.fspath(name)
    folder = embedded_checkpoint(called) if called in embedded() and not os.path.isdir(called) else called
    path = cached_file(
        folder, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    try:
        return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({_one_line(error)}); save or download the checkpoint again.") from error


def _check_weights(name: str, report: dict[str, Any]) -> None:
    """Raise ValueError where the weights that were found do not fill the model; the decoder may be left out."""
    misfits = sorted(report["mismatched_keys"])
    if misfits:
        key, found, wanted = misfits[0]
        raise ValueError(
            f"{name}: {len(misfits)} weights are of another shape than config.json says, the first {key}"
            f" ({tuple(found)}, not {tuple(wanted)}); take both files from one checkpoint."
        )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(("decoder.", "projector.")))
    if missing:
        raise ValueError(
            f"{name}: {len(missing)} weights of the encoder are missing, the first {missing[0]}; the file is"
            " incomplete: save or download the checkpoint again."
        )


def _check_folder(folder: Path) -> None:
    """Say which file of a checkpoint is missing."""
    for wanted in (("config.json",), _WEIGHTS, ("preprocessor_config.json",)):
        if not any((folder / file).is_file() for file in wanted):
            raise FileNotFoundError(
                f"{folder}: no {wanted[0]} in this folder; name a folder written by save_pretrained of the model and of"
                " the processor."
            )


def prepare(checkpoint: Checkpoint, image_set: ImageSet) -> dict[str, torch.Tensor]:
    """Turn one image set into a batch of one.

    Raises:
        ValueError: If the set is not what it says it is, or too large for one pass.
    """
    patch_size, size = checkpoint.model.config.patch_size, checkpoint.processor.size
    num_tokens = sum(
        math.prod(-(-pixels // patch_size) for pixels in (size or image.pixels.shape[1:])) for image in image_set
    )
    if num_tokens > MAX_TOKENS:
        raise ValueError(
            f"The images hold {num_tokens} patches of {patch_size} × {patch_size} pixels, more than the {MAX_TOKENS} of"
            " one pass; read a part of them with bounds, or fewer dates."
        )
    batch = checkpoint.processor(image_set, return_tensors="pt")
    return {key: value.to(checkpoint.model.device) for key, value in batch.items()}


def weights_hash(model: torch.nn.Module) -> str:
    """Return the SHA-256 of the weights of a model with their names, by which unfinished work knows it again."""
    digest = hashlib.sha256()
    for name, values in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.inference_mode()
def embed(checkpoint: Checkpoint, image_set: ImageSet) -> Features:
    """Encode one image set: a vector for the set, and a map on the patch grid of its anchor.

    Args:
        checkpoint: As `load_checkpoint` returns it.
        image_set: Images of one place.

    Returns:
        The features.

    Raises:
        ValueError: If the set is not what it says it is, or too large for one pass.
    """
    pooled, maps = feature_maps(checkpoint.model.a2mae, prepare(checkpoint, image_set))
    anchor, config = image_set[image_set.anchor], checkpoint.model.config
    transform = patch_grid_transform(anchor, maps.shape[2:], config.patch_size, checkpoint.processor.size)
    return Features(pooled[0].cpu().numpy(), maps[0].cpu().numpy(), anchor.crs, transform)


def feature_maps(model: A2MAEModel, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode a batch.

    Args:
        model: The encoder.
        inputs: B sets, as the processor returns them.

    Returns:
        One vector per set, (B, D) float32; and (B, hidden_size, H, W) float32 on the patch grids of the anchors, all
        images fused, NaN where no image has data and beyond the grid of a set.
    """
    batch = complete_batch(model.config, **inputs)
    encoded = model(**inputs)
    # A constant beside the features tells the cells that no patch with data covers.
    tokens = torch.nn.functional.pad(encoded.last_hidden_state[:, 1:], (0, 1), value=1.0)
    fused = fuse_on_anchor_grid(
        tokens,
        batch.get("attention_mask"),
        batch["image_ids"],
        batch["patch_positions"],
        batch["ground_resolutions"],
        batch["anchor_ids"],
        batch["grid_shapes"],
        model.config.patch_size,
    ).float()
    return encoded.pooler_output.float(), fused[:, :-1].masked_fill(fused[:, -1:] < 0.5, float("nan"))


def patch_grid_transform(
    anchor: Image, grid: tuple[int, ...], patch_size: int, size: list[int] | None
) -> tuple[float, ...] | None:
    """Return the affine map (six numbers) of the patch grid of an image, None where the image has none."""
    if anchor.transform is None:
        return None
    rows, columns = size or anchor.pixels.shape[1:]
    down, across = (patch_size * own / seen for own, seen in zip(anchor.pixels.shape[1:], (rows, columns), strict=True))
    a, b, c, d, e, f = tuple(anchor.transform)[:6]
    return (a * across, b * down, c, d * across, e * down, f)


@torch.inference_mode()
def reconstruct(
    checkpoint: Checkpoint, image_set: ImageSet, *, seed: int = 0, paste_visible: bool = True
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Hide patches of one image set by the rule of the checkpoint, and predict them from the rest.

    Args:
        checkpoint: As `load_checkpoint` returns it.
        image_set: Images of one place.
        seed: Of the mask.
        paste_visible: Show the input where the model saw it, not what it would predict there.

    Returns:
        Per image, physical values (bands, height, width) float32 and the hidden pixels (height, width) bool.

    Raises:
        ValueError: If the set is not what it says it is or too large for one pass, or the checkpoint has no decoder.
    """
    if not checkpoint.has_decoder:
        raise ValueError(
            f"{checkpoint.name}: holds an encoder without a decoder, which cannot reconstruct; name a checkpoint that"
            " A2MAEForPreTraining saved."
        )
    batch = prepare(checkpoint, image_set)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 3, batch["pixel_values"].shape[1], generator=generator).to(checkpoint.model.device)
    outputs = checkpoint.model(**batch, noise=noise)
    settings: dict[str, Any] = {"normalize_targets": checkpoint.model.config.normalize_targets}
    images = checkpoint.processor.post_process_reconstruction(
        outputs, batch, image_set, paste_visible=paste_visible, **settings
    )
    masks = checkpoint.processor.post_process_mask(outputs.mask, batch, image_set)
    return images[0], masks[0]


def architectures_of(folder: str | os.PathLike[str]) -> list[str]:
    """Return the names of the model classes that a checkpoint says it is of."""
    return A2MAEConfig.get_config_dict(folder)[0].get("architectures") or []


def usable_device(device: str | None) -> torch.device:
    """Return a device by the name that torch gives it; None takes a GPU where there is one.

    Raises:
        ValueError: If it is not there.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"device={device!r} cannot be used ({reason[:100].rstrip('.')}); take cpu.") from error


def check_output(path: Path, suffixes: Sequence[str]) -> None:
    """Say, before the work is done, that its result could not be written.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If the name ends in none of the suffixes.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: this is written as {', '.join(suffixes)}; give it a name that ends in one of these.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; create it first.")


def save_features(features: Features, image_set: ImageSet, path: str | os.PathLike[str]) -> None:
    """Write features, as a GeoTIFF of the map (`.tif`) or as numpy arrays (`.npz`), whole or not at all.

    The `.npz` holds `pooled`, `maps`, and what is known of `crs`, `transform`, `sensors` and `acquired` of the images.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If the name ends in neither `.tif` nor `.npz`, or the file cannot be written.
    """
    path = Path(path)
    check_output(path, FEATURE_SUFFIXES)
    if path.suffix.lower() != ".npz":
        names = [f"feature {index}" for index in range(len(features.maps))]
        write_raster(
            path, features.maps, crs=features.crs, transform=features.transform, descriptions=names, nodata=float("nan")
        )
        return
    arrays: dict[str, Any] = {
        "pooled": features.pooled,
        "maps": features.maps,
        "crs": features.crs or "",
        "transform": np.array(features.transform or (), dtype=np.float64),
        "sensors": [image.sensor for image in image_set],
        "acquired": [image.acquired.isoformat() if image.acquired else "" for image in image_set],
    }
    with whole_file(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def _one_line(error: BaseException) -> str:
    """Return an error of another library as one line without a full stop."""
    return " ".join(str(error).split()).rstrip(".")
