"""Writing a converted checkpoint: weights, configuration, processor and card in one folder, complete or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from huggingface_hub import ModelCardData

from a2mae_hub.model_cards import hub_licence
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.modeling_a2mae import A2MAEPreTrainedModel

_UNKNOWN_LICENCE = """\
The licence of the weights is not known: the file does not name it. Ask those who trained them before you use or publish
them, and name it then, here and as `license` at the top of this file."""


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
    output: str | os.PathLike[str],
    model: A2MAEPreTrainedModel,
    processor: A2MAEImageProcessor,
    card: str,
    licence: str | None,
) -> None:
    """Write config.json, model.safetensors, preprocessor_config.json and README.md.

    They are written to a hidden folder beside the output, which is then renamed: no reader ever meets half of it.

    Args:
        output: Folder that is not there, or empty.
        model: The model.
        processor: Turns image sets into its input.
        card: Text of README.md, without the metadata of the Hub, which are put before it, and the section on the
            licence, which is put after it.
        licence: Of the weights: an SPDX identifier, or another name; None where it is not known.

    Raises:
        ValueError: If something stands at the output already, or the licence has no name.
    """
    output = check_output_folder(output).absolute()
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=["a2mae", "remote-sensing", "earth-observation"],
        **hub_licence(licence),
    )
    terms = f"The weights are under {licence}." if licence else _UNKNOWN_LICENCE
    text = f"---\n{metadata.to_yaml()}\n---\n\n{card}\n## Licence\n\n{terms}\n"
    temporary = output.with_name(f".{os.getpid()}.{output.name}")
    temporary.mkdir(parents=True)
    try:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        (temporary / "README.md").write_text(text, encoding="utf-8")
        if output.exists():
            output.rmdir()  # empty; Windows renames onto no folder, not even an empty one
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
