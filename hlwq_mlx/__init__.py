"""Run Gemma 4 in HLWQ (Hadamard-Lloyd Weight Quantization) form with MLX."""
