"""The towers that see and hear: an encoder and an embedder each, loaded when needed."""
