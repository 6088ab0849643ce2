"""From a source to a folder: convert, quantize, export."""
