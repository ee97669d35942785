"""The library's own tests of a model, run against ours: what works for every model of transformers works for A2-MAE."""

import math
import unittest
from unittest import mock

import pytest
import torch
from torch import nn
from transformers.models.auto import modeling_auto

from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.embeddings_a2mae import A2MAEPatchEmbedding
from a2mae_hub.modeling.modeling_a2mae import A2MAEBackbone, A2MAEForPreTraining, A2MAEModel
from a2mae_hub.modeling.tasks_a2mae import (
    A2MAEForChangeDetection,
    A2MAEForImageClassification,
    A2MAEForSemanticSegmentation,
)

from . import sdist
from .skipped import SKIPPED, skip_what_does_not_apply, variants

if not sdist.FOLDER.is_dir():
    pytest.skip(sdist.HOW_TO_FETCH, allow_module_level=True)

BackboneTesterMixin = sdist.load("test_backbone_common").BackboneTesterMixin
ConfigTester = sdist.load("test_configuration_common").ConfigTester
ModelTesterMixin = sdist.load("test_modeling_common").ModelTesterMixin

NUM_IMAGES, NUM_BANDS, GRID = 2, 3, 4
NUM_TOKENS = NUM_IMAGES * GRID**2


class Tester:
    """A tiny model and a batch for it, under the names that the common tests ask for.

    Attributes:
        parent: The test that asks.
        seq_length: Tokens in the hidden states, the class token among them.
    """

    __test__ = False
    is_training = True
    batch_size = 7  # One test fills a smaller batch up to this size, with random integers that are no image ids.
    image_size, patch_size = 16, 4
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4
    mask_ratio = 0.5

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent
        masks = A2MAEForPreTraining in parent.all_model_classes
        self.seq_length = 1 + math.floor(NUM_TOKENS * (1 - self.mask_ratio) if masks else NUM_TOKENS)

    def get_config(self) -> A2MAEConfig:
        return A2MAEConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=64,
            patch_size=self.patch_size,
            spectral_basis_size=4,
            spectral_hidden_size=8,
            mask_ratio=self.mask_ratio,
            metadata_dropout=0.0,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=32,
            out_indices=[1, 2],
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[A2MAEConfig, dict[str, torch.Tensor]]:
        """Return the configuration and sets of two images of one place, 100 days apart, of 4 × 4 patches at 10 m."""
        sets, pixels = self.batch_size, self.patch_size**2
        generator = torch.Generator().manual_seed(0)
        centres = (torch.arange(GRID) - (GRID - 1) / 2) * 10.0 * self.patch_size
        ground = torch.cartesian_prod(-centres, centres).repeat(NUM_IMAGES, 1)
        inputs = {
            "pixel_values": torch.randn(sets, NUM_TOKENS, NUM_BANDS, pixels, generator=generator),
            "pixel_mask": torch.rand(sets, NUM_TOKENS, NUM_BANDS, pixels, generator=generator) < 0.9,
            "attention_mask": torch.ones(sets, NUM_TOKENS, dtype=torch.bool),
            "image_ids": torch.arange(NUM_IMAGES).repeat_interleave(GRID**2).repeat(sets, 1),
            "patch_positions": ground.repeat(sets, 1, 1),
            "band_wavelengths": torch.tensor([490.0, 560.0, 665.0]).repeat(sets, NUM_IMAGES, 1),
            "band_widths": torch.tensor([65.0, 35.0, 30.0]).repeat(sets, NUM_IMAGES, 1),
            "ground_resolutions": torch.full((sets, NUM_IMAGES), 10.0),
            "acquisition_times": torch.tensor([[0, 100 * 24 * 60]]).repeat(sets, 1) + torch.arange(sets)[:, None],
            "source_ids": torch.tensor([[0, 1]]).repeat(sets, 1),
            "geographic_codes": torch.randint(2**32, (sets, 8), generator=generator),
            "anchor_ids": torch.zeros(sets, dtype=torch.int64),
            "grid_shapes": torch.full((sets, NUM_IMAGES, 2), GRID),
        }
        if A2MAEForPreTraining in self.parent.all_model_classes:
            inputs["noise"] = torch.randn(sets, 3, NUM_TOKENS, generator=generator)
        return self.get_config(), inputs


