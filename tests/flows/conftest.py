"""Fixtures of the flows."""

from tests.flows.fixtures import causal, classification, deletion

__all__ = ["causal", "classification", "deletion"]
