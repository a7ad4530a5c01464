"""The configuration of a run: one section a stage, every field bounded and documented; and how it is read."""

from genret.config.data import CorpusConfig, ExamplesConfig, IdentifiersConfig, SynthesisConfig
from genret.config.engines import ExtractiveConfig, HttpConfig, VllmConfig
from genret.config.loading import dump_config, load_config, parse_config, preset_names, resolved_yaml
from genret.config.retrieval import EvaluationConfig, FusionConfig, RetrievalConfig
from genret.config.run import ComputeConfig, RunConfig
from genret.config.section import Section
from genret.config.training import MiningConfig, ModelConfig, PretrainedModel, RpoConfig, ScratchModel, SftConfig

__all__ = [
    "ComputeConfig",
    "CorpusConfig",
    "EvaluationConfig",
    "ExamplesConfig",
    "ExtractiveConfig",
    "FusionConfig",
    "HttpConfig",
    "IdentifiersConfig",
    "MiningConfig",
    "ModelConfig",
    "PretrainedModel",
    "RetrievalConfig",
    "RpoConfig",
    "RunConfig",
    "ScratchModel",
    "Section",
    "SftConfig",
    "SynthesisConfig",
    "VllmConfig",
    "dump_config",
    "load_config",
    "parse_config",
    "preset_names",
    "resolved_yaml",
]