class CommonTests(ModelTesterMixin):
    """What the tests of all classes share."""

    additional_model_inputs = (
        "pixel_mask image_ids patch_positions band_wavelengths band_widths ground_resolutions acquisition_times"
        " source_ids geographic_codes anchor_ids grid_shapes"
    ).split()
    # The test takes a model without a line of copyright for one older than 2023, and passes those over.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = Tester(self)

    @pytest.fixture(autouse=True)
    def known_to_the_library(self, monkeypatch):
        """Enter our classes where these tests look up what kind of model a class is; many do nothing otherwise."""
        monkeypatch.setitem(modeling_auto.MODEL_MAPPING_NAMES, "a2mae", "A2MAEModel")
        monkeypatch.setitem(modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES, "a2mae", "A2MAEForPreTraining")
        monkeypatch.setitem(modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES, "a2mae", "A2MAEBackbone")
        names = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        monkeypatch.setitem(names, "a2mae", "A2MAEForImageClassification")
        names = modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
        monkeypatch.setitem(names, "a2mae", "A2MAEForSemanticSegmentation")

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """Give noise our shape, (B, 3, L), where a test made one number for each patch of a square image."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if "noise" in inputs:
            inputs["noise"] = self.model_tester.prepare_config_and_inputs_for_common()[1]["noise"]
        return inputs

    def test_model_get_set_embeddings(self):
        """Theirs wants an embedding of token ids; ours are computed from patches and metadata."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), nn.Module)
            self.assertIsNone(model.get_output_embeddings())

    def test_enable_input_require_grads_with_gradient_checkpointing(self):
        """Theirs follows the gradient to the weight of the input embedding; ours sits in its projection."""
        weight = property(lambda embedding: embedding.projection.weight)
        with mock.patch.object(A2MAEPatchEmbedding, "weight", weight, create=True):
            super().test_enable_input_require_grads_with_gradient_checkpointing()


@skip_what_does_not_apply
class A2MAEModelTest(CommonTests, unittest.TestCase):
    all_model_classes = (A2MAEModel,)

    def test_config(self):
        """Runs here as it is about the configuration alone."""
        ConfigTester(self, config_class=A2MAEConfig, has_text_modality=False, hidden_size=48).run_common_tests()


@skip_what_does_not_apply
class A2MAEForPreTrainingTest(CommonTests, unittest.TestCase):
    all_model_classes = (A2MAEForPreTraining,)

    def test_model_outputs_equivalence(self):
        """Theirs subtracts what it compares, which torch refuses for a bool mask; it gets integers in its place."""
        forward = A2MAEForPreTraining.forward

        def forward_with_integers(model, **inputs):
            outputs = forward(model, **inputs)
            if isinstance(outputs, tuple):
                return tuple(integers(value) for value in outputs)
            return type(outputs)(**{key: integers(value) for key, value in outputs.items()})

        def integers(value):
            return value.long() if isinstance(value, torch.Tensor) and value.dtype == torch.bool else value

        with mock.patch.object(A2MAEForPreTraining, "forward", forward_with_integers):
            super().test_model_outputs_equivalence()


@skip_what_does_not_apply
class A2MAEBackboneTest(BackboneTesterMixin, CommonTests, unittest.TestCase):
    all_model_classes = (A2MAEBackbone,)
    config_class = A2MAEConfig

    def test_retain_grad_hidden_states_attentions(self):
        """Theirs takes the first output for a tensor; a backbone returns a tuple of feature maps."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = A2MAEBackbone._from_config(config, attn_implementation="eager")
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        outputs.hidden_states[0].retain_grad()
        outputs.attentions[0].retain_grad()
        outputs.feature_maps[-1].flatten()[0].backward()
        self.assertIsNotNone(outputs.hidden_states[0].grad)
        self.assertIsNotNone(outputs.attentions[0].grad)


@skip_what_does_not_apply
class A2MAEForImageClassificationTest(CommonTests, unittest.TestCase):
    all_model_classes = (A2MAEForImageClassification,)


class MapTests(CommonTests):
    """What the tests of the models that answer for every pixel share."""

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """Give labels the pixel grid of the anchor."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels:
            tester = self.model_tester
            side = GRID * tester.patch_size
            inputs["labels"] = torch.zeros(tester.batch_size, side, side, dtype=torch.int64)
        return inputs


@skip_what_does_not_apply
class A2MAEForSemanticSegmentationTest(MapTests, unittest.TestCase):
    all_model_classes = (A2MAEForSemanticSegmentation,)


@skip_what_does_not_apply
class A2MAEForChangeDetectionTest(MapTests, unittest.TestCase):
    all_model_classes = (A2MAEForChangeDetection,)


def test_every_skipped_test_exists_in_the_library():
    assert [name for name in SKIPPED if not variants(ModelTesterMixin, name)] == []
