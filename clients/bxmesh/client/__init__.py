"""The client of the mesh."""

from bxmesh.client.agents import (
    Agent,
    AgentEvent,
    AgentInfo,
    AgentState,
    Drop,
    Message,
    Minion,
    MinionInfo,
    Retry,
    RetryPolicy,
    Supervisor,
    Task,
    TaskContext,
    TaskFailed,
    on,
    task,
    tool,
)
from bxmesh.client.bundles import AsyncBundles, Bundle
from bxmesh.client.chains import AsyncChains, Chain, ChainFailed, ChainRun, ChainStep, StepRun
from bxmesh.client.connection import Timeouts
from bxmesh.client.conversations import (
    AgentAnswer,
    AsyncConversations,
    Conversation,
    ConversationEvent,
    ConversationFailed,
    Participant,
    Question,
)
from bxmesh.client.definitions import (
    AsyncDefinitions,
    Definition,
    DefinitionLimits,
    ModelSettings,
    Rule,
    Tool,
)
from bxmesh.client.errors import (
    BxmeshError,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from bxmesh.client.functions import (
    AsyncFunctions,
    Execution,
    ExecutionEvent,
    Function,
    FunctionFailed,
    FunctionLimits,
)
from bxmesh.client.gradients import Gradients
from bxmesh.client.jobs import AsyncJobs, Job, JobResult
from bxmesh.client.layouts import Atom37, Atom37Map
from bxmesh.client.maps import DensityMap
from bxmesh.client.mesh import AsyncMesh
from bxmesh.client.minimization import Minimization, MinimizationStep
from bxmesh.client.models import Atoms, Model, ModelSummary
from bxmesh.client.options import GradientOptions
from bxmesh.client.real_space import RealSpaceGradients
from bxmesh.client.sessions import AsyncSession
from bxmesh.client.steps import Step
from bxmesh.client.structure_factors import StructureFactors
from bxmesh.client.sync import Bundles, Mesh, Session
from bxmesh.client.validation import Validation
from bxmesh.client.values import Progress, SampleValue

__all__ = [
    "Agent",
    "AgentAnswer",
    "AgentEvent",
    "AgentInfo",
    "AgentState",
    "AsyncBundles",
    "AsyncChains",
    "AsyncConversations",
    "AsyncDefinitions",
    "AsyncFunctions",
    "AsyncJobs",
    "AsyncMesh",
    "AsyncSession",
    "Atom37",
    "Atom37Map",
    "Atoms",
    "Bundle",
    "Bundles",
    "BxmeshError",
    "Cancelled",
    "Chain",
    "ChainFailed",
    "ChainRun",
    "ChainStep",
    "Conversation",
    "ConversationEvent",
    "ConversationFailed",
    "DeadlineExceeded",
    "Definition",
    "DefinitionLimits",
    "DensityMap",
    "Drop",
    "Execution",
    "ExecutionEvent",
    "FailedPrecondition",
    "Function",
    "FunctionFailed",
    "FunctionLimits",
    "GradientOptions",
    "Gradients",
    "InternalError",
    "InvalidInput",
    "Job",
    "JobResult",
    "Mesh",
    "Message",
    "Minimization",
    "MinimizationStep",
    "Minion",
    "MinionInfo",
    "Model",
    "ModelSettings",
    "ModelSummary",
    "NotFound",
    "Participant",
    "PermissionDenied",
    "Progress",
    "Question",
    "RealSpaceGradients",
    "ResourceExhausted",
    "Retry",
    "RetryPolicy",
    "Rule",
    "SampleValue",
    "Session",
    "Step",
    "StepRun",
    "StructureFactors",
    "Supervisor",
    "Task",
    "TaskContext",
    "TaskFailed",
    "Timeouts",
    "Tool",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Validation",
    "on",
    "task",
    "tool",
]
