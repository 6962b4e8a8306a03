"""Which configuration a name means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streamkv.config import CONFIG_ROOT, PipelineConfig, load_config
from streamkv.errors import ConfigError


def shipped_names() -> list[str]:
    """Configurations that come with the package, sorted."""
    return sorted(path.stem for path in CONFIG_ROOT.glob("*.yaml"))


def load_settings(name: str, overrides: Sequence[str] = ()) -> PipelineConfig:
    """A shipped configuration by name, or any YAML by path.

    Raises:
        ConfigError: there is no such configuration, or something in it is wrong.
    """
    if name in shipped_names():
        return load_config(CONFIG_ROOT / f"{name}.yaml", overrides)
    if not Path(name).is_file():
        raise ConfigError(f"config: no {name!r}; give a file, or one of: {', '.join(shipped_names())}")
    return load_config(name, overrides)
