"""What each part of the model is worth: nano models that differ in one thing, trained alike, judged alike.

    python benchmarks/ablation.py SHARDS --data ../shared/data [--steps 250] [--seeds 3] [-o out/ablation.jsonl]

All variants of one seed see the same sets, bands, turns and noise in the same steps. Judged are frozen features of
single images (`docs/recipes/open_evaluation.yaml`) and the error of reconstructing sets kept for validation, in
standardised units, under the masks of the anchor rule for all. Runs that the output holds already are not repeated;
the table (mean ± standard deviation over seeds) is that of all runs in it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from a2mae_hub import A2MAEConfig, A2MAEForPreTraining, A2MAEImageProcessor
from a2mae_hub.evaluation import read_recipe
from a2mae_hub.evaluation.features import embed_images
from a2mae_hub.evaluation.probes import few_shot_accuracy, knn_accuracy, linear_accuracy
from a2mae_hub.evaluation.sources import read_classified_images
from a2mae_hub.inference import Checkpoint
from a2mae_hub.modeling.masking_a2mae import UNKNOWN_TIME
from a2mae_hub.modeling.tokens_a2mae import gather_images
from a2mae_hub.stssd import load
from a2mae_hub.training.augmentation import PretrainingCollator
from a2mae_hub.training.order import EndlessSets
from a2mae_hub.training.pretrain import streams_by_kind

RECIPE = Path(__file__).resolve().parents[1] / "docs" / "recipes" / "open_evaluation.yaml"
BATCH_SIZE, LEARNING_RATE, WARM_UP = 32, 1.5e-3, 50
VALIDATION_BATCHES = 16
SIDE = 64  # pixels, of the images that are judged
Batch = dict[str, torch.Tensor]


# What the variants change. Masks are drawn before coordinates are computed, so that they stay the same.


class Changed(nn.Module):
    """Coordinates of a batch in which something was changed."""

    def __init__(self, coordinates: nn.Module, change: Callable[[Batch], Batch]) -> None:
        super().__init__()
        self.coordinates, self.change = coordinates, change

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the (B, L, width) coordinates of the changed batch."""
        return self.coordinates(self.change(batch))


def without_place(batch: Batch) -> Batch:
    """Leave out the geographic code."""
    return {key: value for key, value in batch.items() if key != "geographic_codes"}


def without_time(batch: Batch) -> Batch:
    """Make every acquisition time unknown."""
    return {**batch, "acquisition_times": torch.full_like(batch["acquisition_times"], UNKNOWN_TIME)}


def positions_in_patches(batch: Batch) -> Batch:
    """Count positions in patches of each image, as if all were of 10 m, and not in metres on the ground."""
    scale = 10 / gather_images(batch["ground_resolutions"], batch["image_ids"]).clamp(min=1e-6)
    return {**batch, "patch_positions": batch["patch_positions"] * scale[..., None]}


class BandSlots(nn.Module):
    """Puts the bands of an image into the slots of its sensor, where every band has a place of its own."""

    slots: torch.Tensor

    def __init__(self, processor: A2MAEImageProcessor) -> None:
        super().__init__()
        most = max(len(sensor.bands) for sensor in processor.sensors)
        slots = torch.zeros(len(processor.sensors), most)
        for index, sensor in enumerate(processor.sensors):
            slots[index, : len(sensor.bands)] = torch.tensor([band.wavelength for band in sensor.bands])
        self.register_buffer("slots", slots, persistent=False)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return (B, T, slots, C), 1 where a band has its slot."""
        of_image = self.slots[batch["source_ids"]][..., None]
        wavelengths = batch["band_wavelengths"][:, :, None]
        return ((of_image - wavelengths).abs() < 0.01).float() * (wavelengths > 0)


class PerSensorEmbedding(nn.Module):
    """A patch embedding for every sensor, as models without a spectral projection have."""

    def __init__(self, config: A2MAEConfig, processor: A2MAEImageProcessor) -> None:
        super().__init__()
        self.slots = BandSlots(processor)
        width = self.slots.slots.shape[1] * config.patch_size**2
        self.hidden_size = config.hidden_size
        self.projections = nn.ModuleList(nn.Linear(width, config.hidden_size) for _ in processor.sensors)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the (B, L, hidden_size) embeddings of a batch."""
        placed = gather_images(self.slots(batch), batch["image_ids"]) @ batch["pixel_values"]
        sources = batch["source_ids"].gather(1, batch["image_ids"])
        embedded = placed.new_zeros(*sources.shape, self.hidden_size)
        for source in sources.unique().tolist():
            chosen = sources == source
            embedded[chosen] = self.projections[source](placed[chosen].flatten(1))
        return embedded


