"""Where several processes train together: one decides, all follow."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from graftax.errors import BadInput


def gather(value: Any) -> list[Any]:
    """The JSON values that all processes call this with, in the order of the processes."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(text.size)))  # (processes,)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: text.size] = text
    rows = np.asarray(multihost_utils.process_allgather(padded))  # (processes, bytes)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def decide(function: Callable[[], Any]) -> Any:
    """Call `function` on process 0 only; all processes return its JSON value, or all raise.

    A `BadInput` is raised everywhere with the same words; any other error as it is on process 0 and as RuntimeError on
    the others.
    """
    if jax.process_count() == 1:
        return function()
    value, caught = None, None
    if jax.process_index() == 0:
        try:
            value = function()
        except Exception as error:  # raised below, when the other processes know
            caught = error
    refusal = str(caught) if isinstance(caught, BadInput) else None
    answer = gather({"value": value, "refusal": refusal, "error": repr(caught) if caught else None})[0]
    if caught:
        raise caught
    if answer["refusal"] is not None:
        raise BadInput(answer["refusal"])
    if answer["error"] is not None:
        raise RuntimeError(f"process 0 failed: {answer['error']}")
    return answer["value"]
