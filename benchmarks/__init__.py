"""Workloads measured side by side with peers, on equal weights, after the outputs are equal.

`python -m benchmarks B3` runs one, `--all` all; `docs/benchmarks.md` is made from their results.
"""
