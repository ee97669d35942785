"""What happens beside the steps of a training: reports, seeds, a stop where the loss is lost, and figures."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from a2mae_hub.images import ImageSet
from a2mae_hub.inference import Checkpoint, reconstruct
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.modeling_a2mae import A2MAEForPreTraining


@contextmanager
def known_reporters(args: TrainingArguments) -> Iterator[None]:
    """Say of a Trainer that is made meanwhile, in a sentence, that what it is to report to is not installed."""
    try:
        yield
    except RuntimeError as error:
        told = ", ".join(cast(list[str], args.report_to))
        if not told or "installed" not in str(error):
            raise
        raise ImportError(f"report_to={told}: is not installed; pip install {told}, or leave it out.") from error


class SeedEveryStep(TrainerCallback):
    """Makes what a model draws in a step (dropped metadata, dropout) a function of seed, step and process.

    The saved state of the generators would not do for an exact resumption: a data loader that begins anew draws from
    them once more than one that goes on.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Seed all generators of torch."""
        key = np.random.SeedSequence((self.seed, state.global_step, args.process_index))
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))


class StopAtLostLoss(TrainerCallback):
    """Ends a run whose loss is no number any more; as a log precedes every checkpoint, none is saved of it."""

    def __init__(self) -> None:
        self._sound = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember the step that the run begins or goes on from."""
        self._sound = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the mean loss of the steps since the last log.

        Raises:
            ValueError: If it is NaN or infinite.
        """
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if math.isfinite(loss):
            self._sound = state.global_step
            return
        first, last = self._sound + 1, state.global_step
        where = f"at step {last}" if first == last else f"between step {first} and step {last}"
        raise ValueError(
            f"The loss became {loss} {where}; lower the learning rate or warm up for longer, in another output folder."
        )


class ReconstructionFigures(TrainerCallback):
    """Draws, at every checkpoint, how the model reconstructs one and the same image set.

    Args:
        folder: For the figures, `step-00000500.png` and so on.
        image_set: The set.
        processor: Turns it into input of the model.
    """

    def __init__(self, folder: Path, image_set: ImageSet, processor: A2MAEImageProcessor) -> None:
        self.folder, self.image_set, self.processor = folder, image_set, processor
        self._can_draw = True

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: A2MAEForPreTraining | None = None,
        **kwargs: Any,
    ) -> None:
        """Reconstruct in every process, so that none waits for another, and draw in the first."""
        if model is None or not self._can_draw:
            return
        was_training = model.training
        step = state.global_step
        try:
            checkpoint = Checkpoint(f"step {step}", model.eval(), self.processor, True)
            images, masks = reconstruct(checkpoint, self.image_set)
        finally:
            model.train(was_training)
        if not state.is_world_process_zero:
            return
        from a2mae_hub.plotting import plot_reconstruction

        try:
            plot_reconstruction(
                self.image_set, images, masks, self.folder / f"step-{step:08d}.png", title=f"step {step}"
            )
        except ImportError as error:
            print(f"a2mae: no figures of reconstructions: {error}", file=sys.stderr)
            self._can_draw = False
