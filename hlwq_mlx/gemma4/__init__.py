"""Gemma 4 in MLX, in the checkpoint's own names."""
