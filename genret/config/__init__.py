"""The configuration of a run: one section a stage, every field bounded and documented; and how it is read."""

from genret.config.data import CorpusConfig, ExamplesConfig, IdentifiersConfig, SynthesisConfig
from genret.config.dense import DenseConfig, EncoderConfig, NegativesConfig, PretrainedEncoder, ScratchEncoder
from genret.config.engines import ExtractiveConfig, HttpConfig, VllmConfig
from genret.config.loading import dump_config, load_config, parse_config, preset_names, resolved_yaml
from genret.config.retrieval import EvaluationConfig, FusionConfig, RetrievalConfig
from genret.config.run import ComputeConfig, RunConfig
from genret.config.section import Section
from genret.config.serving import ReplicasConfig, ServingConfig
from genret.config.training import (
    MiningConfig,
    ModelConfig,
    PreferenceConfig,
    PretrainedModel,
    RpoConfig,
    ScratchModel,
    SftConfig,
    TuningConfig,
)

__all__ = [
    "ComputeConfig",
    "CorpusConfig",
    "DenseConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "ExamplesConfig",
    "ExtractiveConfig",
    "FusionConfig",
    "HttpConfig",
    "IdentifiersConfig",
    "MiningConfig",
    "ModelConfig",
    "NegativesConfig",
    "PreferenceConfig",
    "PretrainedEncoder",
    "PretrainedModel",
    "ReplicasConfig",
    "RetrievalConfig",
    "RpoConfig",
    "RunConfig",
    "ScratchEncoder",
    "ScratchModel",
    "Section",
    "ServingConfig",
    "SftConfig",
    "SynthesisConfig",
    "TuningConfig",
    "VllmConfig",
    "dump_config",
    "load_config",
    "parse_config",
    "preset_names",
    "resolved_yaml",
]
