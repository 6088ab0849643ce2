"""Prefill, decode and sampling; knows token ids, never text."""
