"""Fixtures of the tests of teachers that are served here."""

from tests.fixtures_vllm import stub_python

__all__ = ["stub_python"]
