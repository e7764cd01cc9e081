"""What schemathesis does before its calls: conversations that it begins end soon."""

from __future__ import annotations

from typing import Any

import schemathesis

_SECONDS = 0.1


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Lets no conversation wait long for participants that nobody is; what is wrong stays so."""
    if case.path in ("/chat", "/stream/new") and isinstance(case.body, dict):
        budget = case.body.setdefault("budget", {})
        if budget is None:
            budget = case.body["budget"] = {}
        if isinstance(budget, dict):
            seconds = budget.get("seconds", 0)
            if isinstance(seconds, int | float) and 0 <= seconds <= 86400:
                budget["seconds"] = min(seconds or _SECONDS, _SECONDS)
