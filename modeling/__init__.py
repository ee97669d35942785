"""The A2-MAE model as self-contained Hugging Face files (torch, numpy and transformers only)."""
