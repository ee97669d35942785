"""ONNX Runtime returns what the encoder returns, for batches of any shape."""

import re
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from a2mae_hub.conversion.commands import export_app
from a2mae_hub.conversion.export_onnx import export_onnx, onnx_inputs
from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.modeling_a2mae import A2MAEModel

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZES = {"num_hidden_layers": 1, "intermediate_size": 40, "patch_size": 4, "spectral_hidden_size": 8}
SUMMED = {**SIZES, "hidden_size": 32, "num_attention_heads": 4, "pooling": "mean_std"}
RELEASED = {**SIZES, "hidden_size": 256 + 12, "num_attention_heads": 4, "coordinate_layout": "released"}
RELEASED |= {"spectral_projection": "identity", "num_channels": 2}


def save_encoder(folder, seed=0, **settings) -> A2MAEModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = A2MAEModel(A2MAEConfig(initializer_range=0.2, **settings)).eval()
    model.save_pretrained(folder)
    A2MAEImageProcessor(patch_size=4).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """An encoder, and the graph that the command made of it."""
    folder = tmp_path_factory.mktemp("onnx")
    model, path = save_encoder(folder / "checkpoint", **SUMMED), folder / "encoder.onnx"
    result = CliRunner().invoke(export_app, ["onnx", str(folder / "checkpoint"), "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert re.search(r"encoder\.onnx: 0\.\d MB, within \d\.\de-0[5-9] of the checkpoint", result.output)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "encoder.onnx"]
    return model, path


@pytest.fixture(scope="module")
def exported(graph):
    return graph[0], onnxruntime.InferenceSession(graph[1])


def image(bands, rows, columns, seed=0, **facts):
    pixels = np.random.default_rng(seed).integers(1, 4000, (len(bands), rows, columns), dtype=np.uint16)
    return {"pixels": pixels, "sensor": "sentinel-2-l2a", "bands": bands, "gsd": 10.0, **facts}


PLACE = {"longitude": -12.3, "latitude": -45.6}
SETS = {
    "one image of one band, one patch": [[image(["B04"], 4, 4)]],
    "dates, padded tokens, absent bands": [
        {"images": [image(["B02", "B03", "B8A"], 12, 8, acquired="2020-05-01"), image(["B12"], 8, 8)], **PLACE},
        {"images": [image(["B04", "B08"], 4, 8, 1, acquired="1999-01-01T10:00")], "longitude": 120.0, "latitude": 60.0},
        [image(["B04", "B08"], 4, 4, 2)] * 3,
    ],
    "pixels without data": [[image(["B02", "B03"], 10, 7, nodata=0)], [image(["B02"], 16, 16)]],
}


@pytest.mark.parametrize("sets", SETS.values(), ids=SETS)
def test_onnx_runtime_returns_what_the_encoder_returns(exported, sets):
    model, session = exported
    batch = A2MAEImageProcessor(patch_size=4)(sets, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**batch)
    names = [node.name for node in session.get_inputs()]
    states, pooled = session.run(["last_hidden_state", "pooler_output"], onnx_inputs(batch, names))
    exists = torch.nn.functional.pad(batch["attention_mask"], (1, 0), value=True)
    assert states.shape == expected.last_hidden_state.shape
    np.testing.assert_allclose(states[exists], expected.last_hidden_state[exists], atol=1e-4, rtol=0)
    np.testing.assert_allclose(pooled, expected.pooler_output, atol=1e-4, rtol=0)


def test_the_axes_of_the_graph_are_named(exported):
    shapes = {node.name: node.shape for node in exported[1].get_inputs()}
    assert shapes["pixel_values"] == ["sets", "tokens", "bands", 16]
    assert shapes["band_wavelengths"] == ["sets", "images", "bands"]
    assert shapes["geographic_codes"] == ["sets", 8]
    assert not {"source_ids", "anchor_ids", "grid_shapes"} & shapes.keys()  # the encoder reads none of them


def test_numpy_batches_need_no_torch(exported):
    names = [node.name for node in exported[1].get_inputs()]
    batch = A2MAEImageProcessor(patch_size=4)(SETS["dates, padded tokens, absent bands"])
    assert "pixel_mask" not in batch
    inputs = onnx_inputs(batch, names)
    assert all(isinstance(value, np.ndarray) for value in inputs.values())
    # Real are the bands that an image has, where it has tokens: 6 · 3 + 4 · 1, 2 · 2, and 3 · 2, of 16 pixels each.
    assert inputs["pixel_mask"].sum(axis=(1, 2, 3)).tolist() == [16 * 22, 16 * 4, 16 * 6]
    with pytest.raises(ValueError, match="patch_positions is missing from the batch"):
        onnx_inputs({key: value for key, value in batch.items() if key != "patch_positions"}, names)


def test_the_released_layout_is_exported_with_its_images_and_bands(tmp_path):
    save_encoder(tmp_path / "checkpoint", **RELEASED)
    assert export_onnx(tmp_path / "checkpoint", tmp_path / "encoder.onnx") < 1e-4  # measured on two batches
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    shapes = {node.name: node.shape for node in session.get_inputs()}
    assert shapes["grid_shapes"] == ["sets", 3, 2]
    assert shapes["pixel_values"] == ["sets", "tokens", 2, 16]


def test_a_graph_that_differs_is_not_written(graph, tmp_path, monkeypatch):
    save_encoder(tmp_path / "checkpoint", seed=1, **SUMMED)
    monkeypatch.setattr(
        "a2mae_hub.conversion.export_onnx._export", lambda encoder, batch, path: shutil.copy(graph[1], path)
    )
    with pytest.raises(ValueError, match=r"encoder\.onnx: not written, because the graph differs"):
        export_onnx(tmp_path / "checkpoint", tmp_path / "encoder.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_an_exporter_that_cannot_is_one_sentence(tmp_path, monkeypatch):
    """As that of an older torch, which has other arguments, or knows not all operators."""
    save_encoder(tmp_path / "checkpoint", **SUMMED)

    def older(*_: object, dynamo: bool, **__: object) -> None:
        raise TypeError("export() got an unexpected keyword argument\nand more")

    monkeypatch.setattr(torch.onnx, "export", older)
    with pytest.raises(
        ValueError, match=r"encoder\.onnx: not written, .* torch 2\.\S+ failed \(export\(\) got .*; update"
    ) as error:
        export_onnx(tmp_path / "checkpoint", tmp_path / "encoder.onnx")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_wrong_name_is_said_before_the_work(tmp_path):
    with pytest.raises(ValueError, match=r"\.onnx"):
        export_onnx(tmp_path / "nowhere", tmp_path / "encoder.pt")
    with pytest.raises(FileNotFoundError, match="create it first"):
        export_onnx(tmp_path / "nowhere", tmp_path / "none/encoder.onnx")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        export_onnx(tmp_path / "nowhere", tmp_path / "encoder.onnx")
