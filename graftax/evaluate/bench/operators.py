"""Every mixer of tokens against attention, over sequence lengths: time, memory, and what a whole block gains."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax import ops
from graftax.backbones.dit import variants as dit
from graftax.blocks import block_kind
from graftax.errors import BadInput
from graftax.evaluate.bench.attention import whole_block
from graftax.evaluate.bench.rows import Row, Rows
from graftax.evaluate.bench.timing import Timing, free_memory, interleaved, load, peak_bytes, temp_mb
from graftax.models.arguments import as_float_type
from graftax.ops.base import Operator, call
from graftax.progress import Progress
from graftax.spec import Sizes, op
from graftax.surgery.parse import parse_operator

ATTENTION = "mha"
REST = "rest of the block"
TRAINING = "train"
LARGEST_SIDE = 256
"""Of the grids over which cost formulas are compared: 65,536 tokens."""


class Nothing(Operator):
    """A mixer that does nothing, for a block without one."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


@dataclass(eq=False)
class Candidate:
    """One operator at one length, in one of the two ways to run it.

    Attributes:
        mixer: its name.
        train: whether this is the gradient in weights and input, forward pass included.
        operator: itself.
        flops: of its forward pass.
        note: why it was not run, "" where it was.
        run: one call, where it can be run.
        temp_mb: its working memory, where it was compiled.
        time: of all rounds, where it was run.
    """

    mixer: str
    train: bool
    operator: Operator
    flops: int
    note: str = ""
    run: Callable[[], Any] | None = None
    temp_mb: float | None = None
    time: Timing | None = None

    @property
    def gflop(self) -> float:
        """What one call computes, a gradient three times the forward pass."""
        return (3 if self.train else 1) * self.flops / 1e9


def bench_operators(
    tokens: tuple[int, ...] = (256, 1024, 4096, 16384, 65536), mixers: tuple[str, ...] = (), width: int = 1152,
    heads: int = 16, rounds: int = 3, dtype: str = "float32", seconds: float = 30.0, memory_gb: float = 0.0,
) -> Rows:  # fmt: skip
    """Every mixer that fits, against attention, from 256 to 65,536 tokens: where it wins, forward and in training.

    `mixers`: such as ("swa", "swa(window=8)"), () for all that are registered, with their default options. Each is timed by
    itself on one image with its projections, attention in the form that models take at this size; "train" is the gradient
    in weights and input, forward pass included. The rest of a DiT's block (modulation, norms, MLP) is timed beside
    them, so that the gain of a block is known: that of a whole model is no larger. The defaults are DiT-XL's sizes.

    A call that the one before, at fewer tokens, and the cost formula let expect to take longer than `seconds` is not made,
    nor one that needs more than `memory_gb` (0: what is free): its `note` says so.

    Columns: tokens, mixer, width, heads, gflop (forward, by the cost formula), flops_ratio (attention's over its own),
    forward_ms, forward_speedup (attention's time over its own, median over rounds), share (of a block's forward pass),
    block_speedup (of a block whose attention it replaces), forward_temp_mb, the same five of training (train_...), spread,
    load, note.
    Raises `BadInput` on unknown mixers, and where tokens make no square image.
    """
    if not tokens or list(tokens) != sorted(set(tokens)):
        raise BadInput(f"bench operators tokens: got {tokens}, expected different numbers in ascending order")
    kind, limit = as_float_type(dtype), memory_gb * 1e9
    plan = [_candidates(_sizes(n, width, heads), mixers, kind) for n in tokens]
    calls = rounds + 1
    total = calls * sum(_units(one) for length in plan for one in length)
    rows, before = list[Row](), dict[tuple[str, bool], Candidate]()
    with Progress(total, "operators", unit="MFLOP") as progress:
        for length in plan:
            _try(length, before, calls, seconds, limit, progress)
            rows += _timed(length, rounds, progress)
            before |= {(one.mixer, one.train): one for one in length if one.time}
            jax.clear_caches()
    return rows


