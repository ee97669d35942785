"""Processes that train together, as torchrun and accelerate start them."""

from __future__ import annotations

import os

from transformers import TrainingArguments


def num_processes() -> int:
    """Return how many processes torchrun or accelerate have started, as they tell each."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rounded_up(batch_size: int) -> int:
    """Return the next batch size that the processes can share evenly."""
    return -(-batch_size // num_processes()) * num_processes()


def check_divisible(batch_size: int) -> None:
    """Raise ValueError where the processes cannot share a batch evenly."""
    processes = num_processes()
    if batch_size % processes:
        raise ValueError(
            f"batch_size={batch_size} cannot be divided among {processes} processes; give a multiple of {processes}."
        )


def share_batch(arguments: TrainingArguments, batch_size: int, command: str) -> None:
    """Give every process its part of a batch.

    Args:
        arguments: Of the Trainer; they have met torch, so they know what there is.
        batch_size: Image sets of a step, all processes together.
        command: The command of ours that runs, for errors.

    Raises:
        ValueError: If one process sees several GPUs, or torch cannot make the processes train together.
    """
    if arguments.n_gpu > 1:
        raise ValueError(
            f"{arguments.n_gpu} GPUs are visible to one process; start one for each with"
            f" `torchrun --nproc_per_node {arguments.n_gpu} -m a2mae_hub.cli {command} …`, or show it one with"
            " CUDA_VISIBLE_DEVICES=0."
        )
    if arguments.world_size != num_processes():
        raise ValueError(
            f"{num_processes()} processes were started, but torch cannot make them train together on this device;"
            " start one."
        )
    arguments.per_device_train_batch_size = arguments.per_device_eval_batch_size = batch_size // arguments.world_size
