"""Fine-tuning: classification of sets, segmentation, and change detection.

Top to bottom: what the models share, and the three models. Each answers once per set: images of several dates and
sensors have one vote each. Maps come on the pixel grid of the anchor. The heads are in `heads_a2mae.py`.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput, SemanticSegmenterOutput
from transformers.processing_utils import Unpack
from transformers.utils.generic import can_return_tuple

from .batch_a2mae import A2MAEKwargs, complete_batch, split_batch
from .configuration_a2mae import A2MAEConfig
from .heads_a2mae import (
    A2MAEChangeHead,
    A2MAEClassifier,
    A2MAELinearSegmentationHead,
    A2MAENeighbourAttention,
    A2MAEPyramidSegmentationHead,
    BandStandardization,
    FanInConvolution,
)
from .modeling_a2mae import A2MAEModel, A2MAEPreTrainedModel


class A2MAETaskModel(A2MAEPreTrainedModel):
    """What the models of all tasks share: the encoder, and how their heads start."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^projector\."]  # noqa: RUF012
    # The losses are means over what is labelled, which `Trainer` has to average over accumulated steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__(config)
        self.a2mae = A2MAEModel(config)
        weights = config.class_weights
        if weights is not None and len(weights) != config.num_labels:
            raise ValueError(
                f"class_weights has {len(weights)} numbers for num_labels={config.num_labels}; give one for each class."
            )

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embedding."""
        return self.a2mae.patch_embedding

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FanInConvolution):
            init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, A2MAENeighbourAttention):
            init.zeros_(module.place_bias)
        elif isinstance(module, BandStandardization):
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)


class A2MAEForImageClassification(A2MAETaskModel):
    """The encoder with a linear layer on the summary of a set: one prediction for all its dates and sensors."""

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__(config)
        self.classifier = A2MAEClassifier(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[A2MAEKwargs],
    ) -> ImageClassifierOutput:
        """Classify every set of the batch.

        Args:
            pixel_values: (B, L, C, P·P) float, standardised patches.
            labels: (B,) int64 for one class per set; (B, num_labels) for several ("multi_label_classification") or for
                values ("regression", where `num_labels=1` also takes (B,)). `config.problem_type` decides, and where it
                is None the library's rule: one label is a regression, integers are classes, floats are several.
            **kwargs: The rest of the batch, see `A2MAEInputs`, and what `A2MAEModel.forward` takes besides.

        Returns:
            Loss and logits (B, num_labels).

        Raises:
            ValueError: The batch does not fit the checkpoint; the message names the key.
        """
        encoded = self.a2mae(pixel_values, **kwargs)
        logits = self.classifier(encoded.pooler_output)
        return ImageClassifierOutput(
            loss=None if labels is None else self.classification_loss(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def classification_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the library's loss for the problem type, its classes weighted by `config.class_weights`."""
        config, logits = self.config, logits.float()
        several = config.problem_type in ("multi_label_classification", "regression") or config.num_labels == 1
        labels = labels.to(logits.device, torch.float32 if several or labels.is_floating_point() else torch.int64)
        unweighted = self.loss_function(labels, logits, config)  # Sets `problem_type` where it is None.
        if config.class_weights is None or config.problem_type == "regression":
            return unweighted
        weights = logits.new_tensor(config.class_weights)
        if config.problem_type == "multi_label_classification":
            # What is rare of a label is its presence.
            return nn.functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)
        return nn.functional.cross_entropy(logits, labels.flatten(), weights)


