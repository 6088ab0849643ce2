"""Products by the processor's own instructions, through a library that is compiled on this machine.

`source/` is the library in C++, `build` compiles it, `library` calls it, `product` is the backend.
"""
