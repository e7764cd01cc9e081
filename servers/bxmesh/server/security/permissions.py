"""The one table of who may do what: what each method asks for, and what roles come with bxmesh.

The authorisation of every call, ListPermissions and docs/security.md are made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = [
    "CAPABILITIES",
    "METHODS",
    "OPEN_SERVICES",
    "PERMISSIONS",
    "ROLES",
    "Rule",
    "capability_permission",
    "known_method",
    "methods_of",
]

OPEN_SERVICES = frozenset(
    {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
)
"""What strangers may call."""

PERMISSIONS: Mapping[str, str] = MappingProxyType(
    {
        "geometry_calculation": "Make models, validate them and compute restraint energies.",
        "structure_factor_calculation": "Compute structure factors and maps.",
        "target_calculation": "Compute X-ray targets.",
        "gradient_calculation": "Compute gradients.",
        "bundle_read": "Read bundles that one sees.",
        "bundle_write": "Store bundles.",
        "bundle_delete": "Delete one's own bundles.",
        "coordinate_update": "Send new coordinates for a model: sessions, minimisation.",
        "experimental_data_processing": "Store reflections and make models with them.",
        "message_send": "Send messages to agents.",
        "message_receive": "Connect as an agent, receive messages and answer them.",
        "task_assign": "Assign tasks and chains, and cancel one's own.",
        "task_execute": "Take tasks, offer capabilities and report results.",
        "task_read": "See tasks and chains that one sees.",
        "state_read": "Read the state that agents share.",
        "state_write": "Change the state of one's own agents.",
        "queue_read": "See mailboxes, dead letters and figures of one's own agents.",
        "queue_write": "Replay and purge messages of one's own agents.",
        "agent_register": "Register agents of one's own and keep them alive.",
        "registry_read": "Find agents, watch them and read definitions.",
        "registry_write": "Change agent definitions and take any agent out of the mesh.",
        "function_read": "See stored functions.",
        "function_write": "Store, alias and delete functions.",
        "function_execute": "Execute stored functions.",
        "conversation_read": "Read conversations that one sees.",
        "conversation_write": "Hold and delete conversations.",
        "mesh_operate": "See and mend what belongs to others: tasks, mailboxes, bundles, state.",
        "security_admin": "Administer identities, roles, keys and policies.",
        "audit_read": "Read violations, reports and the audit log.",
    }
)
"""Every permission there is, and what it allows."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a method asks for."""

    permissions: tuple[str, ...] = ()
    """The caller needs all of them; none means that every identity may call."""
    also: tuple[tuple[str, str], ...] = ()
    """Pairs of a permission that the handler asks for besides, and when."""


def _all(service: str, rules: Mapping[str, str | Rule]) -> dict[str, Rule]:
    table = {}
    for names, rule in rules.items():
        for name in names.split():
            table[f"/bxmesh.{service}/{name}"] = rule if isinstance(rule, Rule) else _rule(rule)
    return table


def _rule(permissions: str) -> Rule:
    return Rule(tuple(permissions.split()))


_REFLECTIONS = (("experimental_data_processing", "for reflections"),)
_XRAY = (("target_calculation", "with an X-ray target"),)
_OTHERS = (("mesh_operate", "for what belongs to others"),)
_OTHERS_SECURITY = (("security_admin", "for another identity"),)

