"""Compiling takes most of the tests' time, so most of them compile quickly; those that speak of what users get do not."""

import functools
import gc
import importlib.util
import os
import signal
import sys
import types

import jax
import pytest

from graftax.data import pack, source

pytest_plugins = ["tiny_world"]

SLOW_SECONDS = 2400
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""Half of the time that XLA compiles for a CPU goes into emitters of fast fusions, a quarter of the rest into splitting
programs for threads that other workers keep busy. Results stay within rounding. Where in Python an operation was called,
which takes a few per cent of the time, is not written into programs."""


def pytest_addoption(parser):
    parser.addoption("--full-compiler", action="store_true", help="leave the compiler's optimisation on for all tests")


def pytest_configure(config):
    """Quick compilation for all tests, and its cheapest kind for what test modules compute while they are imported."""
    if not config.getoption("--full-compiler"):
        os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
        jax.config.update("jax_disable_most_optimizations", True)
        jax.config.update("jax_traceback_in_locations_limit", 0)


def pytest_collection_finish(session):
    """Modules that tests import are no garbage, and what jax remembers is little: a tenth of the time went into looking."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    if not session.config.getoption("--full-compiler"):
        jax.config.update("jax_disable_most_optimizations", False)


def pytest_collection_modifyitems(items):
    """What is slow on one machine is three times slower on another, so the limit that finds a hang is a wide one."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request):
    """XLA's cheapest compilation, here and in processes that tests start (bits must agree between the two).

    Not for modules marked `full_compiler`, which look at memory, lines or times.
    """
    if request.config.getoption("--full-compiler") or request.node.get_closest_marker("full_compiler"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True, scope="session")
def garments_unpacked_once():
    """The embedded images take a third of a second to unpack, and many tests want them; nobody may write to them."""

    @functools.cache
    def once(data):
        splits = pack.unpack(data)
        for arrays in splits.values():
            for array in arrays:
                array.setflags(write=False)
        return splits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "unpack", once)
        yield


@pytest.fixture(scope="module")
def ctrl_c_is_heard():
    """Processes started meanwhile hear of Ctrl-C, even where a shell has told the tests, in the background, to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def bare_torch_fidelity():
    """Whether torch-fidelity is installed; its modules, and torchmetrics on top of them, then import without torchvision.

    Its package's __init__, which wants torchvision for metrics not used here, does not run.
    """
    found = importlib.util.find_spec("torch_fidelity") if "torch_fidelity" not in sys.modules else None
    if found is not None:
        package = types.ModuleType("torch_fidelity")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["torch_fidelity"] = package
    return "torch_fidelity" in sys.modules
