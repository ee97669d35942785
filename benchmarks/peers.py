"""The two models that the benchmarks compare: A2-MAE and the library's ViT-MAE, of equal size, on equal work.

Both see the same number of pixels of six bands: three images of a set as 3 × (12 × 16) patches here, one square image
of 24 × 24 patches there. Width, depth, heads, decoder, patch size and mask ratio are equal.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.modeling_a2mae import A2MAEForPreTraining, A2MAEModel

NUM_IMAGES, ROWS, COLUMNS, NUM_BANDS = 3, 12, 16, 6
NUM_THREADS = 2

Step = Callable[[], object]


def configurations(size: str, **overrides: object) -> tuple[A2MAEConfig, ViTMAEConfig]:
    """Return the two configurations of one size ("nano", "tiny", "base", "large")."""
    ours = getattr(A2MAEConfig, size)(**overrides)
    shared = (
        "hidden_size num_hidden_layers num_attention_heads intermediate_size patch_size mask_ratio decoder_hidden_size"
        " decoder_num_hidden_layers decoder_num_attention_heads decoder_intermediate_size layer_norm_eps"
    )
    theirs = ViTMAEConfig(
        image_size=24 * ours.patch_size,
        num_channels=NUM_BANDS,
        **{name: getattr(ours, name) for name in shared.split()},
    )
    return ours, theirs


def batches(config: A2MAEConfig, num_sets: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the inputs of the two models: one set of three 10 m images, two of one sensor, and the same pixels."""
    generator = torch.Generator().manual_seed(0)
    patch = config.patch_size
    num_tokens = NUM_IMAGES * ROWS * COLUMNS
    pixel_values = torch.randn(num_sets, num_tokens, NUM_BANDS, patch**2, generator=generator)
    row, column = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    positions = torch.stack([row, column], dim=-1).flatten(0, 1).repeat(NUM_IMAGES, 1) * 10.0 * patch
    # Blue to short-wave infrared of Sentinel-2, Landsat-8, Sentinel-2.
    sentinel_2 = torch.tensor([492.4, 559.8, 664.6, 832.8, 1613.7, 2202.4])
    landsat_8 = torch.tensor([482.0, 561.4, 654.6, 864.7, 1608.9, 2200.7])

    def every_set(value: torch.Tensor) -> torch.Tensor:
        return value.expand(num_sets, *value.shape).contiguous()

    ours = {
        "pixel_values": pixel_values,
        "attention_mask": torch.ones(num_sets, num_tokens, dtype=torch.bool),
        "image_ids": every_set(torch.arange(NUM_IMAGES).repeat_interleave(ROWS * COLUMNS)),
        "patch_positions": every_set(positions),
        "band_wavelengths": every_set(torch.stack([sentinel_2, landsat_8, sentinel_2])),
        "band_widths": every_set(torch.full((NUM_IMAGES, NUM_BANDS), 60.0)),
        "ground_resolutions": every_set(torch.full((NUM_IMAGES,), 10.0)),
        "acquisition_times": every_set(torch.tensor([0, 600, 1440 * 200])),
        "source_ids": every_set(torch.tensor([0, 1, 0])),
        "geographic_codes": every_set(torch.randint(0, 2**32, (8,), generator=generator)),
        "anchor_ids": torch.zeros(num_sets, dtype=torch.int64),
        "grid_shapes": every_set(torch.tensor([[ROWS, COLUMNS]] * NUM_IMAGES)),
    }
    side = 24 * patch
    theirs = {"pixel_values": pixel_values.flatten()[: num_sets * NUM_BANDS * side**2].view(-1, NUM_BANDS, side, side)}
    return ours, theirs


def encode_step(ours: bool, size: str, num_sets: int) -> Step:
    """Return a forward pass of one of the encoders, ViT-MAE with its masking off."""
    configs = configurations(size, mask_ratio=0.0)
    batch = batches(configs[0], num_sets)[0 if ours else 1]
    model = (A2MAEModel(configs[0]) if ours else ViTMAEModel(configs[1])).eval()
    return torch.inference_mode()(lambda: model(**batch))


def pretrain_step(ours: bool, size: str, num_sets: int, **overrides: object) -> Step:
    """Return a training step of one of the masked autoencoders: forward, backward, AdamW."""
    configs = configurations(size, **overrides)
    batch = batches(configs[0], num_sets)[0 if ours else 1]
    return training_step(A2MAEForPreTraining(configs[0]) if ours else ViTMAEForPreTraining(configs[1]), batch)


def training_step(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Step:
    """Return a function that trains the model on the batch once."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(ours: Step, theirs: Step, rounds: int) -> tuple[float, float, list[float]]:
    """Run both in turn; return the median seconds of each, and the ratio theirs / ours of every round, sorted."""
    seconds: dict[Step, list[float]] = {ours: [], theirs: []}
    for warms_up in (True, *[False] * rounds):
        for step, taken in seconds.items():
            start = time.perf_counter()
            step()
            if not warms_up:
                taken.append(time.perf_counter() - start)
    ratios = sorted(there / here for here, there in zip(seconds[ours], seconds[theirs], strict=True))
    return statistics.median(seconds[ours]), statistics.median(seconds[theirs]), ratios


def peak_mebibytes(make_step: Callable[..., Step], *args: object, **kwargs: object) -> float:
    """Return the peak memory of a step above the imported libraries, model and batch included, in its own process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, make_step, args, kwargs).result()


def _peak(make_step: Callable[..., Step], args: tuple, kwargs: dict) -> float:
    torch.set_num_threads(NUM_THREADS)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, which counts the process that started this one
    step = make_step(*args, **kwargs)
    for _ in range(2):
        step()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    """Return resident memory of this process in MiB, as Linux counts it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def report(title: str, make_step: Callable[..., Step], rounds: int, *args: object, **kwargs: object) -> None:
    """Print one row: seconds and peak memory of both, and the ratio of speeds."""
    ours, theirs, ratios = compare(make_step(True, *args, **kwargs), make_step(False, *args, **kwargs), rounds)
    memory = [peak_mebibytes(make_step, is_ours, *args, **kwargs) for is_ours in (True, False)]
    print(
        f"{title:<30} {ours:7.3f} {theirs:8.3f}   {statistics.median(ratios):5.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        f"   {memory[0]:8.0f} {memory[1]:10.0f}",
        flush=True,
    )


def print_header(what: str) -> None:
    """Print the head of the table."""
    print(what)
    print(f"{'':<30} {'ours s':>7} {'theirs s':>8}   {'theirs / ours':<17} {'ours MiB':>9} {'theirs MiB':>10}")