class A2MAEMapModel(A2MAETaskModel):
    """What the models that answer for every pixel of the anchor share: all but the head."""

    decode_head: nn.Module

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[A2MAEKwargs],
    ) -> SemanticSegmenterOutput:
        """Classify every pixel of the anchor of every set.

        Args:
            pixel_values: (B, L, C, P·P) float, standardised patches.
            labels: (B, height, width) int64 classes on the anchor's pixel grid, the upper left pixel first;
                `config.semantic_loss_ignore_index` where unknown and where sets of the batch are smaller. With
                `num_labels=1` they are 0 and 1.
            **kwargs: The rest of the batch, see `A2MAEInputs`, and what `A2MAEModel.forward` takes besides; maps need
                `grid_shapes`, `patch_positions` and `ground_resolutions`.

        Returns:
            Loss and logits (B, num_labels, height, width) of the size of the labels; without labels, whole patches of
            the largest anchor. `A2MAEImageProcessor.post_process_semantic_segmentation` cuts them to size.

        Raises:
            ValueError: The batch does not fit the checkpoint or lacks what a map needs, or labels do not fit the
                anchors; the message names the key.
        """
        for key in ("grid_shapes", "patch_positions", "ground_resolutions"):
            if kwargs.get(key) is None:
                raise ValueError(
                    f"{key} is missing from the batch, without which tokens cannot be laid out as a map; pass the whole"
                    " output of A2MAEImageProcessor."
                )
        wanted = kwargs.pop("output_hidden_states", None)
        wanted = self.config.output_hidden_states if wanted is None else wanted
        inputs, _ = split_batch(kwargs)
        batch = complete_batch(self.config, pixel_values=pixel_values, **inputs)
        encoded = self.a2mae(pixel_values, output_hidden_states=True, **kwargs)
        states = (*encoded.hidden_states[:-1], encoded.last_hidden_state)
        logits = self.decode_head(states, batch, self.a2mae)
        loss = None
        if labels is not None:
            self.check_labels(labels, logits)
            logits = logits[..., : labels.shape[1], : labels.shape[2]]
            loss = pixel_loss(logits, labels.to(logits.device), self.config)
        return SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=chosen_states(encoded.hidden_states, wanted),
            attentions=encoded.attentions,
        )

    def check_labels(self, labels: torch.Tensor, logits: torch.Tensor) -> None:
        """Compare labels with the pixel grid of the anchors, and their classes with the configuration."""
        patch, ignored, num_labels = self.config.patch_size, self.config.semantic_loss_ignore_index, logits.shape[1]
        rows, columns = logits.shape[-2:]
        fits = (
            labels.dim() == 3
            and rows - patch < labels.shape[1] <= rows
            and columns - patch < labels.shape[2] <= columns
        )
        if not fits or len(labels) != len(logits) or labels.is_floating_point():
            raise ValueError(
                f"labels has shape {tuple(labels.shape)} and type {labels.dtype}, but the anchors of this batch ask for"
                f" whole numbers of shape ({len(logits)}, {rows - patch + 1} to {rows}, {columns - patch + 1} to"
                f" {columns}); resample masks to the pixels of their anchor."
            )
        # Values are looked at only where that costs no wait for a device.
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            unknown = labels[(labels != ignored) & ((labels < 0) | (labels >= max(2, num_labels)))]
            if len(unknown):
                raise ValueError(
                    f"labels holds class {int(unknown[0])}, but this model has num_labels={num_labels}; raise it, or"
                    f" write semantic_loss_ignore_index={ignored} there."
                )


def chosen_states(states: tuple[torch.Tensor, ...], wanted: bool | int | list[int] | None) -> Any:
    """Return the hidden states that `output_hidden_states` asks for: all, or None, or None but at some places."""
    if wanted is None or isinstance(wanted, bool):
        return states if wanted else None
    places = {place % len(states) for place in ([wanted] if isinstance(wanted, int) else wanted)}
    return tuple(state if place in places else None for place, state in enumerate(states))


def pixel_loss(logits: torch.Tensor, labels: torch.Tensor, config: A2MAEConfig) -> torch.Tensor:
    """Return the cross entropy of pixels, the mean over those that are labelled, weighted by `config.class_weights`.

    As that of the library, which has no weights, and is not a number for a batch without any label.

    Args:
        logits: (B, num_labels, height, width); a single one is of the presence of class 1.
        labels: (B, height, width) int64.
        config: The configuration.
    """
    labels, labelled = labels.long(), labels != config.semantic_loss_ignore_index
    logits = logits.float()
    weights = None if config.class_weights is None else logits.new_tensor(config.class_weights)
    classes = labels.where(labelled, torch.zeros_like(labels))
    if logits.shape[1] == 1:
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits[:, 0], classes.float(), pos_weight=weights, reduction="none"
        )
        shares = labelled.float()
    else:
        losses = nn.functional.cross_entropy(logits, classes, reduction="none")
        shares = labelled.float() if weights is None else labelled * weights[classes]
    return (losses * shares).sum() / shares.sum().clamp(min=torch.finfo(torch.float32).tiny)


class A2MAEForSemanticSegmentation(A2MAEMapModel):
    """The encoder with a head that tells the class of every pixel of the anchor; see `config.segmentation_head`."""

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__(config)
        heads = {"linear": A2MAELinearSegmentationHead, "fpn": A2MAEPyramidSegmentationHead}
        self.decode_head = heads[config.segmentation_head](config)
        self.post_init()


class A2MAEForChangeDetection(A2MAEMapModel):
    """The encoder with a head that tells what changed on every pixel of the anchor; see `config.change_head`.

    Images of a set are put in the order of their acquisition times, or in that of the set where one is unknown.
    """

    def __init__(self, config: A2MAEConfig) -> None:
        super().__init__(config)
        self.decode_head = A2MAEChangeHead(config)
        self.post_init()


__all__ = ["A2MAEForChangeDetection", "A2MAEForImageClassification", "A2MAEForSemanticSegmentation"]
