"""What importing the package does and does not do, and that `modeling/` stands alone as Hugging Face files."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import HFValidationError
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining

import a2mae_hub
from a2mae_hub import A2MAEBackbone, A2MAEConfig, A2MAEForPreTraining, A2MAEImageProcessor, A2MAEModel

MODELING = Path(sys.modules[A2MAEConfig.__module__].__file__).parent
FILES = sorted(path for path in MODELING.glob("*.py") if path.name != "__init__.py")


def tiny_config(**overrides) -> A2MAEConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    return A2MAEConfig(**{**sizes, **decoder, "decoder_intermediate_size": 32, "patch_size": 8, **overrides})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A folder with a tiny model and its processor, as `save_pretrained` writes them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        A2MAEForPreTraining(tiny_config()).save_pretrained(folder)
    A2MAEImageProcessor(patch_size=8).save_pretrained(folder)
    return folder


def python(code: str, *arguments: object, **environment: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ----------------------------------------------------------------------------------------------------- the auto classes


def test_importing_the_package_teaches_the_auto_classes_its_model(checkpoint):
    assert type(AutoConfig.from_pretrained(checkpoint)) is A2MAEConfig
    assert type(AutoModel.from_pretrained(checkpoint)) is A2MAEModel
    assert type(AutoModelForPreTraining.from_pretrained(checkpoint)) is A2MAEForPreTraining
    assert AutoImageProcessor.from_pretrained(checkpoint) == A2MAEImageProcessor(patch_size=8)


def test_the_auto_classes_load_the_weights_that_were_saved(checkpoint):
    whole, encoder = (auto.from_pretrained(checkpoint) for auto in (AutoModelForPreTraining, AutoModel))
    other = A2MAEForPreTraining(tiny_config())
    weights = encoder.state_dict()
    assert weights and all(torch.equal(weights[name], value) for name, value in whole.a2mae.state_dict().items())
    assert not torch.equal(other.a2mae.layers[0].mlp.fc1.weight, weights["layers.0.mlp.fc1.weight"])


def test_the_auto_backbone_knows_the_model_from_its_configuration():
    backbone = AutoBackbone.from_config(tiny_config(out_indices=[1, 2]))
    assert type(backbone) is A2MAEBackbone
    assert backbone.out_features == ["stage1", "stage2"] and backbone.channels == [32, 32]


def test_a_backbone_is_loaded_from_a_folder_by_its_own_class(checkpoint):
    assert A2MAEBackbone.from_pretrained(checkpoint, out_indices=[2]).out_indices == [2]
    try:
        backbone = AutoBackbone.from_pretrained(str(checkpoint), out_indices=[2])
    except HFValidationError:
        return  # transformers 5.23 looks the folder up on the Hub, as if it were the id of a checkpoint of timm.
    assert type(backbone) is A2MAEBackbone and backbone.out_indices == [2]


# ---------------------------------------------------------------------------------------------------------- the imports


def test_every_public_name_is_there_and_listed():
    assert sorted(a2mae_hub.__all__) == dir(a2mae_hub)
    for name in a2mae_hub.__all__:
        assert getattr(a2mae_hub, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Imagery'"):
        a2mae_hub.Imagery  # noqa: B018


def test_importing_the_package_loads_no_library_that_only_some_of_it_needs():
    code = "import sys, json, a2mae_hub; print(json.dumps(sorted(name.split('.')[0] for name in sys.modules)))"
    loaded = set(json.loads(python(code)))
    assert "torch" in loaded and "a2mae_hub" in loaded
    assert not loaded & {"rasterio", "matplotlib", "datasets", "timm", "typer", "peft", "onnx"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_modeling_file_imports_only_torch_numpy_the_hugging_face_libraries_and_its_neighbours(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    allowed = {"torch", "numpy", "transformers", "huggingface_hub"} | sys.stdlib_module_names
    neighbours = {other.stem for other in FILES}
    for node in tree.body:
        if isinstance(node, ast.Import):
            assert {name.name.split(".")[0] for name in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").split(".")[0] in allowed
        elif isinstance(node, ast.ImportFrom):
            # `from . import x` and deeper packages are not followed when the files are copied to the Hub.
            assert node.level == 1 and node.module in neighbours


# ---------------------------------------------------------------------------------------------------------- remote code

LOAD_REMOTE_CODE = """
import json, sys
import numpy as np

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "a2mae_hub":
            raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
try:
    import a2mae_hub
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package was not blocked")

from transformers import AutoImageProcessor, AutoModelForPreTraining
model = AutoModelForPreTraining.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
pixels = np.load(sys.argv[2])
bands = ["B02", "B03", "B04", "B08"]
batch = processor(pixels, sensor="sentinel-2-l2a", bands=bands, return_tensors="pt")
print(json.dumps({"module": type(model).__module__, "pooled": model.a2mae(**batch).pooler_output[0].tolist()}))
"""


def test_a_checkpoint_that_carries_its_code_runs_without_the_package(checkpoint, tmp_path, monkeypatch):
    model = A2MAEForPreTraining.from_pretrained(checkpoint)
    processor = A2MAEImageProcessor.from_pretrained(checkpoint)
    # What `register_for_auto_class` sets, without leaving it set for the tests that follow.
    for one_class, auto in ((A2MAEConfig, "AutoConfig"), (A2MAEForPreTraining, "AutoModelForPreTraining")):
        monkeypatch.setattr(one_class, "_auto_class", auto)
    monkeypatch.setattr(A2MAEImageProcessor, "_auto_class", "AutoImageProcessor")
    folder = tmp_path / "remote"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    copied = {path.name for path in folder.glob("**/*.py")}
    of_tasks = {"tasks_a2mae.py", "heads_a2mae.py", "pixels_a2mae.py"}  # which pre-training does not need
    assert copied == {path.name for path in FILES} - of_tasks and copied == {path.name for path in folder.glob("*.py")}

    pixels = np.random.default_rng(0).integers(300, 3_000, (4, 24, 24), dtype=np.uint16)
    np.save(tmp_path / "pixels.npy", pixels)
    printed = python(LOAD_REMOTE_CODE, folder, tmp_path / "pixels.npy", HF_MODULES_CACHE=str(tmp_path / "modules"))
    told = json.loads(printed.splitlines()[-1])
    assert told["module"].startswith("transformers_modules.")
    batch = processor(pixels, sensor="sentinel-2-l2a", bands=["B02", "B03", "B04", "B08"], return_tensors="pt")
    with torch.no_grad():
        pooled = model.eval().a2mae(**batch).pooler_output[0]
    torch.testing.assert_close(torch.tensor(told["pooled"]), pooled, atol=1e-5, rtol=1e-5)
