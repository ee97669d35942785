"""`transformers.Trainer` with what fine-tuning asks of it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainingArguments

from .label_files import CLASSIFICATION
from .labelled import LabelledData
from .metrics import classification_scores, count_pixels, map_scores
from .task_models import parameter_groups


class TaskTrainer(Trainer):
    """A Trainer with learning rates of layers, names of the sets of a lost loss, and scores by counts.

    Args:
        model: What is trained.
        args: As a Trainer takes them.
        collators: For training and for validation, which is not augmented.
        data: The labelled sets.
        values: Mean and deviation of the values of a regression, whose labels are standardised by them.
        layer_decay: As in `parameter_groups`.
        **kwargs: What else a Trainer takes.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        *,
        collators: tuple[Any, Any],
        data: LabelledData,
        layer_decay: float | None,
        values: tuple[np.ndarray, np.ndarray] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, collators[0], compute_metrics=self.scores, **kwargs)
        self.collators, self.data, self.layer_decay, self.values = collators, data, layer_decay, values

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the loader of the validation part, which is not augmented."""
        self.data_collator = self.collators[1]
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = self.collators[0]

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW; matrices decay, and each layer learns at a rate of its own in full mode."""
        if self.optimizer is None:
            rate, trained = self.args.learning_rate, cast(torch.nn.Module, self.model if model is None else model)
            groups = parameter_groups(trained, self.args.weight_decay, self.layer_decay)
            for group in groups:
                group["lr"] = rate * group.pop("lr_scale", 1.0)
            self.optimizer = torch.optim.AdamW(groups, rate)
        return self.optimizer

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss.

        Raises:
            ValueError: If it is NaN or infinite in training; names the sets of the batch.
        """
        inputs = dict(inputs)
        indices = inputs.pop("indices")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training and not torch.isfinite(loss):
            names = [self.data.train.names[index] for index in indices.tolist()]
            raise ValueError(
                f"The loss became {loss.item()} at step {self.state.global_step + 1}, in the batch of"
                f" {', '.join(names)}; check the values and labels of these, or lower the learning rate in another"
                " output folder."
            )
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return loss, logits and labels; of maps counts of pixels in place of logits."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        logits, labels = outputs.logits.detach().float(), inputs["labels"]
        if self.data.task != CLASSIFICATION:
            logits = count_pixels(self.data.task, logits, labels)
            labels = inputs["indices"]
        return loss.detach(), logits, labels

    def scores(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the scores of the validation part."""
        answers, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        if self.data.task != CLASSIFICATION:
            return map_scores(self.data.task, answers.sum(0))
        if self.values is not None:
            mean, deviation = self.values
            answers, labels = (numbers * deviation + mean for numbers in (answers, labels))
        return classification_scores(answers, labels, self.data.problem_type)
