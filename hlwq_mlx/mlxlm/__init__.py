"""The one room that imports mlx-lm: what stock mlx-lm meets of us, and what we take of it."""
