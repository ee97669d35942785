"""A2-MAE: an anchor-aware masked autoencoder over sets of satellite images.

Top to bottom: attention, layer, encoder (`A2MAEModel`), decoder, pre-training, backbone. Every model takes the batch
that `A2MAEImageProcessor` returns: token-major patches with their physical coordinates. The encoder never masks;
pre-training drops the hidden tokens from the batch before it is embedded.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .batch_a2mae import A2MAEKwargs, complete_batch, select_tokens, split_batch
from .configuration_a2mae import A2MAEConfig
from .embeddings_a2mae import (
    A2MAECoordinates,
    A2MAEPatchEmbedding,
    A2MAEPatchPrediction,
    FanInLinear,
    ReleasedCoordinates,
)
from .grids_a2mae import fold_tokens, fuse_on_anchor_grid
from .masking_a2mae import UNKNOWN_TIME, anchor_aware_mask, most_hidden_tokens, most_visible_tokens
from .objectives_a2mae import (
    PATCH_FEATURES,
    A2MAEProjector,
    contrastive_loss,
    feature_loss,
    reconstruction_loss,
)

# Tokens, at least, that go through the feed-forward network together on a processor; see `A2MAEMLP`.
ROWS_AT_ONCE = 512


@dataclass
class A2MAEForPreTrainingOutput(ModelOutput):
    """Output of `A2MAEForPreTraining`.

    Args:
        loss: Scalar, mean squared error over the decoded, valid values, plus the further objectives of the
            configuration (see `objectives_a2mae.py`).
        logits: (B, M, C, P·P) predicted values in the units of `pixel_values` (of the normalised patch under
            `normalize_targets`).
        token_ids: (B, M) int64, the token that each prediction is for; −1 where it is padding.
        mask: (B, L) bool, True where a token was hidden from the encoder.
        hidden_states: Hidden states of the encoder, when asked for.
        attentions: Attention weights of the encoder, when asked for (eager attention only).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    token_ids: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend in plain algebra: inputs (B, heads, tokens, head width), result (B, tokens, heads, head width)."""
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class A2MAEAttention(nn.Module):
    """Multi-head attention of tokens to themselves, or to a memory."""

    def __init__(self, config: A2MAEConfig, width: int, num_heads: int) -> None:
        super().__init__()
        self.config = config
        self.head_dim = width // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, width)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        memory: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the attended states (B, tokens, width), and the weights where the implementation has them."""
        source = hidden_states if memory is None else memory
        heads = (-1, self.head_dim)
        query = self.q_proj(hidden_states).unflatten(-1, heads).transpose(1, 2)
        key = self.k_proj(source).unflatten(-1, heads).transpose(1, 2)
        value = self.v_proj(source).unflatten(-1, heads).transpose(1, 2)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        attended, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(attended.flatten(2)), weights


