"""Thin Prefect wrappers: each calls one function of the library and returns refs.

Library modules that bring pandas or torch are imported inside the tasks: a flow has to load fast.
"""
