"""Builders of tiny batches and models by hand, so that the model is tested without the image processor."""

import math
from collections.abc import Callable

import pytest
import torch

from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig

UNKNOWN_TIME = -(2**63)
MINUTES_PER_DAY = 1440
PATCH_SIZE = 4
# Centre wavelength and width in nanometres: blue, green, red, near infrared of Sentinel-2A (ESA).
BANDS = ((492.0, 66.0), (560.0, 36.0), (665.0, 31.0), (833.0, 106.0))
IMAGE = {"sensor": 0, "day": 0.0, "gsd": 10.0, "grid": (4, 4), "bands": BANDS, "centre": (0.0, 0.0)}


def grid_of_patches(grid: tuple[int, int], patch_metres: float, centre: tuple[float, float]) -> torch.Tensor:
    """North and east (rows · columns, 2) of the patch centres, from the upper left row by row."""
    rows, columns = grid
    north = centre[0] + ((rows - 1) / 2 - torch.arange(rows)) * patch_metres
    east = centre[1] + (torch.arange(columns) - (columns - 1) / 2) * patch_metres
    return torch.cartesian_prod(north, east).reshape(-1, 2)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., dict[str, torch.Tensor]]:
    """A function from image sets to a batch.

    Each set is a list of images, each a dict with any of `sensor` (number), `day` (since 2000, None if unknown), `gsd`
    (metres), `grid` (rows and columns of patches), `bands` (wavelength and width in nanometres) and `centre` (metres
    north and east). Pixels are standard normal, what a smaller set lacks is padding.
    """

    def build(
        *sets: list[dict], anchors: list[int] | None = None, seed: int = 0, patch_size: int = PATCH_SIZE
    ) -> dict[str, torch.Tensor]:
        sets_of_images = [[{**IMAGE, **image} for image in images] for images in sets]
        images_of_all = [image for images in sets_of_images for image in images]
        num_sets = len(sets)
        num_images = max(len(images) for images in sets)
        num_bands = max(len(image["bands"]) for image in images_of_all)
        num_tokens = max(sum(math.prod(image["grid"]) for image in images) for images in sets_of_images)
        batch = {
            "pixel_values": torch.zeros(num_sets, num_tokens, num_bands, patch_size**2),
            "pixel_mask": torch.zeros(num_sets, num_tokens, num_bands, patch_size**2, dtype=torch.bool),
            "attention_mask": torch.zeros(num_sets, num_tokens, dtype=torch.bool),
            "image_ids": torch.zeros(num_sets, num_tokens, dtype=torch.int64),
            "patch_positions": torch.zeros(num_sets, num_tokens, 2),
            "band_wavelengths": torch.zeros(num_sets, num_images, num_bands),
            "band_widths": torch.zeros(num_sets, num_images, num_bands),
            "ground_resolutions": torch.zeros(num_sets, num_images),
            "acquisition_times": torch.full((num_sets, num_images), UNKNOWN_TIME),
            "source_ids": torch.full((num_sets, num_images), -1),
            "geographic_codes": torch.zeros(num_sets, 8, dtype=torch.int64),
            "anchor_ids": torch.tensor(anchors if anchors is not None else [0] * num_sets),
            "grid_shapes": torch.zeros(num_sets, num_images, 2, dtype=torch.int64),
        }
        for b, images in enumerate(sets_of_images):
            # One generator per set: a set is the same alone and among others.
            generator = torch.Generator().manual_seed(1000 * seed + b)
            batch["geographic_codes"][b] = torch.randint(2**32, (8,), generator=generator)
            first = 0
            for t, image in enumerate(images):
                count, bands = math.prod(image["grid"]), len(image["bands"])
                tokens = slice(first, first + count)
                pixels = torch.randn(count, bands, patch_size**2, generator=generator)
                batch["pixel_values"][b, tokens, :bands] = pixels
                batch["pixel_mask"][b, tokens, :bands] = True
                batch["attention_mask"][b, tokens] = True
                batch["image_ids"][b, tokens] = t
                batch["patch_positions"][b, tokens] = grid_of_patches(
                    image["grid"], image["gsd"] * patch_size, image["centre"]
                )
                batch["band_wavelengths"][b, t, :bands], batch["band_widths"][b, t, :bands] = torch.tensor(
                    image["bands"]
                ).T
                batch["ground_resolutions"][b, t] = image["gsd"]
                if image["day"] is not None:
                    batch["acquisition_times"][b, t] = round(image["day"] * MINUTES_PER_DAY)
                batch["source_ids"][b, t] = image["sensor"]
                batch["grid_shapes"][b, t] = torch.tensor(image["grid"])
                first += count
        return batch

    return build


@pytest.fixture(scope="session")
def pad_batch() -> Callable[..., dict[str, torch.Tensor]]:
    """A function that adds padding tokens, images without tokens, and absent bands to a batch.

    What padding tokens hold is junk on purpose: nothing may read it.
    """

    def pad(
        batch: dict[str, torch.Tensor], tokens: int = 0, images: int = 0, bands: int = 0
    ) -> dict[str, torch.Tensor]:
        # Per key: by how much each of its last dimensions grows, and what fills it.
        growth = {
            "pixel_values": ((tokens, bands, 0), 0.0),
            "pixel_mask": ((tokens, bands, 0), False),
            "attention_mask": ((tokens,), False),
            "image_ids": ((tokens,), 0),
            "patch_positions": ((tokens, 0), 12_345.0),
            "band_wavelengths": ((images, bands), 0.0),
            "band_widths": ((images, bands), 0.0),
            "ground_resolutions": ((images,), 0.0),
            "acquisition_times": ((images,), UNKNOWN_TIME),
            "source_ids": ((images,), 77),
            "grid_shapes": ((images, 0), 0),
            "noise": ((tokens,), -9.0),
        }
        padded = dict(batch)
        for key in growth.keys() & batch.keys():
            sizes, fill = growth[key]
            widths = [width for size in reversed(sizes) for width in (0, size)]
            padded[key] = torch.nn.functional.pad(batch[key], widths, value=fill)
        num_tokens = batch["pixel_values"].shape[1]
        padded["pixel_values"][:, num_tokens:] = 1e3
        return padded

    return pad


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., A2MAEConfig]:
    """A function from overrides to a configuration of 2 layers, with weights large enough that every path shows."""

    def config(**overrides) -> A2MAEConfig:
        sizes = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "patch_size": PATCH_SIZE,
            "spectral_basis_size": 4,
            "spectral_hidden_size": 8,
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 32,
            "initializer_range": 0.2,
        }
        return A2MAEConfig(**{**sizes, **overrides})

    return config


@pytest.fixture(scope="session")
def tiny_model(tiny_config) -> Callable[..., torch.nn.Module]:
    """A function from a model class and overrides of the configuration to that model, not training, always the same."""

    def model(model_class, **overrides) -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return model_class(tiny_config(**overrides)).eval()

    return model


@pytest.fixture(scope="session")
def make_noise() -> Callable[..., torch.Tensor]:
    """A function from a batch to the noise (B, 3, L) that a mask follows from."""

    def noise(batch: dict[str, torch.Tensor], seed: int = 0) -> torch.Tensor:
        num_sets, num_tokens = batch["image_ids"].shape
        return torch.randn(num_sets, 3, num_tokens, generator=torch.Generator().manual_seed(seed))

    return noise
