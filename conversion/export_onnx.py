"""The encoder as an ONNX graph, for machines without torch; sets, tokens, images and bands of any number."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from a2mae_hub.inference import check_output, load_checkpoint
from a2mae_hub.modeling.batch_a2mae import SHAPES
from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.modeling_a2mae import A2MAEModel

OUTPUTS = ("last_hidden_state", "pooler_output")
TOLERANCE = 1e-4


class _Encoder(nn.Module):
    """The encoder with inputs and outputs by place, as graphs have them."""

    def __init__(self, model: A2MAEModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `last_hidden_state` and `pooler_output`."""
        outputs = self.model(**dict(zip(self.names, values, strict=True)))
        return outputs.last_hidden_state, outputs.pooler_output


def export_onnx(checkpoint: str | os.PathLike[str] | None, path: str | os.PathLike[str]) -> float:
    """Write the encoder of a checkpoint as an ONNX graph, after comparing it with the checkpoint in ONNX Runtime.

    The inputs are the keys of the batch that the encoder reads, under their own names and in their dtypes;
    `onnx_inputs` makes them of a batch of the processor. The outputs are `last_hidden_state` and `pooler_output`. Sets,
    tokens, images and bands may be of any number, but for the images of `coordinate_layout="released"` and the bands of
    `spectral_projection="identity"`, which the configuration fixes.

    Args:
        checkpoint: Folder, name of a checkpoint that comes with the package, or id on the Hugging Face Hub. None takes
            `a2mae-nano` of the package.
        path: File to write, `.onnx`, weights included, whole or not at all.

    Returns:
        The largest difference between the outputs of the graph and of the checkpoint, over two batches of different
        shape.

    Raises:
        FileNotFoundError: If there is no such checkpoint or folder.
        ImportError: If onnx, onnxscript or onnxruntime is not installed; says how to.
        ValueError: If the name does not end in `.onnx`, the exporter of this torch cannot do it (made with torch 2.15;
            its arguments are there since 2.6), or the graph differs from the checkpoint by more than 1e-4.
    """
    path = Path(path)
    check_output(path, (".onnx",))
    _with_extra()
    import onnxruntime

    model = load_checkpoint(checkpoint).model.a2mae.eval()
    names = input_names(model.config)
    encoder = _Encoder(model, names).eval()
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        try:
            _export(encoder, _batch(model.config, sets=2, images=2, bands=3, grid=(2, 3)), temporary)
        except (TypeError, RuntimeError) as error:
            # What the exporter cannot do, and which arguments it takes, changes from one torch to the next.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise ValueError(
                f"{path}: not written, because the exporter of torch {torch.__version__} failed ({reason}); update"
                " torch, onnx and onnxscript."
            ) from error
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        difference = 0.0
        for sizes in ({"sets": 3, "images": 2, "bands": 4, "grid": (3, 3)}, {"sets": 1, "images": 1, "bands": 1}):
            batch = _batch(model.config, **sizes)
            with torch.inference_mode():
                expected = encoder(*(batch[name] for name in names))
            found = session.run(list(OUTPUTS), onnx_inputs(batch, names))
            for ours, theirs in zip(expected, found, strict=True):
                difference = max(difference, float(np.abs(ours.numpy() - theirs).max()))
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{path}: not written, because the graph differs from the checkpoint by {difference:.1e}, more than"
                f" {TOLERANCE:.0e}; update onnx, onnxscript and onnxruntime."
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def input_names(config: A2MAEConfig) -> tuple[str, ...]:
    """Return the keys of the batch that the encoder of a configuration reads, the inputs of its graph."""
    mixes, released = config.spectral_projection == "basis", config.coordinate_layout == "released"
    reads = {
        "pixel_values": True,
        "pixel_mask": mixes,
        "attention_mask": True,
        "image_ids": True,
        "patch_positions": not released,
        "band_wavelengths": mixes or not released,
        "band_widths": mixes or not released,
        "ground_resolutions": True,
        "acquisition_times": not released,
        "geographic_codes": released or config.geographic_level > 0,
        "grid_shapes": released,
    }
    return tuple(name for name, is_read in reads.items() if is_read)


