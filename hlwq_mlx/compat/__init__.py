"""Interfaces that others have shown to users, kept for their sake."""
