"""What a recipe's values may be, in the words of whoever set them."""

from collections.abc import Sequence


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise ValueError for a value that is not among those known."""
    if value not in known:
        raise ValueError(f"expected {name} to be one of {', '.join(known)}; got '{value}'")


def check_range(name: str, value: object, within: bool, limits: str) -> None:
    """Raise ValueError, naming the limits, for a value that is not within them."""
    if not within:
        raise ValueError(f"expected {name} to be {limits}; got {value}")
