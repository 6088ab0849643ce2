"""The HLWQ idea itself: tables, codec, packing, and the layers that multiply by coded weights."""