class PerSensorPrediction(nn.Module):
    """The mirror of `PerSensorEmbedding`."""

    def __init__(self, config: A2MAEConfig, processor: A2MAEImageProcessor, outputs: int) -> None:
        super().__init__()
        self.slots = BandSlots(processor)
        self.num_slots, self.outputs = self.slots.slots.shape[1], outputs
        self.projections = nn.ModuleList(
            nn.Linear(config.decoder_hidden_size, self.num_slots * outputs) for _ in processor.sensors
        )

    def forward(self, hidden_states: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return (B, M, C, outputs) values."""
        sources = batch["source_ids"].gather(1, batch["image_ids"])
        predicted = hidden_states.new_zeros(*sources.shape, self.num_slots * self.outputs)
        for source in sources.unique().tolist():
            chosen = sources == source
            predicted[chosen] = self.projections[source](hidden_states[chosen])
        slots = gather_images(self.slots(batch), batch["image_ids"])
        return slots.transpose(2, 3) @ predicted.unflatten(-1, (self.num_slots, -1))


def changed(change: Callable[[Batch], Batch]) -> Callable[[A2MAEForPreTraining, A2MAEImageProcessor], None]:
    """Return what makes encoder and decoder compute the coordinates of a changed batch."""

    def apply(model: A2MAEForPreTraining, _: A2MAEImageProcessor) -> None:
        model.a2mae.coordinates = Changed(model.a2mae.coordinates, change)
        model.decoder.coordinates = Changed(model.decoder.coordinates, change)

    return apply


def per_sensor(model: A2MAEForPreTraining, processor: A2MAEImageProcessor) -> None:
    """Give every sensor a patch embedding, and a prediction, of its own."""
    prediction = model.decoder.patch_prediction
    outputs = prediction.projection.out_features // prediction.num_virtual  # of each band: pixels, and features
    model.a2mae.patch_embedding = PerSensorEmbedding(model.config, processor)
    model.decoder.patch_prediction = PerSensorPrediction(model.config, processor, outputs)


ALL: dict[str, object] = {"feature_targets": True, "contrastive_weight": 1.0}
Apply = Callable[[A2MAEForPreTraining, A2MAEImageProcessor], None]
VARIANTS: dict[str, tuple[dict[str, object], Apply | None]] = {
    "as shipped (masking anchor)": (ALL, None),
    "masking independent": ({**ALL, "masking_strategy": "independent"}, None),
    "masking tube": ({**ALL, "masking_strategy": "tube"}, None),
    "masking random": ({**ALL, "masking_strategy": "random"}, None),
    "without geographic code": (ALL, changed(without_place)),
    "without time": (ALL, changed(without_time)),
    "positions in patches, not metres": (ALL, changed(positions_in_patches)),
    "a patch embedding per sensor": (ALL, per_sensor),
    "without views": ({**ALL, "contrastive_weight": 0.0}, None),
    "without features": ({**ALL, "feature_targets": False}, None),
    "pixels alone": ({}, None),
}


def train(shards: list[str], name: str, seed: int, steps: int) -> tuple[A2MAEForPreTraining, A2MAEImageProcessor]:
    """Train one variant."""
    settings, apply = VARIANTS[name]
    torch.manual_seed(seed)
    model = A2MAEForPreTraining(A2MAEConfig.nano(**settings))
    processor = A2MAEImageProcessor(patch_size=model.config.patch_size)
    if apply is not None:
        apply(model, processor)
    model.train()
    matrices = [weight for weight in model.parameters() if sum(side > 1 for side in weight.shape) > 1]
    others = [weight for weight in model.parameters() if sum(side > 1 for side in weight.shape) <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    streams = [stream for path in shards for _, stream in streams_by_kind(path, seed)]
    sets = EndlessSets(streams, BATCH_SIZE, model.config.patch_size, 1)
    # Two views for all, so that all see the same number of patches.
    loader = DataLoader(sets, BATCH_SIZE, num_workers=1, collate_fn=PretrainingCollator(processor, views=2))
    for batch in islice(loader, steps):
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval(), processor


@torch.inference_mode()
def reconstruction_error(shards: list[str], model: A2MAEForPreTraining, processor: A2MAEImageProcessor) -> float:
    """Return the root mean squared error on sets of several images kept for validation, in standardised units."""
    model.config.masking_strategy = "anchor"
    squares, count = 0.0, 0
    collate = PretrainingCollator(processor, augment=False)
    for path in shards:
        try:
            examples = [row for row in load(path, split="validation") if len(row["images"]) > 1]
        except ValueError:  # This data set keeps nothing for validation.
            continue
        for start in range(0, min(len(examples), VALIDATION_BATCHES * BATCH_SIZE), BATCH_SIZE):
            batch = collate(examples[start : start + BATCH_SIZE])
            outputs = model(**batch)
            chosen = outputs.token_ids.clamp(min=0)[:, :, None, None].expand_as(outputs.logits)
            valid = (outputs.token_ids >= 0)[:, :, None, None].expand_as(outputs.logits)
            if "pixel_mask" in batch:
                valid = valid & batch["pixel_mask"].gather(1, chosen)
            error = (outputs.logits - batch["pixel_values"].gather(1, chosen)).square()[valid]
            squares, count = squares + float(error.sum()), count + error.numel()
    return math.sqrt(squares / max(count, 1))


def judge(
    shards: list[str], data: Path, model: A2MAEForPreTraining, processor: A2MAEImageProcessor
) -> dict[str, float]:
    """Return the scores of a trained variant."""
    # Images at their own size, not magnified as in `a2mae evaluate`: a quarter of the time.
    checkpoint = Checkpoint("variant", model, A2MAEImageProcessor(processor.patch_size, size=SIDE), True)
    tasks = {task.name: task for task in read_recipe(RECIPE, data).tasks}
    pictures = read_classified_images(tasks["eurosat-rgb"], data)
    train_part, test_part = (embed_images(checkpoint, pictures.images_of(test=test)) for test in (False, True))
    labels = pictures.labels_of(test=False), pictures.labels_of(test=True)
    few = read_classified_images(tasks["eurosat-multispectral"], data)
    return {
        "EuroSAT-RGB kNN": knn_accuracy(train_part, labels[0], test_part, labels[1]),
        "EuroSAT-RGB linear": linear_accuracy(train_part, labels[0], test_part, labels[1]),
        "EuroSAT-MS few-shot": few_shot_accuracy(embed_images(checkpoint, few.images), few.labels)[0],
        "reconstruction RMSE": reconstruction_error(shards, model, processor),
    }


def print_table(runs: list[dict]) -> None:
    """Print mean and standard deviation over the seeds of every variant."""
    names = list(runs[0]["scores"])
    print(f"{'variant':<34}" + "".join(f"{name:>22}" for name in names) + f"{'seeds':>7}{'seconds':>9}")
    for variant in VARIANTS:
        own = [run for run in runs if run["variant"] == variant]
        if own:
            cells = []
            for name in names:
                values = [run["scores"][name] for run in own]
                cells.append(f"{np.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}")
            seconds = np.mean([run["seconds"] for run in own])
            print(f"{variant:<34}" + "".join(f"{cell:>22}" for cell in cells) + f"{len(own):>7}{seconds:>9.0f}")


def main() -> None:
    """Train and judge what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+", help="folders of shards")
    parser.add_argument("--data", type=Path, required=True, help="folder of the open evaluation recipe")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", "-o", type=Path, default=Path("out/ablation.jsonl"))
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    text = arguments.output.read_text() if arguments.output.exists() else ""
    runs = [run for run in map(json.loads, text.splitlines()) if run["steps"] == arguments.steps]
    done = {(run["variant"], run["seed"]) for run in runs}
    for seed in range(arguments.seeds):
        for variant in VARIANTS:
            if (variant, seed) not in done:
                started = time.perf_counter()
                model, processor = train(arguments.shards, variant, seed, arguments.steps)
                seconds = time.perf_counter() - started
                scores = judge(arguments.shards, arguments.data, model, processor)
                run = {"variant": variant, "seed": seed, "steps": arguments.steps, "seconds": seconds, "scores": scores}
                with arguments.output.open("a") as file:
                    file.write(json.dumps(run) + "\n")
                runs.append(run)
                print(json.dumps(run), flush=True)
    print_table(runs)


if __name__ == "__main__":
    main()
