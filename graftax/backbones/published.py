"""Lists of published models: what stands in one, and how a model is found by a name. Read without JAX."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from graftax.spec import ModelSpec


@dataclass(frozen=True)
class Scores:
    """What was published of a model's samples; None where it was not, or could not be checked here."""

    fid: float
    inception_score: float | None = None
    sfid: float | None = None
    precision: float | None = None
    recall: float | None = None


class Published(Protocol):
    """A published model, of any family.

    Attributes:
        name: what people call it: that of its repository or file.
        params: number of parameters, fixed tables included.
        flops: of one forward pass on one image.
        scores: what its authors publish.
        note: what else is to be known.
        edit: that makes it of its family's plain model, as `graftax graft --edit` takes it; "" where it is plain.
        blocks: that hold what the edit brings.
        page: where its authors present it.
        url: its weights, which `graftax.load` reads.
        licence: what is known of the terms of its weights. Not legal advice: read the authors' pages.
    """

    @property
    def name(self) -> str: ...
    @property
    def params(self) -> int: ...
    @property
    def flops(self) -> int: ...
    @property
    def scores(self) -> Scores | None: ...
    @property
    def note(self) -> str: ...
    @property
    def edit(self) -> str: ...
    @property
    def blocks(self) -> tuple[int, ...]: ...
    @property
    def page(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def licence(self) -> str: ...
    def spec(self) -> ModelSpec:
        """What the model is."""
        ...


P = TypeVar("P", bound=Published)


class Zoo(Mapping[str, P]):
    """A family's published models by name."""

    def __init__(
        self, entries: Sequence[P], variants: str, *, make: str = "variant", owner: str = "",
        also: Callable[[P], Sequence[str]] = lambda entry: (),
    ) -> None:  # fmt: skip
        """`variants`: the family's module that has `VARIANTS`, names of sizes that need no checkpoint, and a function `make`
        from such a name to the spec. `owner`: whose repositories the models are in, as it may stand before their names.
        `also`: what else files and folders with a model are called, without suffix."""
        self._entries = {entry.name: entry for entry in entries}
        self._called = {name: entry for entry in entries for name in (entry.name, *also(entry))}
        self._variants, self._make, self._owner = variants, make, owner

    def __getitem__(self, name: str) -> P:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the family's sizes."""
        return tuple(importlib.import_module(self._variants).VARIANTS)

    def published(self, name: str) -> P | None:
        """The model of a name, also of a file or folder called like it; None where none is published."""
        path = Path(name)
        return next((self._called[part] for part in (path.name, path.stem, path.parent.name) if part in self._called), None)

    def spec_of(self, name: str) -> ModelSpec | None:
        """The spec of a published model, its owner in front or not, or of a variant at its usual size, else None."""
        if entry := self._called.get(name.removeprefix(f"{self._owner}/")):
            return entry.spec()
        return getattr(importlib.import_module(self._variants), self._make)(name) if name in self.variants else None
