"""Maps of pixels on the anchor's grid: what the heads see of the images themselves, besides their tokens.

The encoder knows a patch by one token; a border sharper than a patch is to be found in the pixels only. They come from
any bands of any sensor, so they are mixed into the virtual bands that the patch embedding mixes.
"""

import torch
from torch import nn

from .embeddings_a2mae import A2MAEPatchEmbedding
from .grids_a2mae import fold_tokens, fuse_on_anchor_grid
from .masking_a2mae import UNKNOWN_TIME
from .tokens_a2mae import gather_images, grid_axes, take_tokens


def anchor_cells(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the token (B, H, W) int64 of every cell of the anchor's patch grid, −1 beyond it."""
    grid_shapes, anchor_ids = batch["grid_shapes"], batch["anchor_ids"]
    sets = torch.arange(len(anchor_ids), device=anchor_ids.device)
    _, token_ids = fold_tokens(batch["patch_positions"][..., :1], grid_shapes)
    rows, columns = grid_shapes[sets, anchor_ids].amax(dim=0).tolist()
    return token_ids[sets, anchor_ids, :rows, :columns]


def fuse_images(tokens: torch.Tensor, batch: dict[str, torch.Tensor], patch_size: int) -> tuple[torch.Tensor, ...]:
    """Average tokens (B, L, D) over the images of a set: (B, D, H, W), and (B, 1, H, W) float, 1 where one has data."""
    return _fuse(tokens, batch.get("attention_mask"), batch, patch_size)


def fuse_each_image(tokens: torch.Tensor, batch: dict[str, torch.Tensor], patch_size: int) -> tuple[torch.Tensor, ...]:
    """Bring tokens (B, L, D) on the anchor's grid: (B, T, D, H, W), and (B, T, H, W) bool, True where it has data."""
    exists = batch.get("attention_mask", torch.ones_like(batch["image_ids"], dtype=torch.bool))
    images = [
        _fuse(tokens, exists & (batch["image_ids"] == image), batch, patch_size)
        for image in range(batch["grid_shapes"].shape[1])
    ]
    maps, covered = (torch.stack(parts, dim=1) for parts in zip(*images, strict=True))
    return maps, covered[:, :, 0] > 0.5


def _fuse(
    tokens: torch.Tensor, exists: torch.Tensor | None, batch: dict[str, torch.Tensor], patch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fuse tokens together with a column of ones, which tells where any was."""
    fused = fuse_on_anchor_grid(
        torch.cat([tokens, torch.ones_like(tokens[..., :1])], dim=-1),
        exists,
        batch["image_ids"],
        batch["patch_positions"],
        batch["ground_resolutions"],
        batch["anchor_ids"],
        batch["grid_shapes"],
        patch_size,
    )
    return fused[:, :-1], fused[:, -1:]


def virtual_bands(
    embedding: A2MAEPatchEmbedding, batch: dict[str, torch.Tensor], token_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix the pixels of chosen tokens into the virtual bands of the patch embedding.

    Args:
        embedding: Holds the mixing weights; without them (`spectral_projection="identity"`) bands stay as they are.
        batch: The batch.
        token_ids: (B, N) int64, −1 for none.

    Returns:
        (B, N, K, P·P) float32, the mean over the bands that are real, 0 where none is; and (B, N, P·P) bool, True where
        one is.
    """
    places = token_ids.clamp(min=0)
    pixels, image_ids = (take_tokens(batch[key], places) for key in ("pixel_values", "image_ids"))
    exists = token_ids >= 0
    if "attention_mask" in batch:
        exists = exists & take_tokens(batch["attention_mask"], places)
    real = exists[..., None, None].expand_as(pixels)
    if "pixel_mask" in batch:
        real = real & take_tokens(batch["pixel_mask"], places)
    elif embedding.mixes_bands:
        real = real & gather_images(batch["band_wavelengths"] > 0, image_ids)[..., None]
    # Half precision would leave little of the difference of two dates.
    with torch.autocast(pixels.device.type, enabled=False):
        pixels = pixels.float() * real
        if embedding.mixes_bands:
            weights = embedding.spectral_network(batch["band_wavelengths"], batch["band_widths"]).float()
            pixels = gather_images(weights, image_ids).transpose(2, 3) @ pixels
            pixels = pixels / real.sum(dim=2, keepdim=True).clamp(min=1)
    return pixels, real.any(dim=2)


def fold_pixels(patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Fold (…, height · width, D, P·P) patches, row by row, into (…, D, height · P, width · P) maps."""
    side = round(patches.shape[-1] ** 0.5)
    tiles = patches.unflatten(-1, (side, side)).unflatten(-4, (height, width))
    # (…, rows, columns, D, P, P) → (…, D, rows, P, columns, P)
    return tiles.movedim(-3, -5).transpose(-2, -3).flatten(-2).flatten(-3, -2)


def pixels_on_anchor_grid(
    maps: torch.Tensor, real: torch.Tensor, batch: dict[str, torch.Tensor], height: int, width: int, patch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Resample the pixels of every image bilinearly, over the real ones only, at the pixel centres of the anchor.

    Args:
        maps: (B, T, D, H, W) float32, each image on its own pixel grid, 0 beyond it.
        real: (B, T, H, W) bool.
        batch: The batch.
        height: Rows of patches of the result.
        width: Columns of patches of the result.
        patch_size: Pixels.

    Returns:
        (B, T, D, height · P, width · P) float32, 0 where nothing is real; and (B, T, height · P, width · P) bool, True
        where real pixels make up half of the weight or more.
    """
    sets = torch.arange(len(maps), device=maps.device)
    patch_metres = batch["ground_resolutions"].float() * patch_size
    axes = grid_axes(batch["patch_positions"], batch["grid_shapes"], patch_metres)
    origin, row_step, column_step = (axis[sets, batch["anchor_ids"]][:, None, None] for axis in axes)
    rows, columns = (
        (torch.arange(count * patch_size, device=maps.device) + 0.5) / patch_size - 0.5 for count in (height, width)
    )
    ground = origin + rows[:, None, None] * row_step + columns[:, None] * column_step  # (B, rows, columns, 2) metres
    origins, row_steps, column_steps = (axis[:, :, None, None] for axis in axes)
    offset = ground[:, None] - origins
    determinant = _cross(row_steps, column_steps)
    # Images that are padding have no extent.
    determinant = torch.where(determinant.abs() < 1e-6, 1.0, determinant)
    row, column = _cross(offset, column_steps) / determinant, _cross(row_steps, offset) / determinant
    # From the centre of the first patch to what `grid_sample` calls −1 … 1.
    sizes = maps.new_tensor([maps.shape[-1] / patch_size, maps.shape[-2] / patch_size])
    where = 2 * (torch.stack([column, row], dim=-1) + 0.5) / sizes - 1
    values = torch.cat([maps, real[:, :, None].to(maps.dtype)], dim=2).flatten(0, 1)
    sampled = nn.functional.grid_sample(values, where.flatten(0, 1), align_corners=False).unflatten(0, maps.shape[:2])
    weights = sampled[:, :, -1:]
    known = weights > 0.5 - 1e-3
    return torch.where(known, sampled[:, :, :-1] / weights.clamp(min=0.25), 0.0), known[:, :, 0]


def _cross(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the cross product of vectors in the plane (…, 2)."""
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]


def date_ranks(acquisition_times: torch.Tensor, grid_shapes: torch.Tensor) -> torch.Tensor:
    """Return the place of every image in the order of acquisition, (B, T) float32 from 0; the same for equal times.

    Where the time of an image is unknown, or all are the same, images count in the order of their set.

    Raises:
        ValueError: A set has a single image.
    """
    present = grid_shapes.prod(-1) > 0
    alone = (present.sum(1) < 2).nonzero().flatten().tolist()
    if alone:
        raise ValueError(
            f"Set {alone[0]} of the batch has fewer than two images: a change is between two dates, pass both."
        )
    largest = torch.iinfo(torch.int64).max
    first = acquisition_times.masked_fill(~present, largest).amin(1)
    last = acquisition_times.masked_fill(~present, UNKNOWN_TIME).amax(1)
    in_order_of_set = (first == UNKNOWN_TIME) | (first == last)
    index = torch.arange(present.shape[1], device=present.device)
    times = torch.where(in_order_of_set[:, None], index, acquisition_times)
    earlier = (times[:, None, :] < times[:, :, None]) & present[:, None, :]
    equal = (times[:, None, :] == times[:, :, None]) & present[:, None, :]
    return earlier.sum(-1) + (equal.sum(-1) - 1) / 2


def earlier_and_later(
    maps: torch.Tensor, real: torch.Tensor, ranks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Summarise the images of a set as a state before and a state after.

    Of two images these are the two. Of more, images weigh by how far their rank is from the mean rank, below it for the
    state before and above it for the state after: the difference then follows the trend over all dates (the weights
    are those of a straight line fitted to the ranks). Every pixel counts the images that are real there.

    Args:
        maps: (B, T, D, H, W).
        real: (B, T, H, W) bool.
        ranks: (B, T), see `date_ranks`.

    Returns:
        Before and after, (B, D, H, W) each, the mean of what is real where there is no second date; and (B, 1, H, W)
        bool, True where there is.
    """
    counted = real.float()
    ranks = ranks.float()[:, :, None, None]
    centre = (ranks * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)
    distance = (ranks - centre) * counted
    compared = distance.amax(1, keepdim=True) > 1e-3
    states = []
    for sign in (-1, 1):
        weights = torch.where(compared, (sign * distance).clamp(min=0), counted)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
        states.append((weights[:, :, None].to(maps.dtype) * maps).sum(1))
    return states[0], states[1], compared


def enlarge(maps: torch.Tensor, there: torch.Tensor, factor: int) -> torch.Tensor:
    """Interpolate (B, D, H, W) maps bilinearly to `factor` times the size, over the cells (B, 1, H, W) that are there.

    What lies beyond the grid of a set, because others of the batch are larger, leaves no trace within it.
    """
    size = (maps.shape[-2] * factor, maps.shape[-1] * factor)
    there = there.to(maps.dtype)
    weights = nn.functional.interpolate(there, size=size, mode="bilinear")
    return nn.functional.interpolate(maps * there, size=size, mode="bilinear") / weights.clamp(min=1e-6)
