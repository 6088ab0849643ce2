"""The server: HTTP in, one engine thread, every dialect that local assistants speak out."""
