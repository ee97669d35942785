"""The heads of the tasks: from the states of the encoder to the classes of a set, or of every pixel of its anchor.

Top to bottom: the classifier of sets; the parts of the map heads; the heads of segmentation and of change.
"""

import itertools
import math

import torch
from torch import nn

from .configuration_a2mae import A2MAEConfig
from .grids_a2mae import fold_tokens
from .modeling_a2mae import A2MAEModel
from .pixels_a2mae import (
    anchor_cells,
    date_ranks,
    earlier_and_later,
    enlarge,
    fold_pixels,
    fuse_each_image,
    fuse_images,
    pixels_on_anchor_grid,
    virtual_bands,
)

# Layers of the encoder that the map heads read, evenly spaced, the last among them.
LAYERS_READ = 4


class SetStandardization(nn.BatchNorm1d):
    """Standardise every feature of (B, D) summaries over the batch; a lone set by the running statistics."""

    def forward(self, summaries: torch.Tensor) -> torch.Tensor:
        """Return (B, D) in the type of the statistics."""
        summaries = summaries.to(self.get_buffer("running_mean").dtype)
        if self.training and len(summaries) == 1:
            return nn.functional.batch_norm(summaries, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(summaries)


class A2MAEClassifier(nn.Module):
    """From the summary of a set to its classes: standardisation, dropout, and a linear layer.

    Summaries of sets have much in common, and what tells them apart is spread over features of scales apart by a
    hundred. Standardising each feature is what MAE does before its linear probe (He et al. 2022, A.1). It is kept for
    fine-tuning, where MAE has a LayerNorm: that puts the length of a summary right, not the scales of its features, and
    head and encoder learn at one rate only if those agree.
    """

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__()
        width = config.hidden_size * (2 if config.pooling == "mean_std" else 1)
        self.standardization = SetStandardization(width, eps=1e-6, affine=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.linear = nn.Linear(width, config.num_labels)  # type: ignore[arg-type]

    def forward(self, summaries: torch.Tensor) -> torch.Tensor:
        """Return logits (B, num_labels) for the (B, D) `pooler_output` of the encoder."""
        return self.linear(self.dropout(self.standardization(summaries).to(self.linear.weight.dtype)))


class FanInConvolution(nn.Conv2d):
    """A convolution whose weights start with variance 1 / inputs, so that its output has the scale of its input."""

    def __init__(self, num_inputs: int, num_outputs: int, side: int) -> None:
        super().__init__(num_inputs, num_outputs, side, padding=side // 2)


class A2MAEMapLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, D, H, W) maps: a pixel for itself, so that neither padding nor batch count."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (B, D, H, W)."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BandStandardization(nn.Module):
    """Standardise every band of (B, K, H, W) pixels by what was real in the batches of the training so far.

    Pixels come standardised by the statistics of their sensor, for all the ground it sees. A task sees a part of that,
    such as one forest before and after, whose differences are a tenth of the deviation of the whole. Bands then reach
    the convolutions with the scale that these expect, and learn at the rate of the rest.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, num_bands: int, eps: float = 1e-6, least_share: float = 0.02) -> None:
        super().__init__()
        self.eps = eps
        self.least_share = least_share
        self.register_buffer("running_mean", torch.zeros(num_bands))
        self.register_buffer("running_var", torch.ones(num_bands))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, bands: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Return (B, K, H, W) in the type of the statistics, 0 where `real` (B, 1, H, W) bool is False."""
        bands, shown = bands.to(self.running_mean.dtype), real.to(self.running_mean.dtype)
        if self.training:
            self._remember(bands.detach(), shown)
        deviation = (self.running_var[:, None, None] + self.eps).sqrt()
        return (bands - self.running_mean[:, None, None]) / deviation * shown

    @torch.no_grad()
    def _remember(self, bands: torch.Tensor, shown: torch.Tensor) -> None:
        """Count a batch in: the first ones alike, so that a short training has statistics too, and later ones follow.

        What was seen so far is also what the batch itself is standardised by: places are too unlike each other for a
        few of them to stand for all.
        """
        count = shown.sum().clamp(min=1)
        mean = (bands * shown).sum(dim=(0, 2, 3)) / count
        self.num_batches_tracked += 1
        share = (1 / self.num_batches_tracked).clamp(min=self.least_share)
        self.running_mean.lerp_(mean, share)
        # Around the mean of all batches, so that what tells them apart counts.
        squares = ((bands - self.running_mean[:, None, None]) ** 2 * shown).sum(dim=(0, 2, 3)) / count
        self.running_var.lerp_(squares, share)


class A2MAEConvolutionBlock(nn.Module):
    """A residual 3 × 3 convolution, which sees zeros beyond the grid of a set whatever the batch holds there."""

    def __init__(self, config: A2MAEConfig, width: int) -> None:
        super().__init__()
        self.layernorm = A2MAEMapLayerNorm(width, eps=config.layer_norm_eps)
        self.convolution = FanInConvolution(width, width, 3)

    def forward(self, maps: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Return (B, width, H, W) for maps of that shape, `inside` (B, 1, H, W) being 1 on the grid and 0 beyond."""
        return maps + self.convolution(nn.functional.gelu(self.layernorm(maps)) * inside.to(maps.dtype))


class A2MAELayerProjection(nn.Module):
    """Project the tokens of several layers of the encoder to the width of a map head, and add them up."""

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__()
        count = min(LAYERS_READ, config.num_hidden_layers)
        # The last layer comes with the norm of the encoder.
        self.layers = [round(config.num_hidden_layers * number / count) for number in range(1, count)]
        self.layernorms = nn.ModuleList(
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in self.layers
        )
        self.projection = nn.Linear(count * config.hidden_size, config.head_hidden_size)

    def forward(self, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return (B, L, head_hidden_size) for the (B, 1 + L, hidden_size) states before and after every layer."""
        inner = [norm(states[layer]) for norm, layer in zip(self.layernorms, self.layers, strict=True)]
        return self.projection(torch.cat([*inner, states[-1]], dim=-1)[:, 1:])


class A2MAEPixelDecoder(nn.Module):
    """Logits per pixel from a map of tokens and from the pixels themselves.

    A feature pyramid (Lin et al. 2017) that meets a U-Net (Ronneberger et al. 2015): pixels are convolved at full
    resolution and on the way down to the patch grid; the map of tokens is enlarged step by step, and on every step
    what the pixels gave at that resolution is added. Half the width suffices at full resolution, where pixels are many.
    """

    def __init__(self, config: A2MAEConfig, num_bands: int) -> None:
        super().__init__()
        width = config.head_hidden_size
        self.factors = enlargements(config.patch_size)
        # From the pixels down, the patch grid last.
        widths = [width // 2] + [width] * len(self.factors)
        steps = list(itertools.pairwise(widths))
        self.standardization = BandStandardization(num_bands)
        self.stem = FanInConvolution(num_bands + 1, widths[0], 1)
        self.stem_blocks = nn.ModuleList(A2MAEConvolutionBlock(config, widths[0]) for _ in range(2))
        self.narrowing = nn.ModuleList(FanInConvolution(fine, coarse, 1) for fine, coarse in steps[:-1])
        self.narrowing_blocks = nn.ModuleList(A2MAEConvolutionBlock(config, coarse) for _, coarse in steps[:-1])
        self.token_block = A2MAEConvolutionBlock(config, width)
        self.widening = nn.ModuleList(FanInConvolution(coarse, fine, 1) for fine, coarse in steps)
        self.widening_blocks = nn.ModuleList(A2MAEConvolutionBlock(config, fine) for fine, _ in steps)
        self.layernorm = A2MAEMapLayerNorm(widths[0], eps=config.layer_norm_eps)
        self.classifier = nn.Conv2d(widths[0], config.num_labels, 1)  # type: ignore[arg-type]

    def forward(
        self, tokens: torch.Tensor, bands: torch.Tensor, real: torch.Tensor, inside: torch.Tensor
    ) -> torch.Tensor:
        """Decode.

        Args:
            tokens: (B, head_hidden_size, H, W) on the patch grid.
            bands: (B, num_bands, H · P, W · P), 0 where nothing is real.
            real: (B, 1, H · P, W · P) bool.
            inside: (B, 1, H, W) bool, True on the patch grid of the set, False where others of the batch are larger.

        Returns:
            (B, num_labels, H · P, W · P).
        """
        grids = [inside.to(tokens.dtype)]
        for factor in self.factors:
            grids.insert(0, grids[0].repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1))
        # Channels last is how the norms take a map, and what convolutions on a processor are fastest on.
        bands = torch.cat([self.standardization(bands, real), real.to(torch.float32)], dim=1).to(tokens.dtype)
        maps = self.stem(bands.contiguous(memory_format=torch.channels_last))
        for block in self.stem_blocks:
            maps = block(maps, grids[0])
        laterals = [maps]
        # From fine to coarse, the last factor first.
        steps = zip(self.narrowing, self.narrowing_blocks, grids[1:-1], self.factors[:0:-1], strict=True)
        for narrow, block, grid, factor in steps:
            maps = block(narrow(nn.functional.avg_pool2d(maps, factor)), grid)
            laterals.append(maps)
        maps = self.token_block(tokens.contiguous(memory_format=torch.channels_last), grids[-1])
        for level, factor in zip(reversed(range(len(laterals))), self.factors, strict=True):
            enlarged = enlarge(self.widening[level](maps), grids[level + 1], factor)
            maps = self.widening_blocks[level](enlarged + laterals[level], grids[level])
        return self.classifier(nn.functional.gelu(self.layernorm(maps))) * grids[0]


def enlargements(patch_size: int) -> list[int]:
    """Return factors from the patch grid to the pixels: doublings, after what of the patch size is odd."""
    doublings = (patch_size & -patch_size).bit_length() - 1
    odd = patch_size >> doublings
    return ([odd] if odd > 1 or not doublings else []) + [2] * doublings


class A2MAENeighbourAttention(nn.Module):
    """Tokens of one date attend to those of another at the same place and on the eight cells around it.

    The neighbours make up for images that lie half a patch apart, and for crowns and roofs that lean with the view.
    """

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__()
        width = config.head_hidden_size
        self.num_heads = math.gcd(config.num_attention_heads, width)
        self.layernorm = A2MAEMapLayerNorm(width, eps=config.layer_norm_eps)
        # Not named as in the encoder, whose projections adapters such as LoRA look for by name.
        self.query = FanInConvolution(width, width, 1)
        self.key = FanInConvolution(width, width, 1)
        self.value = FanInConvolution(width, width, 1)
        self.output = FanInConvolution(width, width, 1)
        self.place_bias = nn.Parameter(torch.zeros(self.num_heads, 9))

    def forward(self, maps: torch.Tensor, other: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """Return (B, width, H, W) for two maps of that shape; the cells `there` (B, 1, H, W) of the other are seen."""
        query = self.query(self.layernorm(maps)).unflatten(1, (self.num_heads, -1)).flatten(3)
        seen = self.layernorm(other)
        key, value = (
            nn.functional.unfold(project(seen), 3, padding=1).unflatten(1, (self.num_heads, -1, 9))
            for project in (self.key, self.value)
        )
        exists = nn.functional.unfold(there.to(maps.dtype), 3, padding=1)[:, None] > 0
        scores = (query[:, :, :, None] * key).sum(2) * query.shape[2] ** -0.5 + self.place_bias[..., None]
        scores = scores.float().masked_fill(~exists, torch.finfo(torch.float32).min)
        weights = (scores.softmax(dim=2) * exists).to(value.dtype)
        attended = (weights[:, :, None] * value).sum(3).flatten(1, 2).unflatten(-1, maps.shape[-2:])
        return maps + self.output(attended)


class A2MAELinearSegmentationHead(nn.Module):
    """A linear layer on the tokens of the last layer, interpolated from the patch grid to the pixels."""

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]

    def forward(
        self, states: tuple[torch.Tensor, ...], batch: dict[str, torch.Tensor], encoder: A2MAEModel
    ) -> torch.Tensor:
        """Return logits (B, num_labels, H · P, W · P), 0 where no image has data."""
        # Fusing and the layer are both linear, and logits are narrower than tokens.
        logits, covered = fuse_images(self.classifier(states[-1][:, 1:]), batch, self.patch_size)
        return enlarge(logits, covered, self.patch_size)


class A2MAEPyramidSegmentationHead(nn.Module):
    """Tokens of several layers, fused over the images of a set, decoded together with the pixels of the anchor."""

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.layer_projection = A2MAELayerProjection(config)
        self.decoder = A2MAEPixelDecoder(config, num_virtual_bands(config))

    def forward(
        self, states: tuple[torch.Tensor, ...], batch: dict[str, torch.Tensor], encoder: A2MAEModel
    ) -> torch.Tensor:
        """Return logits (B, num_labels, H · P, W · P)."""
        tokens, _ = fuse_images(self.layer_projection(states), batch, self.patch_size)
        cells = anchor_cells(batch)
        bands, real = virtual_bands(encoder.patch_embedding, batch, cells.flatten(1))
        height, width = cells.shape[1:]
        return self.decoder(
            tokens,
            fold_pixels(bands, height, width),
            fold_pixels(real[:, :, None], height, width),
            (cells >= 0)[:, None],
        )


class A2MAEChangeHead(nn.Module):
    """What differs between an earlier and a later state of tokens and of pixels, decoded together."""

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.layer_projection = A2MAELayerProjection(config)
        self.attention = A2MAENeighbourAttention(config) if config.change_head == "attention" else None
        self.merge = FanInConvolution(3 * config.head_hidden_size, config.head_hidden_size, 1)
        self.decoder = A2MAEPixelDecoder(config, 2 * num_virtual_bands(config))

    def forward(
        self, states: tuple[torch.Tensor, ...], batch: dict[str, torch.Tensor], encoder: A2MAEModel
    ) -> torch.Tensor:
        """Return logits (B, num_labels, H · P, W · P).

        Raises:
            ValueError: A set has a single image.
        """
        ranks = date_ranks(batch["acquisition_times"], batch["grid_shapes"])
        images, covered = fuse_each_image(self.layer_projection(states), batch, self.patch_size)
        before, after, compared = earlier_and_later(images, covered, ranks)
        if self.attention is not None:
            before, after = self.attention(before, after, compared), self.attention(after, before, compared)
        change = (after - before) * compared
        tokens = self.merge(torch.cat([change, change.abs(), (before + after) / 2], dim=1))

        inside = (anchor_cells(batch) >= 0)[:, None]
        bands, real = self.pixels_of_images(batch, encoder, *inside.shape[-2:])
        earlier, later, both = earlier_and_later(bands, real, ranks)
        # The difference alone would not say what has changed: mean and difference hold all that both dates do.
        change_of_bands = torch.cat([later - earlier, (later + earlier) / 2], dim=1)
        return self.decoder(tokens, change_of_bands, both, inside)

    def pixels_of_images(
        self, batch: dict[str, torch.Tensor], encoder: A2MAEModel, height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the virtual bands of every image on the anchor's pixel grid, and where they are real."""
        _, token_ids = fold_tokens(batch["patch_positions"][..., :1], batch["grid_shapes"])
        num_images, rows, columns = token_ids.shape[1:]
        bands, real = virtual_bands(encoder.patch_embedding, batch, token_ids.flatten(1))
        maps, shown = (
            fold_pixels(values.unflatten(1, (num_images, -1)), rows, columns) for values in (bands, real[:, :, None])
        )
        return pixels_on_anchor_grid(maps, shown[:, :, 0], batch, height, width, self.patch_size)


def num_virtual_bands(config: A2MAEConfig) -> int:
    """Return how many bands the patch embedding projects."""
    return config.spectral_basis_size if config.spectral_projection == "basis" else config.num_channels
