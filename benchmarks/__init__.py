"""Benchmarks: one question a file; results committed as JSON with the environment that made them.

Run them from the repository root, for instance ``python -m benchmarks.deletion_cost``.
"""
