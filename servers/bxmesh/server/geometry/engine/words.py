"""The words of cctbx's exceptions, made fit for a message."""

_LONGEST = 300


def words(error: Exception) -> str:
    """Return what `error` says on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