METHODS: Mapping[str, Rule] = MappingProxyType(
    _all(
        "geometry.v1.GeometryService",
        {
            "UploadBundle": Rule(("bundle_write",), _REFLECTIONS),
            "DownloadBundle GetBundle ListBundles": Rule(("bundle_read",), _OTHERS),
            "ShareBundle": "bundle_write",
            "DeleteBundle": Rule(("bundle_delete",), _OTHERS),
            "CreateModel": Rule(("bundle_read", "geometry_calculation"), _REFLECTIONS),
            "ComputeGradients": Rule(("gradient_calculation",), _XRAY),
            "StreamGradients": Rule(("gradient_calculation", "coordinate_update"), _XRAY),
            "Minimize": Rule(("gradient_calculation", "coordinate_update"), _XRAY),
            "ComputeStructureFactors ComputeMap": "structure_factor_calculation",
            "ComputeRealSpaceGradients": Rule(("gradient_calculation", "bundle_read")),
            "ValidateModel ExportRestraints": "geometry_calculation",
            "AnalyzeData": "experimental_data_processing",
            "CreateJob GetJob ListJobs CancelJob WatchJob": Rule(
                ("geometry_calculation",), _OTHERS
            ),
        },
    )
    | _all(
        "agent.v1.AgentService",
        {
            "Connect": "message_receive",
            "SendMessage BroadcastMessage": "message_send",
            "AssignTask": Rule(
                ("task_assign",), (("gradient_calculation", "for tasks of geometry workers"),)
            ),
            "CancelTask": Rule(("task_assign",), _OTHERS),
            "ReportTask": "task_execute",
            "GetTask ListTasks WatchTask GetTaskStats": Rule(("task_read",), _OTHERS),
            "GetState WatchState": "state_read",
            "UpdateState": Rule(("state_write",), _OTHERS),
            "ListDeadLetters GetQueueStats": Rule(("queue_read",), _OTHERS),
            "ReplayDeadLetters PurgeDeadLetters ReplayMessages": Rule(("queue_write",), _OTHERS),
        },
    )
    | _all(
        "agent.v1.ChainService",
        {
            "StartChain": "task_assign",
            "CancelChain": Rule(("task_assign",), _OTHERS),
            "GetChain ListChains WatchChain": Rule(("task_read",), _OTHERS),
        },
    )
    | _all(
        "agent.v1.ConversationService",
        {
            "StreamConversation StartConversation SendConversationMessage CancelConversation "
            "DeleteConversation PurgeConversations": "conversation_write",
            "GetConversation ListConversations SearchConversations ExportConversations "
            "GetConversationStats": Rule(("conversation_read",), _OTHERS),
        },
    )
    | _all(
        "agent.v1.FunctionService",
        {
            "CreateFunction UpdateFunctionAlias DeleteFunction": "function_write",
            "GetFunction ListFunctions GetFunctionStats": "function_read",
            "ExecuteFunction StreamFunction GetExecution ListExecutions CancelExecution": Rule(
                ("function_execute",), _OTHERS
            ),
        },
    )
    | _all(
        "health.v1.HealthService",
        {"GetHealth": Rule((), (("mesh_operate", "for more than states"),))},
    )
    | _all(
        "registry.v1.RegistryService",
        {
            "RegisterAgent": Rule(
                ("agent_register",), (("task_execute", "to offer capabilities"),)
            ),
            "KeepAlive": "agent_register",
            "DeregisterAgent": Rule(
                ("agent_register",), (("registry_write", "without the lease of the agent"),)
            ),
            "GetAgent ListAgents DiscoverAgents SelectAgent WatchAgents GetRegistryStats "
            "GetAgentDefinition ListAgentDefinitions ListAgentDefinitionVersions "
            "WatchAgentDefinitions": "registry_read",
            "CreateAgentDefinition": "registry_write",
            "UpdateAgentDefinition SetAgentDefinitionState DeleteAgentDefinition": Rule(
                ("registry_write",), _OTHERS
            ),
        },
    )
    | _all(
        "security.v1.SecurityService",
        {
            "ListPermissions ListTokenKeys IssueToken": Rule(),
            "ListMessageKeys": "registry_read",
            "GetIdentity CheckPermission CreateApiKey ListApiKeys RotateApiKey RevokeApiKey "
            "RevokeToken": Rule((), _OTHERS_SECURITY),
            "CreateIdentity UpdateIdentity ListIdentities DeleteIdentity GrantPermissions "
            "RevokePermissions CreateRole UpdateRole GetRole ListRoles DeleteRole ApplyPolicy "
            "GetPolicy ListPolicyVersions ListIpBlocks DeleteIpBlock": "security_admin",
            "ListViolations WatchViolations QueryAuditLog VerifyAuditLog": "audit_read",
            "GetSecurityReport": Rule((), (("audit_read", "beyond one's own report"),)),
        },
    )
    | {
        f"/grpc.channelz.v1.Channelz/{name}": _rule("mesh_operate")
        for name in (
            "GetTopChannels",
            "GetServers",
            "GetServer",
            "GetServerSockets",
            "GetChannel",
            "GetSubchannel",
            "GetSocket",
        )
    }
)
"""What each full method asks for; what is not here, nobody but an admin may call."""

_UNKNOWN_METHOD = "unknown"


def known_method(method: str) -> str:
    """Returns a full method that there is, or "unknown": callers make up as many as they like, and
    what is written down of strangers must not grow with them."""
    return method if method in METHODS else _UNKNOWN_METHOD


CAPABILITIES: Mapping[str, str] = MappingProxyType(
    {
        "geometry.gradients": "gradient_calculation",
        "geometry.structure_factors": "structure_factor_calculation",
        "geometry.targets": "target_calculation",
        "geometry": "geometry_calculation",
    }
)
"""What an agent that offers a capability, or one below it, must be allowed besides task_execute."""


def capability_permission(capability: str) -> str:
    """Returns the permission that a capability is bound to: the one of its longest prefix."""
    parts = capability.split(".")
    for length in range(len(parts), 0, -1):
        if permission := CAPABILITIES.get(".".join(parts[:length])):
            return permission
    return "task_execute"


_CALCULATIONS = (
    "geometry_calculation structure_factor_calculation target_calculation gradient_calculation "
    "bundle_read bundle_write bundle_delete coordinate_update experimental_data_processing"
)
_AGENT = (
    "agent_register registry_read message_send message_receive task_execute task_read "
    "state_read state_write queue_read queue_write"
)
_READER = (
    "bundle_read task_read registry_read state_read queue_read function_read conversation_read"
)

ROLES: Mapping[str, tuple[str, frozenset[str]]] = MappingProxyType(
    {
        name: (description, frozenset(permissions.split()))
        for name, (description, permissions) in {
            "worker": ("Offers calculations as an agent.", f"{_CALCULATIONS} {_AGENT}"),
            "agent": ("Talks, shares state and takes tasks.", _AGENT),
            "supervisor": (
                "An agent that hands out tasks and uses calculations and functions.",
                f"{_AGENT} {_CALCULATIONS} task_assign function_read function_execute "
                "conversation_read conversation_write",
            ),
            "reader": ("Looks, and changes nothing.", _READER),
            "operator": (
                "Sees and mends what belongs to anybody, but gives no rights.",
                f"{_READER} {_AGENT} task_assign registry_write mesh_operate audit_read",
            ),
            "admin": ("May do everything.", " ".join(PERMISSIONS)),
        }.items()
    }
)
"""The roles that come with bxmesh: what each is for and what it allows."""


def methods_of(permission: str) -> Iterable[str]:
    """Returns the full methods that ask for a permission, always or in some case."""
    return (
        method
        for method, rule in METHODS.items()
        if permission in rule.permissions or any(permission == name for name, _ in rule.also)
    )
