"""One file for each dialect: read a body, write events. None of them knows sockets or models."""