class A2MAEMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: A2MAEConfig, width: int, inner_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner_width)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(inner_width, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return (B, tokens, width)."""
        if hidden_states.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.fc2(self.activation(self.fc1(hidden_states)))
        # On a processor the wide activations of a whole batch are fresh memory in every layer, and its page faults are
        # dear: with some hundred tokens at a time encoding is up to 1.15 times as fast.
        rows = hidden_states.flatten(0, -2)
        # Fewer rows than the layer is wide would not be worth fetching its weights for.
        parts = rows.chunk(max(1, len(rows) // max(ROWS_AT_ONCE, rows.shape[1])))
        return torch.cat([self.fc2(self.activation(self.fc1(part))) for part in parts]).view_as(hidden_states)


class A2MAELayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer; with a memory, its tokens attend to the memory instead of to themselves."""

    def __init__(self, config: A2MAEConfig, width: int, num_heads: int, inner_width: int) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = A2MAEAttention(config, width, num_heads)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = A2MAEMLP(config, width, inner_width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        memory: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Return (B, tokens, width)."""
        attended, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, memory, **kwargs)
        # Added in place: the products keep nothing of their result for the backward pass, and memory is the bottleneck.
        hidden_states = self.dropout(attended).add_(hidden_states)
        return self.dropout(self.mlp(self.layernorm_after(hidden_states))).add_(hidden_states)


class A2MAEPreTrainedModel(PreTrainedModel):
    """Weights initialisation, and what the library needs to know about the family."""

    config: A2MAEConfig
    config_class = A2MAEConfig
    base_model_prefix = "a2mae"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _no_split_modules = ["A2MAEPatchEmbedding", "A2MAELayer", "A2MAEDecoder"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": A2MAELayer, "attentions": A2MAEAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, A2MAEModel):
            init.normal_(module.cls_token, std=self.config.initializer_range)
        elif isinstance(module, A2MAEDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
        elif isinstance(module, FanInLinear):
            init.normal_(module.weight, std=module.in_features**-0.5)


class A2MAEModel(A2MAEPreTrainedModel):
    """The anchor-aware encoder: any set of images of one place → one token per patch, and one vector for the set."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^projector\."]  # noqa: RUF012

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        coordinates = ReleasedCoordinates if config.coordinate_layout == "released" else A2MAECoordinates
        self.patch_embedding = A2MAEPatchEmbedding(config)
        self.coordinates = coordinates(config, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.layers = nn.ModuleList(
            A2MAELayer(config, width, config.num_attention_heads, config.intermediate_size)
            for _ in range(config.num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embedding."""
        return self.patch_embedding

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        patch_positions: torch.Tensor | None = None,
        band_wavelengths: torch.Tensor | None = None,
        band_widths: torch.Tensor | None = None,
        ground_resolutions: torch.Tensor | None = None,
        acquisition_times: torch.Tensor | None = None,
        source_ids: torch.Tensor | None = None,
        geographic_codes: torch.Tensor | None = None,
        anchor_ids: torch.Tensor | None = None,
        grid_shapes: torch.Tensor | None = None,
        grid_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode every token of the batch; nothing is masked.

        Args:
            pixel_values: (B, L, C, P·P) float, standardised patches, 0 where a band is absent or a value invalid.
            pixel_mask: (B, L, C, P·P) bool, True where a value is real.
            attention_mask: (B, L) bool, True where the token exists.
            image_ids: (B, L) int64, the image of each token.
            patch_positions: (B, L, 2) metres north and east of the footprint centre.
            band_wavelengths: (B, T, C) nanometres, 0 where the band is absent. This and the next are required unless
                `spectral_projection="identity"`.
            band_widths: (B, T, C) nanometres.
            ground_resolutions: (B, T) metres per pixel, 0 where unknown.
            acquisition_times: (B, T) int64 minutes since 2000-01-01 UTC, the smallest int64 where unknown.
            source_ids: (B, T) int64. Not used by the encoder; taken so that a batch can be passed whole.
            geographic_codes: (B, 8) int64 GeoSOT codes of the corners of the footprint, −1 where unknown.
            anchor_ids: (B,) int64. Not used by the encoder.
            grid_shapes: (B, T, 2) rows and columns of patches. Only used by `coordinate_layout="released"`.
            grid_positions: (B, L, 2) int64 row and column of each token; follows from `grid_shapes` unless tokens were
                dropped. Only used by `coordinate_layout="released"`.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict` and arguments of the attention
                implementation.

        Returns:
            `last_hidden_state` (B, 1 + L, hidden_size), the class token first, and `pooler_output` (B, hidden_size),
            twice as wide for `pooling="mean_std"`.

        Raises:
            ValueError: The batch does not fit the checkpoint; the message names the key.
        """
        batch = complete_batch(
            self.config,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            attention_mask=attention_mask,
            image_ids=image_ids,
            patch_positions=patch_positions,
            band_wavelengths=band_wavelengths,
            band_widths=band_widths,
            ground_resolutions=ground_resolutions,
            acquisition_times=acquisition_times,
            source_ids=source_ids,
            geographic_codes=geographic_codes,
            anchor_ids=anchor_ids,
            grid_shapes=grid_shapes,
            grid_positions=grid_positions,
        )
        patches = self.patch_embedding(batch)
        patches = patches.add_(self.coordinates(batch))
        hidden_states = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        exists = with_class_token(batch.get("attention_mask"))
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_states, attention_mask=exists)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=pool(hidden_states, batch.get("attention_mask"), self.config.pooling),
        )


def with_class_token(exists: torch.Tensor | None) -> torch.Tensor | None:
    """Prepend the class token, which always exists, to a (B, L) bool mask."""
    return None if exists is None else nn.functional.pad(exists, (1, 0), value=True)


def pool(hidden_states: torch.Tensor, exists: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """Summarise (B, 1 + L, D) hidden states, of which L (B, L) bool exist, as (B, D) or (B, 2D)."""
    if pooling == "class":
        return hidden_states[:, 0]
    patches = hidden_states[:, 1:]
    weights = torch.ones_like(patches[..., 0]) if exists is None else exists.to(patches.dtype)
    weights = (weights / weights.sum(1, keepdim=True).clamp(min=1))[:, None]
    mean = weights @ patches
    if pooling == "mean":
        return mean[:, 0]
    variance = weights @ (patches - mean).square()
    return torch.cat([mean, (variance + 1e-6).sqrt()], dim=-1)[:, 0]


class A2MAEDecoder(nn.Module):
    """Predict the pixels of tokens from the encoded visible ones and the coordinates of both.

    With `decoder_attention="self"` all tokens attend to all; with "cross" the predicted tokens attend to the visible
    ones only.
    """

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.decoder_hidden_size
        released = config.coordinate_layout == "released"
        self.crosses = config.decoder_attention == "cross"
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.coordinates = (
            ReleasedCoordinates(config, width, of_own_image=True)
            if released
            else A2MAECoordinates(config, width, tells_images_apart=True)
        )
        self.memory_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps) if self.crosses else nn.Identity()
        self.layers = nn.ModuleList(
            A2MAELayer(config, width, config.decoder_num_attention_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.patch_prediction = A2MAEPatchPrediction(config, PATCH_FEATURES if config.feature_targets else 0)

    def forward(
        self,
        latent: torch.Tensor,
        visible: dict[str, torch.Tensor],
        target: dict[str, torch.Tensor],
        visible_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the tokens of a batch.

        Args:
            latent: (B, 1 + K, hidden_size) encoded visible tokens, the class token first.
            visible: The batch of the K visible tokens.
            target: The batch of the M tokens to predict; under "self" that of all L tokens.
            visible_ids: (B, K) int64, the place of the visible tokens among all.

        Returns:
            (B, M, C, P·P) predicted values, in the bands of the image of each token; followed on the last axis by
            `PATCH_FEATURES` under `feature_targets`.
        """
        class_token, encoded = self.embed(latent).split([1, latent.shape[1] - 1], dim=1)
        queries = self.mask_token + self.coordinates(target).to(encoded.dtype)
        if self.crosses:
            encoded = encoded + self.coordinates(visible).to(encoded.dtype)
            memory = self.memory_layernorm(torch.cat([class_token, encoded], dim=1))
            exists, hidden_states = with_class_token(visible.get("attention_mask")), queries
        else:
            # What is padding among the visible is left as it stands, a masked token.
            places = visible_ids[..., None].expand_as(encoded)
            change = encoded - self.mask_token
            if "attention_mask" in visible:
                change = change * visible["attention_mask"][..., None]
            hidden_states = torch.cat([class_token, queries.scatter_add(1, places, change)], dim=1)
            exists, memory = with_class_token(target.get("attention_mask")), None
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=exists, encoder_hidden_states=memory
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, memory)
        if not self.crosses:
            hidden_states = hidden_states[:, 1:]
        return self.patch_prediction(self.layernorm(hidden_states), target)


class A2MAEForPreTraining(A2MAEPreTrainedModel):
    """The masked autoencoder: hide patches by the anchor-aware rule, predict them from the rest of the set."""

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__(config)
        self.a2mae = A2MAEModel(config)
        self.decoder = A2MAEDecoder(config)
        if config.contrastive_weight:
            # Mean and standard deviation, as they say more of a set than the mean alone.
            self.projector = A2MAEProjector(2 * config.hidden_size, 2 * config.hidden_size, config.hidden_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        set_ids: torch.Tensor | None = None,
        **kwargs: Unpack[A2MAEKwargs],
    ) -> A2MAEForPreTrainingOutput:
        """Mask, encode, decode, and compare.

        Args:
            pixel_values: (B, L, C, P·P) float, standardised patches.
            noise: (B, 3, L) standard normal numbers, drawn when left out; all that is random follows from them. The
                mask from the first two (see `masking_a2mae.py`), the choice of tokens to decode from the third, and
                which metadata training hides from the trailing digits of the first token's.
            mask: (B, L) bool, True where a token is to be hidden, instead of the anchor-aware rule.
            set_ids: (B,) int64, equal where the batch holds several views of one set, which `contrastive_weight` asks
                for; every set counts as another when left out.
            **kwargs: The rest of the batch, see `A2MAEInputs`, and what `A2MAEModel.forward` takes besides. Without
                `patch_positions` or `grid_shapes` it is unknown what lies on the same ground, and images hide
                independently.

        Returns:
            Loss, predictions, the tokens they are for, and the mask.

        Raises:
            ValueError: The batch does not fit the checkpoint; the message names the key.
        """
        inputs, options = split_batch(kwargs)
        batch = complete_batch(self.config, pixel_values=pixel_values, **inputs)
        exists = batch.get("attention_mask", torch.ones_like(batch["image_ids"])).bool()
        if noise is None:
            noise = torch.randn(exists.shape[0], 3, exists.shape[1], device=exists.device)
        elif noise.shape != (exists.shape[0], 3, exists.shape[1]):
            raise ValueError(f"noise has shape {tuple(noise.shape)}, not (sets, 3, tokens) as the batch asks for.")
        if mask is not None and mask.shape != exists.shape:
            raise ValueError(f"mask has shape {tuple(mask.shape)}, not (sets, tokens) = {tuple(exists.shape)}.")
        visible = self.draw_visible(batch, exists, noise) if mask is None else exists & ~mask.bool()
        hidden = exists & ~visible
        if self.training:
            batch = self.drop_metadata(batch, noise)

        at_most = most_visible_tokens(exists.shape[1], self.config.mask_ratio) if mask is None else None
        visible_ids, visible_batch = select_tokens(batch, visible, at_most)
        encoded = self.a2mae(**visible_batch, **options)

        wanted = exists if mask is None and self.config.mask_ratio == 0 else hidden
        if self.config.decoder_attention == "self":
            decoded, target_batch = wanted, batch
            token_ids = torch.arange(exists.shape[1], device=exists.device).expand_as(exists)
            token_ids = torch.where(exists, token_ids, -1)
        else:
            at_most = self.count_targets(wanted, batch["ground_resolutions"].shape[1], mask_is_drawn=mask is None)
            share = self.config.decode_ratio if self.training else 1.0
            quota = (wanted.sum(1) * share).ceil().long()
            token_ids, target_batch = select_tokens(batch, wanted, at_most, priority=noise[:, 2], quota=quota)
            decoded = target_batch["attention_mask"]
            token_ids = torch.where(decoded, token_ids, -1)
        predicted = self.decoder(encoded.last_hidden_state, visible_batch, target_batch, visible_ids)
        num_pixels = pixel_values.shape[-1]
        logits = predicted[..., :num_pixels]
        loss = reconstruction_loss(logits, target_batch, decoded, self.config.normalize_targets)
        if self.config.feature_targets:
            loss = loss + feature_loss(predicted[..., num_pixels:], target_batch, decoded)
        if self.config.contrastive_weight and set_ids is not None:
            summary = pool(encoded.last_hidden_state, visible_batch["attention_mask"], "mean_std")
            views = self.projector(summary)
            temperature = self.config.contrastive_temperature
            loss = loss + self.config.contrastive_weight * contrastive_loss(views, set_ids, temperature)
        return A2MAEForPreTrainingOutput(
            loss=loss,
            logits=logits,
            token_ids=token_ids,
            mask=hidden,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def draw_visible(self, batch: dict[str, torch.Tensor], exists: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return (B, L) bool, True where a token stays visible under the masking rule of the configuration."""
        known = "patch_positions" in batch and "grid_shapes" in batch
        return anchor_aware_mask(
            noise.float(),
            batch["image_ids"],
            exists,
            batch["patch_positions"] if known else None,
            batch["grid_shapes"] if known else None,
            batch["ground_resolutions"],
            batch["acquisition_times"],
            batch["source_ids"],
            batch["anchor_ids"],
            strategy=self.config.masking_strategy,
            mask_ratio=self.config.mask_ratio,
            same_sensor_days=self.config.same_sensor_days,
            other_sensor_days=self.config.other_sensor_days,
        )

    def drop_metadata(self, batch: dict[str, torch.Tensor], noise: torch.Tensor) -> dict[str, torch.Tensor]:
        """Make place, time and scale unknown, each in a random share of the sets that follows from the noise."""
        # The trailing digits of a normal number are uniform, and tell nothing of it: what they decide does not depend
        # on the mask, and a set meets the same fate in whatever batch or process it comes.
        uniform = (noise[:, :, 0].float().abs() * 4096) % 1
        unknown = {"geographic_codes": -1, "acquisition_times": UNKNOWN_TIME, "ground_resolutions": 0}
        dropped = {}
        for draw, (key, value) in zip(uniform.unbind(1), unknown.items(), strict=True):
            if key in batch:
                lost = (draw < self.config.metadata_dropout)[:, None]
                dropped[key] = batch[key].masked_fill(lost, value)
        return {**batch, **dropped}

    def count_targets(self, wanted: torch.Tensor, num_images: int, mask_is_drawn: bool) -> int:
        """Return how many tokens at most are decoded; from shapes alone where the mask is drawn by the rule."""
        if mask_is_drawn:
            count = most_hidden_tokens(wanted.shape[1], num_images, self.config.mask_ratio or 1.0)
        else:
            count = max(1, int(wanted.sum(1).max()))
        return math.ceil(count * self.config.decode_ratio) if self.training else count


class A2MAEBackbone(BackboneMixin, A2MAEPreTrainedModel):
    """The encoder as a backbone: feature maps of chosen layers, per set or per image."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^projector\."]  # noqa: RUF012

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__(config)
        self.a2mae = A2MAEModel(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embedding."""
        return self.a2mae.patch_embedding

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[A2MAEKwargs]) -> BackboneOutput:
        """Encode the batch and fold the layers named in `config.out_features` into maps.

        Args:
            pixel_values: (B, L, C, P·P) float, standardised patches.
            **kwargs: The rest of the batch, see `A2MAEInputs`, and what `A2MAEModel.forward` takes besides. Maps need
                `grid_shapes`, and those of a set `patch_positions` and `ground_resolutions`.

        Returns:
            `feature_maps`, one per stage: (B, hidden_size, H, W) on the patch grid of the anchor for
            `feature_fusion="set"`, every date and sensor having one vote; (B, T, hidden_size, H, W), zero beyond the
            grid of an image and where it has no data, for "image".

        Raises:
            ValueError: The batch lacks what folding needs; the message names the key.
        """
        fuse = self.config.feature_fusion == "set"
        for key in ("grid_shapes", "patch_positions", "ground_resolutions") if fuse else ("grid_shapes",):
            if kwargs.get(key) is None:
                raise ValueError(
                    f"{key} is missing from the batch, without which tokens cannot be laid out as a map; pass the whole"
                    " output of A2MAEImageProcessor."
                )
        inputs, _ = split_batch(kwargs)
        batch = complete_batch(self.config, pixel_values=pixel_values, **inputs)
        encoded = self.a2mae(pixel_values, **kwargs)
        stages = [
            self.a2mae.layernorm(hidden_states)[:, 1:]
            for stage, hidden_states in zip(self.stage_names, encoded.hidden_states, strict=True)
            if stage in self.out_features
        ]
        # All stages at once: where the patches lie is the same for each.
        tokens = torch.cat(stages, dim=-1)
        if fuse:
            maps = fuse_on_anchor_grid(
                tokens,
                batch.get("attention_mask"),
                batch["image_ids"],
                batch["patch_positions"],
                batch["ground_resolutions"],
                batch["anchor_ids"],
                batch["grid_shapes"],
                self.config.patch_size,
            )
        else:
            if "attention_mask" in batch:
                tokens = tokens * batch["attention_mask"][..., None]
            maps, _ = fold_tokens(tokens, batch["grid_shapes"])
        feature_maps = maps.split(self.config.hidden_size, dim=-3)
        return BackboneOutput(
            feature_maps=tuple(feature_maps),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


__all__ = ["A2MAEBackbone", "A2MAEForPreTraining", "A2MAEModel", "A2MAEPreTrainedModel"]
