"""A2-MAE for Earth observation: one encoder for sets of images of any optical satellite."""
