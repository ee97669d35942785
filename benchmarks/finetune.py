"""Speed and memory of fine-tuning against ViT of equal size and tokens; run `python benchmarks/finetune.py`.

Classification of sets of 576 tokens, forward, backward and AdamW, float32, two threads, both in turn in one process:
all weights, LoRA (rank 8 beside queries and values, and the head), and the head alone on features that were computed
before. The other is `ViTForImageClassification` of transformers with all its weights, in every row. A ratio above 1
means that A2-MAE is faster.
"""

import argparse

import torch
from peers import NUM_BANDS, NUM_THREADS, Step, batches, configurations, print_header, report, training_step
from transformers import ViTConfig, ViTForImageClassification

from a2mae_hub.modeling.tasks_a2mae import A2MAEForImageClassification
from a2mae_hub.training.frozen import HeadOnFeatures
from a2mae_hub.training.task_models import with_adapters

NUM_CLASSES = 10


def finetune_step(ours: bool, mode: str, size: str, num_sets: int) -> Step:
    """Return a training step of one of the classifiers."""
    config, _ = configurations(size, pooling="mean_std", num_labels=NUM_CLASSES)
    labels = torch.arange(num_sets) % NUM_CLASSES
    batch = {**batches(config, num_sets)[0 if ours else 1], "labels": labels}
    if not ours:
        shared = "hidden_size num_hidden_layers num_attention_heads intermediate_size patch_size layer_norm_eps"
        facts = {name: getattr(config, name) for name in shared.split()}
        side = batch["pixel_values"].shape[-1]
        theirs = ViTConfig(image_size=side, num_channels=NUM_BANDS, **facts)
        theirs.num_labels = NUM_CLASSES
        return training_step(ViTForImageClassification(theirs), batch)
    model = A2MAEForImageClassification(config)
    if mode == "lora":
        return training_step(with_adapters(model), batch)
    if mode == "frozen":
        width = 2 * config.hidden_size
        features = torch.randn(num_sets, width, generator=torch.Generator().manual_seed(0))
        return training_step(HeadOnFeatures(model), {"pooler_output": features, "labels": labels})
    return training_step(model, batch)


def main() -> None:
    """Print one row per size and mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(NUM_THREADS)
    print_header("Fine-tuning step")
    for size, num_sets in (("nano", 16), ("tiny", 8), ("base", 4)):
        for mode in ("full", "lora", "frozen"):
            report(f"{size}, {num_sets} sets, {mode}", finetune_step, rounds, mode, size, num_sets)


if __name__ == "__main__":
    main()
