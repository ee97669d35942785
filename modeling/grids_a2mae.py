"""From tokens back to maps: the patch grid of every image, and one grid for a whole set.

Tokens of an image follow one another row by row, images follow one another; `grid_shapes` says how many rows and
columns.
"""

import torch

from .batch_a2mae import first_tokens, take_tokens


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
        ground_resolutions: (B, T) metres per pixel.
        anchor_ids: (B,) int64.
        grid_shapes: (B, T, 2) rows and columns of patches.
        patch_size: Pixels.

    Returns:
        (B, D, H, W), zero beyond the anchor's grid and where no image has data.
    """
    sets = torch.arange(tokens.shape[0], device=tokens.device)
    _, token_ids = fold_tokens(tokens[..., :1], grid_shapes)
    cell_ids = token_ids[sets, anchor_ids]
    rows, columns = grid_shapes[sets, anchor_ids].amax(dim=0).tolist()
    cell_ids = cell_ids[:, :rows, :columns].flatten(1)

    positions = along_grid_axes(patch_positions.float(), grid_shapes[sets, anchor_ids], token_ids[sets, anchor_ids])
    sizes = (ground_resolutions.float() * patch_size).gather(1, image_ids)
    cell_positions = take_tokens(positions, cell_ids.clamp(min=0))
    cell_sizes = take_tokens(sizes, cell_ids.clamp(min=0))
    reach = (cell_sizes[:, :, None] + sizes[:, None, :]) / 2
    smaller = torch.minimum(cell_sizes[:, :, None], sizes[:, None, :])
    weights = torch.ones_like(reach)
    for axis in range(2):
        distance = (cell_positions[:, :, None, axis] - positions[:, None, :, axis]).abs()
        # Neighbours touch; a thousandth of a patch is rounding, not overlap.
        overlap = torch.minimum(reach - distance, smaller) / smaller
        weights = weights * torch.where(overlap > 1e-3, overlap * smaller, 0.0)
    if attention_mask is not None:
        weights = weights * attention_mask[:, None, :]
    weights = weights * (cell_ids >= 0)[..., None]
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
    fused = weights.to(tokens.dtype) @ tokens
    return fused.transpose(1, 2).unflatten(2, (rows, columns))


def along_grid_axes(positions: torch.Tensor, grid_shape: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Turn positions (B, L, 2) so that the axes follow the grid with shape (B, 2) and tokens (B, H, W).

    Grid north and true north differ by a few degrees in most projections; squares only overlap exactly along one of
    them.
    """
    rows, columns = grid_shape.unbind(-1)
    sets = torch.arange(positions.shape[0], device=positions.device)
    start = positions[sets, token_ids[:, 0, 0].clamp(min=0)]
    along_columns = positions[sets, token_ids[sets, 0, (columns - 1).clamp(min=0)].clamp(min=0)] - start
    along_rows = positions[sets, token_ids[sets, (rows - 1).clamp(min=0), 0].clamp(min=0)] - start
    # A quarter turn makes the direction along the rows one along the columns, where there is only one column.
    turned = torch.stack([along_rows[:, 1], -along_rows[:, 0]], dim=-1)
    direction = torch.where((columns > 1)[:, None], along_columns, turned)
    length = direction.norm(dim=-1, keepdim=True)
    direction = torch.where(length > 0, direction / length.clamp(min=1e-9), direction.new_tensor([0.0, 1.0]))
    east, north = direction[:, None, 1], direction[:, None, 0]
    return torch.stack(
        [positions[..., 0] * east - positions[..., 1] * north, positions[..., 1] * east + positions[..., 0] * north],
        dim=-1,
    )
