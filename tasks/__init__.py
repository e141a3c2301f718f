"""Thin Prefect wrappers: each calls one function of the library and returns refs."""
