"""Writing a converted checkpoint: weights, configuration, processor and card in one folder, complete or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.modeling_a2mae import A2MAEPreTrainedModel

_FRONT_MATTER = """\
---
library_name: transformers
pipeline_tag: image-feature-extraction
tags:
- a2mae
- remote-sensing
- earth-observation
---
"""


def check_output_folder(output: str | os.PathLike[str]) -> Path:
    """Return the folder to write, after checking that nothing stands there.

    Raises:
        ValueError: If there is a file, or a folder that is not empty.
    """
    output = Path(output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output}: is already there; name a new folder, or remove it first.")
    return output


def write_checkpoint(
    output: str | os.PathLike[str], model: A2MAEPreTrainedModel, processor: A2MAEImageProcessor, card: str
) -> None:
    """Write config.json, model.safetensors, preprocessor_config.json and README.md.

    They are written to a hidden folder beside the output, which is then renamed: no reader ever meets half of it.

    Args:
        output: Folder that is not there, or empty.
        model: The model.
        processor: Turns image sets into its input.
        card: Text of README.md, without the metadata of the Hub, which are put before it.

    Raises:
        ValueError: If something stands at the output already.
    """
    output = check_output_folder(output).absolute()
    temporary = output.with_name(f".{os.getpid()}.{output.name}")
    temporary.mkdir(parents=True)
    try:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        (temporary / "README.md").write_text(_FRONT_MATTER + card, encoding="utf-8")
        if output.exists():
            output.rmdir()  # empty; Windows renames onto no folder, not even an empty one
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
