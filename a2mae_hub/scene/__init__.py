"""Scenes larger than memory: features and maps in windows, block by block."""

from .inference import SceneReport, embed_scene, predict_scene

__all__ = ["SceneReport", "embed_scene", "predict_scene"]
