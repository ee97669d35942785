"""`transformers.Trainer` with what fine-tuning asks of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import (
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from a2mae_hub.modeling.heads_a2mae import SetStandardization
from a2mae_hub.modeling.tasks_a2mae import A2MAEForImageClassification

from .frozen import EncodedMaps
from .label_files import CLASSIFICATION
from .labelled import LabelledData
from .metrics import classification_scores, count_pixels, map_scores
from .task_models import parameter_groups

# Apart from the other numbers that are drawn by seed and place: a last 0 would be as none.
_MIXUP_STREAM = 0x6D6978


@dataclass(frozen=True)
class Mixup:
    """Mixup of what the encoder says of sets: x = λ·x_a + (1 − λ)·x_b, loss = λ·loss(y_a) + (1 − λ)·loss(y_b).

    λ ~ Beta(α, α) is one number for a batch, and b a permutation of a (Zhang et al. 2018, arXiv 1710.09412). Pixels
    of two sets have neither bands nor sizes in common, so that summaries are mixed (Verma et al. 2019, arXiv
    1806.05236): standardised ones, since mixtures vary less than sets, and running statistics are for prediction.

    Attributes:
        model: The classifier, whatever stands around it in training.
        alpha: α, greater than 0.
        seed: Of λ and of the permutation.
    """

    model: A2MAEForImageClassification
    alpha: float
    seed: int

    def draw(self, count: int, step: int, process: int) -> tuple[float, torch.Tensor]:
        """Return λ and the partner of every set, (count,) int64: a function of seed, step and process."""
        generator = np.random.default_rng((self.seed, step, process, _MIXUP_STREAM))
        share = float(generator.beta(self.alpha, self.alpha))
        return share, torch.from_numpy(generator.permutation(count))

    @contextmanager
    def mixed(self, model: torch.nn.Module, share: float, partners: torch.Tensor) -> Iterator[None]:
        """Make a model that holds the classifier, or its head, mix the summaries of a batch meanwhile."""

        def mix(module: torch.nn.Module, inputs: Any, summaries: torch.Tensor) -> torch.Tensor:
            return share * summaries + (1 - share) * summaries[partners]

        # Adapters keep a second head, which is not run.
        found = [module for module in model.modules() if isinstance(module, SetStandardization)]
        hooks = [module.register_forward_hook(mix) for module in found]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class ProgressBar(ProgressCallback):
    """A progress bar with the last figures behind it; that of the library prints them to standard output."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show loss and scores."""
        if self.training_bar is not None and logs is not None:
            shown = ("loss", args.metric_for_best_model)
            self.training_bar.set_postfix({key: f"{logs[key]:.4g}" for key in shown if key in logs})


class TaskTrainer(Trainer):
    """A Trainer with learning rates of layers, names of the sets of a lost loss, and scores by counts.

    It prints nothing; on a terminal, a progress bar.

    Args:
        model: What is trained.
        args: As a Trainer takes them.
        collators: For training and for validation, which is not augmented.
        data: The labelled sets.
        values: Mean and deviation of the values of a regression, whose labels are standardised by them.
        layer_decay: As in `parameter_groups`.
        head_learning_rate: Of the head; None takes the learning rate of all.
        mixup: What mixes the sets of a batch; None mixes none.
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
        head_learning_rate: float | None = None,
        mixup: Mixup | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, collators[0], compute_metrics=self.scores, **kwargs)
        self.collators, self.data, self.layer_decay, self.values = collators, data, layer_decay, values
        self.head_learning_rate, self.mixup = head_learning_rate, mixup
        self.judged: Any = self.eval_dataset
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ProgressBar)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the loader of the validation part, or of another one; neither is augmented."""
        self.judged = self.eval_dataset if eval_dataset is None else eval_dataset
        self.data_collator = self.collators[1]
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = self.collators[0]

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW; matrices decay; in full mode each layer, and where asked the head, has a rate of its own."""
        if self.optimizer is None:
            rate, trained = self.args.learning_rate, cast(torch.nn.Module, self.model if model is None else model)
            groups = parameter_groups(trained, self.args.weight_decay, self.layer_decay)
            for group in groups:
                group["lr"] = rate * group.pop("lr_scale", 1.0)
            if self.head_learning_rate is not None:
                groups = with_rate_of_head(trained, groups, self.head_learning_rate)
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
            ValueError: If it is NaN or infinite; names the sets of the batch.
        """
        inputs = dict(inputs)
        indices = inputs.pop("indices")
        if self.mixup is None or not model.training:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        else:
            labels = inputs["labels"]
            share, partners = self.mixup.draw(len(labels), self.state.global_step, self.args.process_index)
            partners = partners.to(labels.device)
            with self.mixup.mixed(model, share, partners):
                own, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            other = self.mixup.model.classification_loss(outputs.logits, labels[partners])
            loss = share * own + (1 - share) * other
        if not torch.isfinite(loss):
            names = [(self.data.train if model.training else self.judged).names[index] for index in indices.tolist()]
            when = f"at step {self.state.global_step + 1}" if model.training else f"after step {self.state.global_step}"
            raise ValueError(
                f"The loss became {loss.item()} {when}, in the batch of"
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
            logits, labels = count_pixels(self.data.task, logits, labels), inputs["indices"]
            if isinstance(self.train_dataset, EncodedMaps):
                # Whose examples are batches; several processes gather one row for each.
                logits, labels = logits.sum(0, keepdim=True), labels[:1]
        return loss.detach(), logits, labels

    def scores(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the scores of a part."""
        answers, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        if self.data.task != CLASSIFICATION:
            return map_scores(self.data.task, answers.sum(0))
        if self.values is not None:
            mean, deviation = self.values
            answers, labels = (numbers * deviation + mean for numbers in (answers, labels))
        return classification_scores(answers, labels, self.data.problem_type)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Prefer the later of epochs alike, whose learning rate was lower: on a few sets many are."""
        is_best = super()._determine_best_metric(metrics, trial)
        if not is_best and metrics[str(self.args.metric_for_best_model)] == self.state.best_metric:
            self.state.best_global_step, is_best = self.state.global_step, True
        return is_best

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model, without what peft has to say of vocabularies, which images have none of."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Could not find a config file in", UserWarning)
            super()._save(output_dir, state_dict)


def with_rate_of_head(
    model: torch.nn.Module, groups: list[dict[str, Any]], learning_rate: float
) -> list[dict[str, Any]]:
    """Return groups of weights in which the head, which is all beside the encoder, has a learning rate of its own.

    Args:
        model: The model, or what stands in for it.
        groups: As an optimizer takes them, each with `lr`.
        learning_rate: Of the head.
    """
    head = {id(weight) for name, weight in model.named_parameters() if "a2mae" not in name.split(".")}
    split = []
    for group in groups:
        for is_head in (False, True):
            weights = [weight for weight in group["params"] if (id(weight) in head) == is_head]
            if weights:
                split.append({**group, "params": weights, "lr": learning_rate if is_head else group["lr"]})
    return split