def break_even(lengths: Sequence[int], speedups: Sequence[float | None]) -> float | None:
    """The number of tokens from which a speed-up stays at 1 or more, read off a line between two measured ones (logarithms
    of both); the first length where it is so from there on, infinity where the last is still slower, None without any."""
    known = [(n, s) for n, s in zip(lengths, speedups, strict=True) if s is not None]
    slower = [i for i, (_, s) in enumerate(known) if s < 1]
    if not known or not slower:
        return float(known[0][0]) if known else None
    if slower[-1] + 1 == len(known):
        return math.inf
    (n0, s0), (n1, s1) = known[slower[-1]], known[slower[-1] + 1]
    part = -math.log(s0) / (math.log(s1) - math.log(s0))
    return n0 * (n1 / n0) ** part


def break_even_by_cost(mixer: str, width: int, heads: int) -> float:
    """The fewest tokens, a square, from which on to 65,536 the cost formula gives an operator fewer FLOPs than attention;
    infinity where it still has no fewer there."""
    first = None
    for side in range(LARGEST_SIDE, 0, -1):
        sizes = _sizes(side**2, width, heads)
        try:
            cheaper = _build(mixer, sizes).cost().flops < _build(ATTENTION, sizes).cost().flops
        except BadInput:  # too small for it
            break
        if not cheaper:
            break
        first = side**2
    return math.inf if first is None else float(first)


