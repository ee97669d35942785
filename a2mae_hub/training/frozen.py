"""Training of a head alone: what the encoder says of every image set is computed once, and read in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers.modeling_outputs import ImageClassifierOutput, SemanticSegmenterOutput

from a2mae_hub.modeling.batch_a2mae import complete_batch
from a2mae_hub.modeling.tasks_a2mae import A2MAEForImageClassification, A2MAEMapModel, A2MAETaskModel, pixel_loss

from .labelled import LabelledSets
from .task_batches import TaskCollator


class EncodedSets(Dataset):
    """Summaries of image sets with their labels.

    Args:
        batches: As `encode` returns them.
        names: What to call each set in messages.
    """

    def __init__(self, batches: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
        self.names = names
        self.columns = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}

    def __len__(self) -> int:
        """Return the number of sets."""
        return len(self.columns["labels"])

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """Return a batch, for which the data loader asks as a whole."""
        chosen = torch.as_tensor(indices)
        return {key: values[chosen] for key, values in self.columns.items()}


class EncodedMaps(Dataset):
    """Batches of image sets of any sizes with the states of the encoder; a batch keeps its sets in every epoch.

    Args:
        batches: As `encode` returns them.
        names: What to call each set in messages.
    """

    def __init__(self, batches: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
        self.batches, self.names = batches, names

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.batches)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """Return the one batch that is asked for."""
        (index,) = indices
        return self.batches[index]


class HeadOnFeatures(torch.nn.Module):
    """The head of a model, on what the encoder said before; its only weights are those of the head.

    Args:
        model: The model; its head is trained in place.
    """

    def __init__(self, model: A2MAETaskModel) -> None:
        super().__init__()
        self.head = model.get_submodule("classifier" if is_classifier(model) else "decode_head")
        self._whole = (model,)  # in a tuple, so that the encoder is no part of this

    def forward(self, labels: torch.Tensor, **batch: Any) -> ImageClassifierOutput | SemanticSegmenterOutput:
        """Return loss and logits for a batch of `EncodedSets` or `EncodedMaps`."""
        (model,) = self._whole
        if isinstance(model, A2MAEForImageClassification):
            logits = self.head(batch["pooler_output"])
            return ImageClassifierOutput(loss=model.classification_loss(logits, labels), logits=logits)
        assert isinstance(model, A2MAEMapModel)
        states = [batch["states"].get(str(layer)) for layer in range(model.config.num_hidden_layers + 1)]
        logits = self.head(
            tuple(states), {key: values for key, values in batch.items() if key != "states"}, model.a2mae
        )
        model.check_labels(labels, logits)
        logits = logits[..., : labels.shape[1], : labels.shape[2]]
        return SemanticSegmenterOutput(loss=pixel_loss(logits, labels, model.config), logits=logits)


def is_classifier(model: torch.nn.Module) -> bool:
    """Return whether a model answers for sets, and not for pixels."""
    return isinstance(model, A2MAEForImageClassification)


@torch.no_grad()
def encode(
    model: A2MAETaskModel, sets: LabelledSets, collator: TaskCollator, batch_size: int, workers: int = 0
) -> list[dict[str, Any]]:
    """Run the encoder over image sets once.

    Args:
        model: The model, on the device to use.
        sets: The image sets.
        collator: Makes batches of them.
        batch_size: Sets to a batch.
        workers: Processes that prepare batches; 0 prepares them in between.

    Returns:
        Batches on the processor: labels, indices, and `pooler_output` (B, D); or, for maps, `states` by number of the
        layer (those the head reads), and what else the head reads of a batch.
    """
    model.eval()
    loader: DataLoader = DataLoader(sets, batch_size, collate_fn=collator, num_workers=workers)
    encoded = []
    for batch in loader:
        kept: dict[str, Any] = {key: batch.pop(key) for key in ("labels", "indices")}
        inputs = {key: values.to(model.device) for key, values in batch.items()}
        if is_classifier(model):
            kept["pooler_output"] = model.a2mae(**inputs).pooler_output.cpu()
        else:
            outputs = model.a2mae(**inputs, output_hidden_states=True)
            projection = getattr(model.get_submodule("decode_head"), "layer_projection", None)
            states = {layer: outputs.hidden_states[layer] for layer in (projection.layers if projection else ())}
            states[model.config.num_hidden_layers] = outputs.last_hidden_state
            kept["states"] = {str(layer): state.cpu() for layer, state in states.items()}
            kept |= {key: values.cpu() for key, values in complete_batch(model.config, **inputs).items()}
        encoded.append(kept)
    return encoded


def whole_batch(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch as it is, in place of what makes one of examples."""
    return batch
