"""The time left of a long command, in words for a log file."""


def time_left(seconds: float) -> str:
    """Return the time left in words, such as `about 40 s left`."""
    if seconds < 120:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 7200 else f"about {seconds / 3600:.1f} h left"
