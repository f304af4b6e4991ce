"""Published PixArts by name: what each is, where to get it, and on what terms."""

from __future__ import annotations


def published(name: str) -> None:
    return None