def _sizes(tokens: int, width: int, heads: int) -> Sizes:
    side = math.isqrt(tokens)
    if side**2 != tokens or width % heads:
        raise BadInput(f"bench operators: {tokens} tokens, width {width}, {heads} heads, expected a square, and whole heads")
    return Sizes(width, heads, width // heads, (side, side))


def _build(mixer: str, sizes: Sizes, dtype: Any = None) -> Operator:
    return ops.build(ops.resolve(parse_operator(mixer), "mixer", sizes), sizes, dtype)


def _candidates(sizes: Sizes, mixers: Sequence[str], dtype: Any) -> list[Candidate]:
    """Attention, the rest of a block, the mixers; each both ways. Of all that are registered those that cannot be built at
    this size are left out, for named ones that is an error."""
    built = {ATTENTION: _build(ATTENTION, sizes, dtype), REST: Nothing(sizes, dtype)}
    for name in mixers or [kind for kind, cls in ops.OPERATORS.items() if cls.role == "mixer"]:
        try:
            built.setdefault(name, _build(name, sizes, dtype))
        except BadInput:
            if mixers:
                raise
    flops = {name: _rest_flops(sizes) if name == REST else operator.cost().flops for name, operator in built.items()}
    return [Candidate(name, train, built[name], flops[name]) for name in built for train in (False, True)]


def _rest_flops(sizes: Sizes) -> int:
    """Of a DiT's block without its mixer."""
    held = {**dit.around(), "mlp": op("mlp")}
    slots = [slot for slot in block_kind("dit").slots if slot.name in held]
    return sum(slot.build(slot.resolve(held[slot.name], sizes), sizes).cost().flops for slot in slots)


def _units(one: Candidate) -> int:
    """How much of the progress bar a call is: its MFLOPs."""
    return max(1, round(1e3 * one.gflop))


def _try(
    length: list[Candidate], before: Mapping[tuple[str, bool], Candidate], calls: int, seconds: float, limit: float,
    progress: Progress,
) -> None:  # fmt: skip
    """Compile all and call each once, but those that are expected to be too long or too large. They share their input, which
    has 0.3 GB at 65,536 tokens."""
    sizes, rng = length[0].operator.sizes, np.random.default_rng(0)
    x, g = (jnp.asarray(rng.standard_normal((1, sizes.tokens, sizes.width), np.float32)) for _ in range(2))
    for one in length:
        last = before.get((one.mixer, one.train))
        expected = last.time.median * one.gflop / last.gflop if last and last.time else 0.0
        if last is None and before:
            one.note = "not tried: fewer tokens were too many"
        elif expected > seconds:
            one.note = f"not run: about {expected:,.0f} s a call expected, more than {seconds:g}"
        else:
            one.note = _prepare(one, x, g, limit)
        if one.note:
            one.run = None
            progress.skip(calls * _units(one))
        else:
            progress.advance(_units(one))


def _prepare(one: Candidate, x: jax.Array, g: jax.Array, limit: float) -> str:
    """Compile and call it once; what forbids that, "" where nothing does."""
    try:
        compiled, arguments = _compiled(one, x, g)
        one.temp_mb = temp_mb(compiled)
        needed, there = peak_bytes(compiled), limit or free_memory()
        if needed > there:
            return f"not run: needs {needed / 1e9:.3g} GB, {there / 1e9:.3g} GB are free"
        one.run = functools.partial(compiled, *arguments)
        jax.block_until_ready(one.run())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return "not run: the device's memory is exhausted"
    return ""


def _compiled(one: Candidate, x: jax.Array, g: jax.Array) -> tuple[jax.stages.Compiled, tuple[Any, ...]]:
    """The candidate as a compiled function, and its arguments: weights, input x (1, n, d), and in training the gradient g of
    its output."""
    run, weights = _alone(one.operator)
    if isinstance(one.operator, Nothing):
        run, weights = whole_block("dit", one.operator, one.operator.sizes, one.operator.dtype)
    if not one.train:
        return jax.jit(run).lower(weights, x).compile(), (weights, x)

    def loss(weights: Any, x: jax.Array, g: jax.Array) -> jax.Array:
        return jnp.sum(g * run(weights, x))

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return step.lower(weights, x, g).compile(), (weights, x, g)


def _alone(operator: Operator) -> tuple[Callable[[Any, jax.Array], jax.Array], Any]:
    """An operator as a function of its weights and of x (1, n, d), and such weights."""
    inputs, reads = operator.example()
    weights: Any = jax.jit(operator.init)(jax.random.key(0), *inputs, **reads).get("params", {})
    return lambda weights, x: call(operator, weights, x, **reads), weights


def _timed(length: list[Candidate], rounds: int, progress: Progress) -> Iterator[Row]:
    """The rows of one length; its candidates take turns."""

    def counted(one: Candidate, run: Callable[[], Any]) -> None:
        jax.block_until_ready(run())
        progress.advance(_units(one))

    before = load()
    runs = {(one.mixer, one.train): functools.partial(counted, one, one.run) for one in length if one.run}
    times = interleaved(runs, rounds, warmup=0)
    for one in length:
        one.time, one.run = times.get((one.mixer, one.train)), None  # lets go of its arrays
    by_name = {(one.mixer, one.train): one for one in length}
    for name in dict.fromkeys(one.mixer for one in length):
        yield _row(name, by_name, before)


def _row(name: str, by_name: Mapping[tuple[str, bool], Candidate], before: float) -> Row:
    forward, train = (by_name[name, way] for way in (False, True))
    sizes = forward.operator.sizes
    row: Row = {"tokens": sizes.tokens, "mixer": name, "width": sizes.width, "heads": sizes.heads, "gflop": forward.gflop}
    row["flops_ratio"] = None if name == REST else by_name[ATTENTION, False].gflop / forward.gflop
    for one, prefix in ((forward, "forward"), (train, TRAINING)):
        attention, rest = (by_name[other, one.train].time for other in (ATTENTION, REST))
        own = None if name == REST else one.time
        block = "block_speedup" if one is forward else f"{TRAINING}_block_speedup"
        row |= {
            f"{prefix}_ms": 1e3 * one.time.median if one.time else None,
            f"{prefix}_speedup": attention.over(own) if attention and own else None,
            "share" if one is forward else f"{TRAINING}_share": own.over(own.plus(rest)) if own and rest else None,
            block: attention.plus(rest).over(own.plus(rest)) if attention and own and rest else None,
            f"{prefix}_temp_mb": one.temp_mb,
        }
    note = "; ".join(dict.fromkeys(f"{p} {c.note}" for p, c in (("forward", forward), ("training", train)) if c.note))
    return {**row, "spread": forward.time.spread if forward.time else None, "load": before, "note": note}
