"""Imports Ray Serve once: it uses what pydantic deprecates, and here warnings are errors."""

from __future__ import annotations

import warnings
from importlib import import_module

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import_module("ray.serve.schema")  # the warnings of its first import are over then
