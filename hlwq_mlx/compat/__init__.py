"""Interfaces that others documented, kept so that their examples run."""
