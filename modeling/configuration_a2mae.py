"""A2-MAE model configuration."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

# GeoSOT codes of the four corners of a footprint: 4 × (longitude, latitude) × 32 bits.
GEOGRAPHIC_BITS = 256


@strict
class A2MAEConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Configuration of the anchor-aware masked autoencoder; the defaults are `A2MAEConfig.base()`.

    Only what its name does not tell is explained.

    Args:
        patch_size: Side of a patch in pixels, whatever the ground resolution of the image.
        spectral_projection: "basis" mixes the bands of any sensor into `spectral_basis_size` virtual bands, with
            weights that follow from wavelength and width. "identity" takes `num_channels` bands as they come, as the
            released network does.
        spectral_hidden_size: Width of the network from wavelength features to mixing weights.
        num_channels: Bands per image under `spectral_projection="identity"`; unused otherwise.
        coordinate_layout: "summed" adds learned projections of ground position, scale, time, spectrum and place.
            "released" concatenates place bits and sine-cosines of the position at the ground resolution of
            each of `released_num_images` images, as the released network does.
        geographic_level: Leading bits of each GeoSOT coordinate that the model sees, up to 32. 21 bits resolve one arc
            second (31 m of latitude); finer bits are noise to learn by heart. 0 leaves the place out, as is right for
            a model that has seen few places and is to serve everywhere. Unused by the released layout, which reads all
            32.
        metadata_dropout: Probability with which pre-training hides each of place, time and scale of a set, so that a
            model also answers without them.
        mask_ratio: Share of the tokens of an image that is hidden in pre-training, in [0, 1). With 0 nothing is hidden,
            and the loss is taken over all tokens.
        masking_strategy: "anchor", "independent", "tube" or "random"; see `masking_a2mae.py`.
        same_sensor_days: Time gap in days at which the mask of an image no longer follows that of an anchor of the same
            sensor.
        other_sensor_days: The same for an anchor of another sensor.
        decoder_attention: "self" runs the decoder over all tokens, as MAE and the released network do. "cross" lets
            masked tokens attend to the visible ones only, which costs a fraction.
        decode_ratio: Share of the masked tokens decoded in a training step under `decoder_attention="cross"`. Outside
            training, all are.
        normalize_targets: Predict each patch after removing its own mean and standard deviation.
        feature_targets: Predict of each patch and band also the mean, the contrast and the orientations of gradients.
        contrastive_weight: Weight of telling views of one set from those of others; 0 leaves it out.
        contrastive_temperature: What similarities of views are divided by.
        pooling: What `pooler_output` holds: the "class" token, the "mean" of the patch tokens, or their mean followed
            by their standard deviation ("mean_std", twice as wide).
        feature_fusion: Feature maps of the backbone: "set" fuses the images of a set on the anchor's patch grid,
            "image" gives one map per image.
        segmentation_head: "linear" interpolates a linear layer on the tokens; "fpn" enlarges tokens of several layers
            step by step and joins convolutions of the anchor's pixels, for borders sharper than a patch.
        change_head: "difference" compares dates token by token and pixel by pixel; "attention" first lets the tokens of
            a date attend to those of the other at the same place and around it.
        head_hidden_size: Width of the heads "fpn", "difference" and "attention"; half of it at full resolution.
        class_weights: What an example of each class weighs in the loss, one number per class; of labels that are yes or
            no, what a yes weighs. Of no effect on a regression.
        semantic_loss_ignore_index: Label of pixels that the loss leaves out.

    Example:
        ```python
        >>> from a2mae_hub import A2MAEConfig, A2MAEModel

        >>> config = A2MAEConfig.nano(mask_ratio=0.6)
        >>> model = A2MAEModel(config)
        ```
    """

    model_type = "a2mae"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    patch_size: int = 16

    spectral_projection: Literal["basis", "identity"] = "basis"
    spectral_basis_size: int = 16
    spectral_hidden_size: int = 64
    num_channels: int = 3
    coordinate_layout: Literal["summed", "released"] = "summed"
    released_num_images: int = 3
    geographic_level: int = 21
    metadata_dropout: float | int = 0.25

    mask_ratio: float | int = 0.75
    masking_strategy: Literal["anchor", "independent", "tube", "random"] = "anchor"
    same_sensor_days: float | int = 10.0
    other_sensor_days: float | int = 90.0

    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 4
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    decoder_attention: Literal["self", "cross"] = "cross"
    decode_ratio: float | int = 1 / 3
    normalize_targets: bool = False
    feature_targets: bool = False
    contrastive_weight: float | int = 0.0
    contrastive_temperature: float = 0.1

    pooling: Literal["class", "mean", "mean_std"] = "mean"
    feature_fusion: Literal["set", "image"] = "set"

    segmentation_head: Literal["linear", "fpn"] = "fpn"
    change_head: Literal["difference", "attention"] = "difference"
    head_hidden_size: int = 64
    class_weights: list[float | int] | None = None
    semantic_loss_ignore_index: int = 255
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Name the stages of the backbone, then check that the numbers fit together."""
        self.stage_names = ["stem"] + [f"stage{layer + 1}" for layer in range(self.num_hidden_layers)]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Check the numbers against each other; `strict` calls this at construction.

        Raises:
            ValueError: An argument does not fit; the message names it and what would.
        """
        positive = (
            "hidden_size num_hidden_layers num_attention_heads intermediate_size patch_size spectral_basis_size"
            " spectral_hidden_size num_channels released_num_images decoder_hidden_size decoder_num_hidden_layers"
            " decoder_num_attention_heads decoder_intermediate_size same_sensor_days other_sensor_days"
            " head_hidden_size"
        )
        for name in positive.split():
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0.")
        for size, heads in (
            ("hidden_size", "num_attention_heads"),
            ("decoder_hidden_size", "decoder_num_attention_heads"),
        ):
            if getattr(self, size) % getattr(self, heads):
                raise ValueError(f"{size}={getattr(self, size)} must be a multiple of {heads}={getattr(self, heads)}.")
        if self.head_hidden_size % 2:
            raise ValueError(
                f"head_hidden_size={self.head_hidden_size} must be even, as half of it is taken at full resolution."
            )
        for weight in self.class_weights or ():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"class_weights={self.class_weights} must be finite numbers, at least 0.")
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio} must be at least 0 and less than 1.")
        if not 0 < self.decode_ratio <= 1:
            raise ValueError(f"decode_ratio={self.decode_ratio} must be greater than 0 and at most 1.")
        if not 0 <= self.contrastive_weight < float("inf") or not self.contrastive_temperature > 0:
            raise ValueError(
                f"contrastive_weight={self.contrastive_weight} must be at least 0, and"
                f" contrastive_temperature={self.contrastive_temperature} greater than 0."
            )
        if not 0 <= self.metadata_dropout <= 1:
            raise ValueError(f"metadata_dropout={self.metadata_dropout} must be a probability, from 0 to 1.")
        if not 0 <= self.geographic_level <= 32:
            raise ValueError(f"geographic_level={self.geographic_level} must be a number of bits, from 0 to 32.")
        if self.coordinate_layout == "released":
            width = self.hidden_size - GEOGRAPHIC_BITS
            if width <= 0 or width % (4 * self.released_num_images):
                raise ValueError(
                    f"coordinate_layout='released' needs hidden_size − {GEOGRAPHIC_BITS} to be a positive multiple of"
                    f" 4 × released_num_images={self.released_num_images}, not hidden_size={self.hidden_size}."
                )
            if self.decoder_hidden_size % 4:
                raise ValueError(
                    "coordinate_layout='released' needs a multiple of 4 for"
                    f" decoder_hidden_size={self.decoder_hidden_size}."
                )

    @classmethod
    def nano(cls, **overrides: Any) -> "A2MAEConfig":
        """Return the configuration of about 1.5 million parameters, for a laptop and for tests on real data."""
        sizes = {
            "hidden_size": 128,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "patch_size": 8,
            "decoder_hidden_size": 96,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 384,
        }
        return cls(**{**sizes, **overrides})

    @classmethod
    def tiny(cls, **overrides: Any) -> "A2MAEConfig":
        """Return the configuration of a ViT-Ti encoder, about 6 million parameters without the decoder."""
        sizes = {
            "hidden_size": 192,
            "num_attention_heads": 3,
            "intermediate_size": 768,
            "patch_size": 8,
            "decoder_hidden_size": 192,
            "decoder_num_attention_heads": 3,
            "decoder_intermediate_size": 768,
        }
        return cls(**{**sizes, **overrides})

    @classmethod
    def base(cls, **overrides: Any) -> "A2MAEConfig":
        """Return the configuration of a ViT-B/16 encoder, about 90 million parameters."""
        return cls(**overrides)

    @classmethod
    def large(cls, **overrides: Any) -> "A2MAEConfig":
        """Return the configuration of a ViT-L/16 encoder, the size of the paper."""
        sizes = {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "decoder_num_hidden_layers": 8,
        }
        return cls(**{**sizes, **overrides})

    @classmethod
    def released(cls, **overrides: Any) -> "A2MAEConfig":
        """Return the network of the authors' release of July 2024 (github.com/ZhaoYi1222/AAMAE), ViT-L/16."""
        layout = {
            "spectral_projection": "identity",
            "coordinate_layout": "released",
            "decoder_attention": "self",
            "normalize_targets": True,
            "metadata_dropout": 0.0,
            "pooling": "class",
        }
        return cls.large(**{**layout, **overrides})


__all__ = ["A2MAEConfig"]
