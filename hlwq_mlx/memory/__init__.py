"""The memory that a model needs and that a machine has."""
