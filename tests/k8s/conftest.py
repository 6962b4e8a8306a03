"""Imports Ray Serve once: it uses what pydantic deprecates, and here warnings are errors."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.serve.schema  # noqa: F401 - for the warnings of its first import, which are over then
