"""Configuration of runs: frozen dataclasses, the only source of command line flags, YAML files and documentation.

Units are in the names or in the attribute's description. ``RunConfig`` is what ``flaxbert finetune`` reads; its sections are
the words before the dot in overrides such as ``--train.learning_rate 3e-5``.
"""

from flaxbert.config.cluster import ClusterConfig
from flaxbert.config.corpus import CorpusConfig, DedupConfig, ExtensionConfig, PrepareConfig, TokenizerConfig
from flaxbert.config.data import DataConfig
from flaxbert.config.distillation import (
    AugmentationConfig,
    DistillationConfig,
    DistillConfig,
    OtherTeacher,
    StudentConfig,
    TeacherConfig,
)
from flaxbert.config.mesh import MeshConfig
from flaxbert.config.model import AttentionName, ModelSource, PrecisionName, ProblemType, RematPolicy
from flaxbert.config.output import OutputConfig
from flaxbert.config.pretraining import (
    DISTILBERT,
    MaskingConfig,
    MaskingUnit,
    ObjectiveConfig,
    PretrainConfig,
    PretrainData,
    PretrainModel,
    PretrainPhase,
)
from flaxbert.config.pruning import OneShotConfig, PruneConfig, PruneMethod
from flaxbert.config.quantization import (
    ActivationsName,
    QuantizeConfig,
    RangeName,
    RoundingName,
    SchemeName,
    TrainQuantizeConfig,
)
from flaxbert.config.run import RunConfig
from flaxbert.config.serve import AccessConfig, BatchingConfig, DriftConfig, LimitsConfig, RolloutConfig, TlsConfig
from flaxbert.config.task import IGNORED_LABEL, TaskConfig
from flaxbert.config.train import FreezeRule, OptimizerName, ScheduleName, TrainConfig

__all__ = [
    "DISTILBERT",
    "IGNORED_LABEL",
    "AccessConfig",
    "ActivationsName",
    "AttentionName",
    "AugmentationConfig",
    "BatchingConfig",
    "ClusterConfig",
    "CorpusConfig",
    "DataConfig",
    "DedupConfig",
    "DistillConfig",
    "DistillationConfig",
    "DriftConfig",
    "ExtensionConfig",
    "FreezeRule",
    "LimitsConfig",
    "MaskingConfig",
    "MaskingUnit",
    "MeshConfig",
    "ModelSource",
    "ObjectiveConfig",
    "OneShotConfig",
    "OptimizerName",
    "OtherTeacher",
    "OutputConfig",
    "PrecisionName",
    "PrepareConfig",
    "PretrainConfig",
    "PretrainData",
    "PretrainModel",
    "PretrainPhase",
    "ProblemType",
    "PruneConfig",
    "PruneMethod",
    "QuantizeConfig",
    "RangeName",
    "RematPolicy",
    "RolloutConfig",
    "RoundingName",
    "RunConfig",
    "ScheduleName",
    "SchemeName",
    "StudentConfig",
    "TaskConfig",
    "TeacherConfig",
    "TlsConfig",
    "TokenizerConfig",
    "TrainConfig",
    "TrainQuantizeConfig",
]
