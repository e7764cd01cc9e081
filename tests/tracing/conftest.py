"""What the tracing tests share."""

from tests.tracing.otlp import otlp

__all__ = ["otlp"]
