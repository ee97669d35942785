"""The A2-MAE model as self-contained Hugging Face files (torch, numpy and transformers only).

These very files are copied into a Hub repository for `trust_remote_code`, flat and by base name: hence relative imports
only, and names that are unique wherever they land.
"""
