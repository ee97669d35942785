"""The two models that the benchmarks compare: A2-MAE and the library's ViT-MAE, of equal size, on equal work.

Both see the same pixels: three images of a set as 3 × (12 × 16) patches here, one square image of 24 × 24 patches
there (12 × 12 of 6 × 8 in the small case). Width, depth, heads, decoder, patch size and number of bands are equal.
"""

import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.modeling_a2mae import A2MAEForPreTraining, A2MAEModel

NUM_IMAGES, ROWS, COLUMNS, NUM_BANDS = 3, 12, 16, 6


def configurations(size: str, **overrides: object) -> tuple[A2MAEConfig, ViTMAEConfig]:
    """Return the two configurations of one size ("nano", "tiny", "base", "large")."""
    ours = getattr(A2MAEConfig, size)(**overrides)
    shared = (
        "hidden_size num_hidden_layers num_attention_heads intermediate_size patch_size mask_ratio decoder_hidden_size"
        " decoder_num_hidden_layers decoder_num_attention_heads decoder_intermediate_size layer_norm_eps"
    )
    theirs = ViTMAEConfig(
        image_size=24 * ours.patch_size,
        num_channels=NUM_BANDS,
        **{name: getattr(ours, name) for name in shared.split()},
    )
    return ours, theirs


def batches(config: A2MAEConfig, num_sets: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the inputs of the two models: one set of three 10 m images, two of one sensor, and the same pixels."""
    generator = torch.Generator().manual_seed(0)
    patch = config.patch_size
    num_tokens = NUM_IMAGES * ROWS * COLUMNS
    pixel_values = torch.randn(num_sets, num_tokens, NUM_BANDS, patch**2, generator=generator)
    row, column = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    positions = torch.stack([row, column], dim=-1).flatten(0, 1).repeat(NUM_IMAGES, 1) * 10.0 * patch
    wavelengths = torch.tensor([490.0, 560.0, 665.0, 842.0, 1610.0, 2190.0])

    def every_set(value: torch.Tensor) -> torch.Tensor:
        return value.expand(num_sets, *value.shape).contiguous()

    ours = {
        "pixel_values": pixel_values,
        "attention_mask": torch.ones(num_sets, num_tokens, dtype=torch.bool),
        "image_ids": every_set(torch.arange(NUM_IMAGES).repeat_interleave(ROWS * COLUMNS)),
        "patch_positions": every_set(positions),
        "band_wavelengths": every_set(wavelengths.expand(NUM_IMAGES, -1)),
        "band_widths": every_set(torch.full((NUM_IMAGES, NUM_BANDS), 60.0)),
        "ground_resolutions": every_set(torch.full((NUM_IMAGES,), 10.0)),
        "acquisition_times": every_set(torch.tensor([0, 600, 1440 * 200])),
        "source_ids": every_set(torch.tensor([0, 1, 0])),
        "geographic_codes": every_set(torch.randint(0, 2**32, (8,), generator=generator)),
        "anchor_ids": torch.zeros(num_sets, dtype=torch.int64),
        "grid_shapes": every_set(torch.tensor([[ROWS, COLUMNS]] * NUM_IMAGES)),
    }
    side = 24 * patch
    theirs = {"pixel_values": pixel_values.flatten()[: num_sets * NUM_BANDS * side**2].view(-1, NUM_BANDS, side, side)}
    return ours, theirs


def encoders(size: str) -> tuple[A2MAEModel, ViTMAEModel]:
    """Return both encoders in evaluation mode, ViT-MAE with its masking off."""
    ours, theirs = configurations(size, mask_ratio=0.0)
    return A2MAEModel(ours).eval(), ViTMAEModel(theirs).eval()


def pretrainers(size: str, **overrides: object) -> tuple[A2MAEForPreTraining, ViTMAEForPreTraining]:
    """Return both masked autoencoders in training mode."""
    ours, theirs = configurations(size, **overrides)
    return A2MAEForPreTraining(ours).train(), ViTMAEForPreTraining(theirs).train()
