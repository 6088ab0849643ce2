"""Bytes on disk: atomic writes, safetensors files, JSON of strangers, what failures mean."""