def onnx_inputs(batch: Mapping[str, Any], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the inputs of a graph for a batch of the processor.

    Args:
        batch: The batch, of numpy arrays or torch tensors. `pixel_mask`, which the processor leaves out where every
            value is real, is filled in.
        names: The inputs of the graph: `[node.name for node in session.get_inputs()]`.

    Returns:
        Name → array, to be passed to `session.run`.

    Raises:
        ValueError: If the batch lacks an input; names it.
    """
    inputs = {}
    for name in names:
        if name in batch:
            inputs[name] = np.asarray(batch[name])
        elif name == "pixel_mask":
            image_ids, wavelengths = np.asarray(batch["image_ids"]), np.asarray(batch["band_wavelengths"])
            real = wavelengths[np.arange(len(image_ids))[:, None], image_ids] > 0
            real &= np.asarray(batch["attention_mask"])[..., None]
            inputs[name] = np.broadcast_to(real[..., None], batch["pixel_values"].shape).copy()
        else:
            raise ValueError(f"{name} is missing from the batch; pass the whole output of A2MAEImageProcessor.")
    return inputs


def _export(encoder: _Encoder, batch: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write the graph of an encoder, traced with a batch."""
    axes = {name: torch.export.Dim(name) for name in _free_axes(encoder.model.config)}
    shapes = tuple(
        {place: axes[axis] for place, axis in enumerate(SHAPES[name].split()) if axis in axes} for name in encoder.names
    )
    with warnings.catch_warnings():
        # It warns of every axis that two inputs have in common.
        warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
        program = torch.onnx.export(
            encoder,
            tuple(batch[name] for name in encoder.names),
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=list(encoder.names),
            output_names=list(OUTPUTS),
            custom_translation_table={
                torch.ops.aten.__rshift__.Tensor: _right_shift,
                torch.ops.aten.addcmul.default: _add_product,
                torch.ops.aten.pow.Scalar: _power,
            },
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)


def _free_axes(config: A2MAEConfig) -> tuple[str, ...]:
    """Return the axes of the batch whose size a graph leaves open."""
    images = () if config.coordinate_layout == "released" else ("images",)
    bands = () if config.spectral_projection == "identity" else ("bands",)
    return ("sets", "tokens", *images, *bands)


def _right_shift(values: Any, shifts: Any) -> Any:
    """Translate the shift of signed integers, which ONNX knows of unsigned ones only, and the exporter not at all."""
    from onnx import TensorProto

    ops = _operators()
    is_negative = ops.Less(values, ops.Constant(value_ints=[0]))
    # Of a negative number, the complement is shifted: what comes in from the left is ones.
    positive = ops.Cast(ops.Where(is_negative, ops.BitwiseNot(values), values), to=TensorProto.UINT64)
    shifted = ops.BitShift(positive, ops.Cast(shifts, to=TensorProto.UINT64), direction="RIGHT")
    shifted = ops.Cast(shifted, to=TensorProto.INT64)
    return ops.Where(is_negative, ops.BitwiseNot(shifted), shifted)


def _add_product(addend: Any, factor: Any, other: Any, value: float = 1.0) -> Any:
    """Translate addend + value · factor · other, rounded once as torch does.

    These are the phases of sine-cosines, hundreds of turns for the position in a scene: rounding the product before the
    sum would show in the fourth digit of the result.
    """
    from onnx import TensorProto

    ops = _operators()
    exact = [ops.Cast(term, to=TensorProto.DOUBLE) for term in (addend, factor, other)]
    product = ops.Mul(exact[1], exact[2])
    if value != 1:
        product = ops.Mul(product, ops.Cast(ops.Constant(value_float=value), to=TensorProto.DOUBLE))
    return ops.CastLike(ops.Add(exact[0], product), addend)


def _power(base: float, exponent: Any) -> Any:
    """Translate base ** exponent, rounded once as torch does: these are the frequencies of the same phases."""
    from onnx import TensorProto, helper

    ops = _operators()
    constant = ops.Constant(value=helper.make_tensor("base", TensorProto.DOUBLE, [], [float(np.float32(base))]))
    power = ops.Pow(constant, ops.Cast(exponent, to=TensorProto.DOUBLE))
    return ops.CastLike(power, exponent)


def _operators() -> Any:
    """Return the ONNX operators of opset 18; they are typed for arrays, and translations pass values of a graph."""
    from onnxscript import opset18

    return opset18


def _batch(
    config: A2MAEConfig, *, sets: int, images: int, bands: int, grid: tuple[int, int] = (2, 2)
) -> dict[str, torch.Tensor]:
    """Return a batch with every key, random values, a padded token and an unknown time and place."""
    images = config.released_num_images if config.coordinate_layout == "released" else images
    bands = config.num_channels if config.spectral_projection == "identity" else bands
    generator = torch.Generator().manual_seed(0)
    tokens, area = images * grid[0] * grid[1], config.patch_size**2
    attention_mask = torch.ones(sets, tokens, dtype=torch.bool)
    attention_mask[-1, -1] = False
    times = torch.randint(15_000_000, (sets, images), generator=generator)
    codes = torch.randint(2**32, (sets, 8), generator=generator)
    times[-1], codes[-1] = torch.iinfo(torch.int64).min, -1
    pixel_mask = torch.rand(sets, tokens, bands, area, generator=generator) < 0.9
    pixel_mask &= attention_mask[..., None, None]
    return {
        "pixel_values": torch.randn(sets, tokens, bands, area, generator=generator) * pixel_mask,
        "pixel_mask": pixel_mask,
        "attention_mask": attention_mask,
        "image_ids": torch.arange(images).repeat_interleave(grid[0] * grid[1]).repeat(sets, 1),
        "patch_positions": torch.randn(sets, tokens, 2, generator=generator) * 500,
        "band_wavelengths": 450 + 1800 * torch.rand(sets, images, bands, generator=generator),
        "band_widths": 20 + 100 * torch.rand(sets, images, bands, generator=generator),
        "ground_resolutions": 1 + 29 * torch.rand(sets, images, generator=generator),
        "acquisition_times": times,
        "geographic_codes": codes,
        "grid_shapes": torch.tensor(grid).repeat(sets, images, 1),
    }


def _with_extra() -> None:
    """Say plainly which extra is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"a2mae export onnx needs {error.name}; install it with: pip install 'a2mae-hub[onnx]'."
        ) from error
