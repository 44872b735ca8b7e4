"""The schema of ``intonaco.yaml`` and its errors.

Every field has a default that is safe for real use, or is required. Unknown fields are refused.
Secrets are written as ``env:NAME``. Paths are relative to the folder that holds the file.
"""

from __future__ import annotations

from intonaco.config.base import (
    Count,
    Positive,
    Section,
    Share,
)
from intonaco.config.data import JUDGED, KINDS, CheckBounds, Curation, Data, Kind, Policy
from intonaco.config.decision import (
    Budget,
    Decision,
    QuietHours,
    Recovery,
    Schedule,
    Triggers,
)
from intonaco.config.delivery import (
    DEFAULT_STEPS,
    MOST_ARMS,
    ON_CALL,
    ONLINE_METRICS,
    Approval,
    Console,
    HarmTolerances,
    NotifierConfig,
    Person,
    RegistryConfig,
    RolloutConfig,
    RolloutMargins,
    SplitConfig,
    Step,
    TrackerConfig,
    resolve_limits,
)
from intonaco.config.evaluation import Evaluation, Margins
from intonaco.config.reading import (
    json_schema,
    load,
    mistakes,
    parse,
)
from intonaco.config.review import ReviewConfig
from intonaco.config.root import (
    Config,
)
from intonaco.config.serving import (
    ApiKey,
    Feedback,
    Gateway,
    Generation,
    Limits,
    Model,
    Serving,
    Tracing,
    Worker,
)
from intonaco.config.signals import DEFAULT_SIGNALS, DetectorChoice, Signal
from intonaco.config.training import (
    FlowRecipe,
    LoraRecipe,
    Recipe,
    Samples,
    Training,
    VaeRecipe,
    Validation,
)
from intonaco.config.watching import (
    Extractor,
    Head,
    Maturity,
    Monitoring,
    Scoring,
)

__all__ = [
    "DEFAULT_SIGNALS",
    "DEFAULT_STEPS",
    "JUDGED",
    "KINDS",
    "MOST_ARMS",
    "ONLINE_METRICS",
    "ON_CALL",
    "ApiKey",
    "Approval",
    "Budget",
    "CheckBounds",
    "Config",
    "Console",
    "Count",
    "Curation",
    "Data",
    "Decision",
    "DetectorChoice",
    "Evaluation",
    "Extractor",
    "Feedback",
    "FlowRecipe",
    "Gateway",
    "Generation",
    "HarmTolerances",
    "Head",
    "Kind",
    "Limits",
    "LoraRecipe",
    "Margins",
    "Maturity",
    "Model",
    "Monitoring",
    "NotifierConfig",
    "Person",
    "Policy",
    "Positive",
    "QuietHours",
    "Recipe",
    "Recovery",
    "RegistryConfig",
    "ReviewConfig",
    "RolloutConfig",
    "RolloutMargins",
    "Samples",
    "Schedule",
    "Scoring",
    "Section",
    "Serving",
    "Share",
    "Signal",
    "SplitConfig",
    "Step",
    "Tracing",
    "TrackerConfig",
    "Training",
    "Triggers",
    "VaeRecipe",
    "Validation",
    "Worker",
    "json_schema",
    "load",
    "mistakes",
    "parse",
    "resolve_limits",
]
