"""From tokens back to maps: the patch grid of every image, and one grid for a whole set.

Tokens of an image follow one another row by row, images follow one another; `grid_shapes` says how many rows and
columns.
"""

from collections.abc import Iterator

import torch

from .tokens_a2mae import first_tokens, gather_images, grid_axes, take_tokens

# Pairs of cell and token that are weighed at once: the memory of a map grows with its size, not with its square.
_BLOCK = 2**24


def fold_tokens(tokens: torch.Tensor, grid_shapes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold tokens into one map per image.

    Args:
        tokens: (B, L, D) values of patch tokens, without the class token.
        grid_shapes: (B, T, 2) rows and columns of patches of every image.

    Returns:
        Maps (B, T, D, H, W), zero beyond the grid of an image, with H and W the most rows and columns of any image; and
        (B, T, H, W) int64, the token of every cell, −1 beyond the grid.
    """
    height, width = grid_shapes.amax(dim=(0, 1)).tolist()
    row = torch.arange(height, device=tokens.device)[:, None]
    column = torch.arange(width, device=tokens.device)
    rows, columns = grid_shapes[..., 0, None, None], grid_shapes[..., 1, None, None]
    inside = (row < rows) & (column < columns)
    token_ids = torch.where(inside, first_tokens(grid_shapes)[..., None, None] + row * columns + column, -1)
    maps = take_tokens(tokens, token_ids.clamp(min=0).flatten(1)) * inside.flatten(1)[..., None]
    return maps.unflatten(1, inside.shape[1:]).permute(0, 1, 4, 2, 3), token_ids


def fuse_on_anchor_grid(
    tokens: torch.Tensor,
    attention_mask: torch.Tensor | None,
    image_ids: torch.Tensor,
    patch_positions: torch.Tensor,
    ground_resolutions: torch.Tensor,
    anchor_ids: torch.Tensor,
    grid_shapes: torch.Tensor,
    patch_size: int,
) -> torch.Tensor:
    """Average the tokens of all images of a set on the patch grid of its anchor.

    Every cell takes the mean of the patches that lie on its ground, weighted by the area they share with it: each image
    that covers the cell has one vote, whatever its resolution.

    Args:
        tokens: (B, L, D) values of patch tokens, without the class token.
        attention_mask: (B, L) bool, True where the token exists; None where all do.
        image_ids: (B, L) int64.
        patch_positions: (B, L, 2) metres north and east of the patch centres.
        ground_resolutions: (B, T) metres per pixel; for images of a single patch.
        anchor_ids: (B,) int64.
        grid_shapes: (B, T, 2) rows and columns of patches.
        patch_size: Pixels.

    Returns:
        (B, D, H, W), zero beyond the anchor's grid and where no image has data.
    """
    if grid_shapes.shape[1] == 1:
        kept = tokens if attention_mask is None else tokens * attention_mask[..., None]
        return fold_tokens(kept, grid_shapes)[0][:, 0]
    sets = torch.arange(tokens.shape[0], device=tokens.device)
    _, token_ids = fold_tokens(tokens[..., :1], grid_shapes)
    cell_ids = token_ids[sets, anchor_ids]
    rows, columns = grid_shapes[sets, anchor_ids].amax(dim=0).tolist()
    cell_ids = cell_ids[:, :rows, :columns].flatten(1)

    # Grid north and true north differ by a few degrees; patches overlap exactly along the axes of the grid only.
    patch_metres = ground_resolutions.float() * patch_size
    _, *steps = grid_axes(patch_positions, grid_shapes, patch_metres)
    axes = [torch.nn.functional.normalize(step[sets, anchor_ids], dim=-1)[:, None] for step in steps]
    positions = torch.stack([(patch_positions.float() * axis).sum(-1) for axis in axes], dim=-1)
    extents = torch.stack([(torch.stack(steps) * axis).sum(-1).abs().sum(0) for axis in axes], dim=-1)
    sizes = gather_images(extents.clamp(min=1e-6), image_ids)

    exists = torch.ones_like(image_ids, dtype=torch.bool) if attention_mask is None else attention_mask
    fused = [
        weights.to(tokens.dtype) @ tokens
        for weights in _shared_areas(positions, sizes, exists, cell_ids, max(1, _BLOCK // tokens.shape[1]))
    ]
    return torch.cat(fused, dim=1).transpose(1, 2).unflatten(2, (rows, columns))


def _shared_areas(
    positions: torch.Tensor, sizes: torch.Tensor, exists: torch.Tensor, cell_ids: torch.Tensor, cells_at_once: int
) -> Iterator[torch.Tensor]:
    """Yield the share (B, cells, L) of every token in the ground of a block of cells; each cell sums to 1, or 0."""
    for block in cell_ids.split(cells_at_once, dim=1):
        weights = (exists[:, None, :] & (block >= 0)[..., None]).float()
        for axis in range(2):
            here, there = take_tokens(positions[..., axis], block.clamp(min=0)), positions[..., axis]
            size_here, size_there = take_tokens(sizes[..., axis], block.clamp(min=0)), sizes[..., axis]
            smaller = torch.minimum(size_here[:, :, None], size_there[:, None, :])
            reach = (size_here[:, :, None] + size_there[:, None, :]) / 2 - (here[:, :, None] - there[:, None, :]).abs()
            # Neighbours touch; a thousandth of a patch is rounding, not overlap.
            weights = weights * torch.where(reach > 1e-3 * smaller, torch.minimum(reach, smaller), 0.0)
        yield weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
