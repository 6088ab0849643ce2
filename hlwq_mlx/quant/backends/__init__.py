"""The ways to multiply by a coded matrix, one a file; base defines them and choose picks one."""
