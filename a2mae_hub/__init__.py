"""A2-MAE for Earth observation: one encoder for sets of images of any optical satellite.

Importing the package registers the model with the Auto classes of transformers, so that
`AutoModel.from_pretrained` and its siblings know it. Everything else is imported when it is first used.
"""

from typing import TYPE_CHECKING

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)

from ._version import __version__
from .lazy import imported_on_use
from .modeling.configuration_a2mae import A2MAEConfig
from .modeling.image_processing_a2mae import A2MAEImageProcessor
from .modeling.modeling_a2mae import A2MAEBackbone, A2MAEForPreTraining, A2MAEModel
from .modeling.tasks_a2mae import A2MAEForChangeDetection, A2MAEForImageClassification, A2MAEForSemanticSegmentation

if TYPE_CHECKING:
    from .checkpoints import checkpoint
    from .images import Image, ImageSet
    from .modeling.sensors_a2mae import SENSORS, Band, Sensor, get_sensor, register_sensor
    from .raster import read_image, read_image_set, write_raster

# One class serves both: it decodes no picture files, which is what the library's backends differ in.
_BACKENDS = {"torchvision": A2MAEImageProcessor, "pil": A2MAEImageProcessor}

AutoConfig.register("a2mae", A2MAEConfig, exist_ok=True)
AutoModel.register(A2MAEConfig, A2MAEModel, exist_ok=True)
AutoModelForPreTraining.register(A2MAEConfig, A2MAEForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(A2MAEConfig, A2MAEForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(A2MAEConfig, A2MAEForSemanticSegmentation, exist_ok=True)
AutoBackbone.register(A2MAEConfig, A2MAEBackbone, exist_ok=True)
AutoImageProcessor.register(A2MAEConfig, image_processor_classes=_BACKENDS, exist_ok=True)

_LAZY = {
    "Image": ".images",
    "ImageSet": ".images",
    "read_image": ".raster",
    "read_image_set": ".raster",
    "write_raster": ".raster",
    "checkpoint": ".checkpoints",
    "SENSORS": ".modeling.sensors_a2mae",
    "Band": ".modeling.sensors_a2mae",
    "Sensor": ".modeling.sensors_a2mae",
    "get_sensor": ".modeling.sensors_a2mae",
    "register_sensor": ".modeling.sensors_a2mae",
}

__getattr__ = imported_on_use(__name__, _LAZY)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)


__all__ = [
    "SENSORS",
    "A2MAEBackbone",
    "A2MAEConfig",
    "A2MAEForChangeDetection",
    "A2MAEForImageClassification",
    "A2MAEForPreTraining",
    "A2MAEForSemanticSegmentation",
    "A2MAEImageProcessor",
    "A2MAEModel",
    "Band",
    "Image",
    "ImageSet",
    "Sensor",
    "__version__",
    "checkpoint",
    "get_sensor",
    "read_image",
    "read_image_set",
    "register_sensor",
    "write_raster",
]
