"""Bytes on disk: HLWQ sources in, our folder out."""
