"""The common tests that do not apply to A2-MAE, each with its reason: the only place where one is skipped."""

import re
import unittest

NO_TEXT = "reads no text: no vocabulary, no token ids, no token embeddings to resize"
NO_LANGUAGE_MODEL = "predicts no text"
NO_CLASSIFIER = "has no classification head"
ONE_MODEL = "is one model, without sub-models or sub-configurations"
NOT_MULTIMODAL = "has no towers for text, image, audio or video to read features from"
NO_ROTARY = "puts coordinates into the tokens; no rotary positions"
NO_EXPERTS = "has no experts"
NO_PARALLEL_PLAN = "declares no tensor-parallel plan"
NO_RENAMED_WEIGHTS = "stores its weights under the names of its modules"
ALL_DTYPES = "keeps no module in float32"
OTHER_KERNELS = "needs kernels that no dependency of ours brings: flash-attn or kernels"
ACCELERATOR = "needs an accelerator, which our tests do not count on"
SEVERAL_ACCELERATORS = "needs several accelerators, which our tests do not count on"
SLOW = "runs only under RUN_SLOW on an accelerator"

SKIPPED = {
    "test_causal_lm_loss_honors_shift_labels": NO_LANGUAGE_MODEL,
    "test_encoder_decoder_loss_no_double_shift": NO_LANGUAGE_MODEL,
    "test_model_base_model_prefix": NO_LANGUAGE_MODEL,
    "test_inputs_embeds": NO_TEXT,
    "test_inputs_embeds_matches_input_ids": NO_TEXT,
    "test_resize_embeddings_untied": NO_TEXT,
    "test_resize_embeddings_untied_no_reinit_on_post_init": NO_TEXT,
    "test_resize_embeddings_untied_with_deepspeed": NO_TEXT,
    "test_resize_embeddings_untied_with_deepspeed_multi_gpu": NO_TEXT,
    "test_resize_position_vector_embeddings": NO_TEXT,
    "test_resize_tokens_embeddings": NO_TEXT,
    "test_resize_tokens_embeddings_with_deepspeed": NO_TEXT,
    "test_resize_tokens_embeddings_with_deepspeed_multi_gpu": NO_TEXT,
    "test_sliding_window_mask": "attends to the whole set; no sliding window",
    "test_can_load_ignoring_mismatched_shapes": NO_CLASSIFIER,
    "test_load_with_mismatched_shapes": NO_CLASSIFIER,
    "test_problem_types": NO_CLASSIFIER,
    "test_attn_implementation_composite_models": ONE_MODEL,
    "test_can_set_attention_dynamically_composite_model": ONE_MODEL,
    "test_flash_attn_2_can_dispatch_composite_models": ONE_MODEL,
    "test_flash_attn_3_can_dispatch_composite_models": ONE_MODEL,
    "test_flash_attn_4_can_dispatch_composite_models": ONE_MODEL,
    "test_internal_model_config_and_subconfig_are_same": ONE_MODEL,
    "test_sdpa_can_dispatch_composite_models": ONE_MODEL,
    "test_get_audio_features_attentions": NOT_MULTIMODAL,
    "test_get_audio_features_hidden_states": NOT_MULTIMODAL,
    "test_get_audio_features_output": NOT_MULTIMODAL,
    "test_get_image_features_attentions": NOT_MULTIMODAL,
    "test_get_image_features_hidden_states": NOT_MULTIMODAL,
    "test_get_image_features_output": NOT_MULTIMODAL,
    "test_get_image_features_pooler_output": NOT_MULTIMODAL,
    "test_get_text_features_attentions": NOT_MULTIMODAL,
    "test_get_text_features_hidden_states": NOT_MULTIMODAL,
    "test_get_text_features_output": NOT_MULTIMODAL,
    "test_get_video_features_attentions": NOT_MULTIMODAL,
    "test_get_video_features_hidden_states": NOT_MULTIMODAL,
    "test_get_video_features_output": NOT_MULTIMODAL,
    "test_get_video_features_pooler_output": NOT_MULTIMODAL,
    "test_model_rope_scaling_frequencies": NO_ROTARY,
    "test_model_rope_scaling_from_config": NO_ROTARY,
    "test_model_rope_with_partial_rotation": NO_ROTARY,
    "test_vision_axial_rope": NO_ROTARY,
    "test_eager_matches_batched_and_grouped_inference": NO_EXPERTS,
    "test_moe_models_record_router_logits": NO_EXPERTS,
    "test_output_router_logits_from_config": NO_EXPERTS,
    "test_tied_head_has_a_tp_plan_entry": NO_PARALLEL_PLAN,
    "test_tp_plan_matches_params": NO_PARALLEL_PLAN,
    "test_can_load_from_already_mapped_keys": NO_RENAMED_WEIGHTS,
    "test_reverse_loading_mapping": NO_RENAMED_WEIGHTS,
    "test_keep_in_fp32_modules": ALL_DTYPES,
    "test_keep_in_fp32_modules_exist": ALL_DTYPES,
    "test_flash_attn_2_can_compile_with_attention_mask_None_without_graph_break": OTHER_KERNELS,
    "test_flash_attn_2_fp32_ln": OTHER_KERNELS,
    "test_flash_attn_2_from_config": OTHER_KERNELS,
    "test_flash_attn_2_inference_equivalence": OTHER_KERNELS,
    "test_flash_attn_2_inference_equivalence_right_padding": OTHER_KERNELS,
    "test_flash_attn_3_from_config": OTHER_KERNELS,
    "test_flash_attn_3_inference_equivalence": OTHER_KERNELS,
    "test_flash_attn_3_inference_equivalence_right_padding": OTHER_KERNELS,
    "test_flash_attn_4_from_config": OTHER_KERNELS,
    "test_flash_attn_4_inference_equivalence": OTHER_KERNELS,
    "test_flash_attn_4_inference_equivalence_right_padding": OTHER_KERNELS,
    "test_flash_attn_kernels_inference_equivalence": OTHER_KERNELS,
    "test_flash_attn_kernels_mps_inference_equivalence": OTHER_KERNELS,
    "test_kernels_can_load_without_crashing": OTHER_KERNELS,
    "test_can_load_with_device_context_manager": ACCELERATOR,
    "test_can_load_with_global_device_set": ACCELERATOR,
    "test_cpu_offload": ACCELERATOR,
    "test_disk_offload_bin": ACCELERATOR,
    "test_disk_offload_safetensors": ACCELERATOR,
    "test_flex_attention_with_grads": ACCELERATOR,
    "test_model_parallelism": SEVERAL_ACCELERATORS,
    "test_sdpa_can_compile_dynamic": SLOW,
    "test_sdpa_can_dispatch_on_flash": SLOW,
    "test_torch_compile_for_training": SLOW,
}


def variants(cls: type, name: str) -> list[str]:
    """Return the tests of a class that carry a name: itself, or what `parameterized` made of it ("…_0_fp16")."""
    return [test for test in dir(cls) if re.fullmatch(rf"{name}(_\d+.*)?", test)]


def skip_what_does_not_apply(cls: type[unittest.TestCase]) -> type[unittest.TestCase]:
    """Replace each test of the table by a skip with its reason."""
    for name, reason in SKIPPED.items():
        for test in variants(cls, name):
            setattr(cls, test, unittest.skip(reason)(lambda self: None))
    return cls
