"""The nouns. One meaning each; ``docs/glossary.md`` says them in words.

Everything here is an immutable value. Times are seconds since the Unix epoch, durations seconds,
money is in the service's currency. Ids are opaque strings.
"""

from __future__ import annotations

from intonaco.types.decisions import (
    Estimate,
    Option,
    Reckoning,
)
from intonaco.types.monitoring import (
    ClusterMove,
    Diagnosis,
    Finding,
    Plan,
    ProbeRound,
    SignalStatus,
)
from intonaco.types.releases import (
    DatasetDiff,
    DatasetVersion,
    Provenance,
    Release,
    ServingSpec,
)
from intonaco.types.telemetry import Sample, Tally, TrafficWindow
from intonaco.types.traffic import (
    Arm,
    Attempt,
    BreakerTrip,
    Feedback,
    Observed,
    Record,
    RoutingTable,
    ScoredRecord,
)
from intonaco.types.updates import (
    Candidate,
    Event,
    JobHandle,
    JobSpec,
    JobStatus,
    MetricAssessment,
    MetricResult,
    Rollout,
    RolloutStep,
    ServingStatus,
    StepResult,
    Update,
)
from intonaco.types.vocabulary import (
    Action,
    ArmRole,
    Assessment,
    Cause,
    Factor,
    JobState,
    Json,
    Outcome,
    Phase,
    RolloutStatus,
    StepKind,
    Verdict,
)

__all__ = [
    "Action",
    "Arm",
    "ArmRole",
    "Assessment",
    "Attempt",
    "BreakerTrip",
    "Candidate",
    "Cause",
    "ClusterMove",
    "DatasetDiff",
    "DatasetVersion",
    "Diagnosis",
    "Estimate",
    "Event",
    "Factor",
    "Feedback",
    "Finding",
    "JobHandle",
    "JobSpec",
    "JobState",
    "JobStatus",
    "Json",
    "MetricAssessment",
    "MetricResult",
    "Observed",
    "Option",
    "Outcome",
    "Phase",
    "Plan",
    "ProbeRound",
    "Provenance",
    "Reckoning",
    "Record",
    "Release",
    "Rollout",
    "RolloutStatus",
    "RolloutStep",
    "RoutingTable",
    "Sample",
    "ScoredRecord",
    "ServingSpec",
    "ServingStatus",
    "SignalStatus",
    "StepKind",
    "StepResult",
    "Tally",
    "TrafficWindow",
    "Update",
    "Verdict",
]
