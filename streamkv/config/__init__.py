"""Settings: dataclasses are the schema, YAML the values, OmegaConf the merge.

    schema defaults < configs/presets/<preset>.yaml < the given YAML < a.b=c overrides

Everything below `load_config` sees frozen dataclasses, never a DictConfig. Policies are named by strings;
the names are checked by the registry of their kind when the engine is built, so that adding one is one file
(docs/policies.md).

A file each for the method, the store, the planes, and how all of it is loaded.
"""

from streamkv.config.loading import (
    CONFIG_ROOT,
    PipelineConfig,
    config_from_dict,
    config_to_dict,
    load_config,
    preset_names,
)
from streamkv.config.method import (
    DEFAULT_GUIDANCE,
    BudgetConfig,
    CompressConfig,
    ConfidenceConfig,
    MethodConfig,
    ModelConfig,
    RetrieveConfig,
    SegmentConfig,
)
from streamkv.config.planes import IngestConfig, PoolConfig, ServeConfig, SourceConfig, WatchConfig
from streamkv.config.storage import AgeingStep, RetentionConfig, S3Config, StoreConfig

__all__ = [
    "CONFIG_ROOT",
    "DEFAULT_GUIDANCE",
    "AgeingStep",
    "BudgetConfig",
    "CompressConfig",
    "ConfidenceConfig",
    "IngestConfig",
    "MethodConfig",
    "ModelConfig",
    "PipelineConfig",
    "PoolConfig",
    "RetentionConfig",
    "RetrieveConfig",
    "S3Config",
    "SegmentConfig",
    "ServeConfig",
    "SourceConfig",
    "StoreConfig",
    "WatchConfig",
    "config_from_dict",
    "config_to_dict",
    "load_config",
    "preset_names",
]
