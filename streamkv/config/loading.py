"""The whole of it, from YAML and overrides (OmegaConf does the merge)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from streamkv.config.method import MethodConfig, ModelConfig
from streamkv.config.planes import IngestConfig, PoolConfig, ServeConfig, SourceConfig, WatchConfig
from streamkv.config.storage import StoreConfig
from streamkv.errors import ConfigError

CONFIG_ROOT = Path(__file__).resolve().parent.parent.parent / "configs"


@dataclass(frozen=True)
class PipelineConfig:
    """The whole of it. Whoever makes one, or is sent one, has its `plugins` imported: no process can lack a policy."""

    preset: str = "streamkv"
    plugins: list[str] = field(default_factory=list)
    """Modules that register policies of your own when they are imported; every process must find them."""
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    encode: PoolConfig = field(default_factory=PoolConfig)
    prefill: PoolConfig = field(default_factory=PoolConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    def __post_init__(self) -> None:
        _import_plugins(self.plugins)

    def __setstate__(self, state: dict[str, Any]) -> None:  # unpickled: in another process, as a rule
        self.__dict__.update(state)
        _import_plugins(self.plugins)


def _import_plugins(names: Iterable[str]) -> None:
    for name in names:
        try:
            import_module(name)
        except ImportError as exc:
            raise ConfigError(
                f"plugins: cannot import {name!r} ({exc}); install it, or name its folder in PYTHONPATH"
            ) from exc


def preset_names() -> list[str]:
    """The presets that are shipped, sorted."""
    return sorted(p.stem for p in (CONFIG_ROOT / "presets").glob("*.yaml"))


def load_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Schema < preset < what suits the model < YAML < `a.b=c` overrides; an unknown or mistyped key: ConfigError.

    The preset's name is read from the overrides (`preset=rekv`), else from the YAML, else it is `streamkv`. What
    suits a model is `configs/models/NAME.yaml`, NAME being the last part of `model.path`, if there is one.
    """
    schema = OmegaConf.structured(PipelineConfig)
    try:
        given = cast(DictConfig, OmegaConf.load(path)) if path is not None else OmegaConf.create()
        dotted = OmegaConf.from_dotlist(list(overrides))
        preset = dotted.get("preset") or given.get("preset") or schema.preset
        preset_file = CONFIG_ROOT / "presets" / f"{preset}.yaml"
        if preset not in preset_names():
            raise ConfigError(f"preset: unknown {preset!r}; known: {', '.join(preset_names())}")
        model_path = OmegaConf.select(OmegaConf.merge(schema, given, dotted), "model.path")
        suited = _suited(model_path, preset)
        merged = OmegaConf.merge(schema, OmegaConf.load(preset_file), suited, given, dotted)
        return cast(PipelineConfig, OmegaConf.to_object(merged))
    except FileNotFoundError as exc:
        raise ConfigError(f"config file {path}: not found; shipped ones are in {CONFIG_ROOT}") from exc
    except OmegaConfBaseException as exc:
        cause = exc.__cause__
        if isinstance(cause, ConfigError):
            raise cause from exc
        where = f" in {path}" if path else ""
        raise ConfigError(f"config{where}: {str(exc).splitlines()[0]} (key {exc.full_key!r})") from exc


def _suited(model_path: str, preset: str) -> DictConfig:
    """The method's settings that suit this model under this preset; none for a model without a file."""
    file = CONFIG_ROOT / "models" / f"{Path(model_path).name}.yaml"
    if not file.is_file():
        return OmegaConf.create()
    by_preset = cast(DictConfig, OmegaConf.load(file))
    empty = OmegaConf.create()
    method = OmegaConf.merge(by_preset.get("all", empty), by_preset.get(preset, empty))
    return OmegaConf.create({"method": method})


def config_to_dict(config: PipelineConfig) -> dict[str, Any]:
    """Plain values, for a message to another process or for printing."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))


def config_from_dict(values: dict[str, Any]) -> PipelineConfig:
    """The inverse of `config_to_dict`."""
    return cast(
        PipelineConfig, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PipelineConfig), values))
    )
