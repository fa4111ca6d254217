"""What a failure inside torch comes down to, in one line."""


def reason(error: BaseException) -> str:
    """Return the kind of an error's first cause and the first line of what it says, at most 200 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = (lines or ["nothing said"])[0][:200].rstrip(".:")
    return f"{type(error).__name__}: {said}"
