"""`torch.compile(model, backend="farskip")` for MoE models; `farskip_compile.passes` is the top-level folder `passes/`.

Rewires the residual stream to the FarSkip form (arXiv 2511.11505): attention reads it without the routed experts of
the previous layer, the feed-forward part without the attention of its own layer, so that compute need not wait for
expert-parallel and tensor-parallel communication. Weights stay as they are; the function changes.
"""

from farskip_compile.backend import Backend, FarSkipWarning, backend, farskip
from farskip_compile.config import FarSkipConfig
from farskip_compile.describe import describe
from farskip_compile.errors import (
    AsyncCollectiveError,
    ConfigError,
    ConnectivityError,
    DDPSplitError,
    DenseModelError,
    FarSkipError,
    InseparableExpertsError,
    LayerRangeError,
    ManifestError,
    NoResidualStackError,
    NotASumError,
    OptionsMismatchError,
    OrderMismatchError,
    ParallelismError,
    PartialModelError,
    RankFailedError,
    UnsupportedPatternError,
    VerificationError,
)
from farskip_compile.explain import Explanation, explain
from farskip_compile.manifest import Manifest, load_manifest, save_manifest
from farskip_compile.prepare import Preparation, prepare
from farskip_compile.report.compile import CompileReport, Outcome, clear_reports, last_reports
from farskip_compile.report.schedule import ScheduleReport, clear_schedules, last_schedules
from farskip_compile.verify.rewiring import Snapshot, Verified, snapshot, verify

__all__ = [
    "AsyncCollectiveError",
    "Backend",
    "CompileReport",
    "ConfigError",
    "ConnectivityError",
    "DDPSplitError",
    "DenseModelError",
    "Explanation",
    "FarSkipConfig",
    "FarSkipError",
    "FarSkipWarning",
    "InseparableExpertsError",
    "LayerRangeError",
    "Manifest",
    "ManifestError",
    "NoResidualStackError",
    "NotASumError",
    "OptionsMismatchError",
    "OrderMismatchError",
    "Outcome",
    "ParallelismError",
    "PartialModelError",
    "Preparation",
    "RankFailedError",
    "ScheduleReport",
    "Snapshot",
    "UnsupportedPatternError",
    "VerificationError",
    "Verified",
    "backend",
    "clear_reports",
    "clear_schedules",
    "describe",
    "explain",
    "farskip",
    "last_reports",
    "last_schedules",
    "load_manifest",
    "prepare",
    "save_manifest",
    "snapshot",
    "verify",
]
