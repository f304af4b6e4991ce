import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_graft import batch, mixed, teacher

from graftax.diffusion import Process
from graftax.distill import DistillConfig
from graftax.distill.groups import group_sites
from graftax.distill.teacher import Pairs, Teacher
from graftax.errors import BadInput
from graftax.models import Model
from graftax.spec import Prediction, Step
from graftax.surgery import Site
from graftax.surgery.select import select

T = jnp.array([0, 1, 99, 300, 500, 700, 998, 999], jnp.int32)


def pairs(of: Model, student: Model, process: Process, plan: str, t: jax.Array = T) -> Pairs:
    groups = group_sites(student.spec, select(student.meta.sites, student.spec))
    source = Teacher(of.spec, groups, process, DistillConfig(plan=plan))
    data = batch(0)
    noise = jax.random.normal(jax.random.key(5), data["image"].shape)
    return jax.jit(source.pairs)(source.prepare(of.params), data["image"], source.condition(data), t, noise)[0]


@pytest.mark.parametrize("plan", ["unroll", "auto", "kind_scan"])
def test_pairs_are_the_taps_of_the_whole_model_at_z_t(plan: str) -> None:
    original = teacher()
    process, data = Process(), batch(0)
    x_t = process.q_sample(data["image"], T, jax.random.normal(jax.random.key(5), data["image"].shape))
    _, taps = original.apply(x_t, T, data["label"], capture=("mixer/in", "mixer/out", "mlp/in", "mlp/out"))
    found = pairs(original, mixed(original), process, plan)
    blocks = {"mixer_hyena_x": [1, 3], "mixer_swa": [2], "mlp_mlp": [0]}
    assert len(found) == 3
    for name, (x, target) in found.items():
        slot, rows = name.split("_")[1], np.array(blocks[name.split("_", 1)[1]])
        assert x.shape == (len(rows), 8, 16, 48)
        np.testing.assert_allclose(x, taps[f"{slot}/in"][rows], atol=1e-5)
        np.testing.assert_allclose(target, taps[f"{slot}/out"][rows], atol=1e-5)


@pytest.mark.slow
def test_a_respaced_process_shows_the_model_its_original_times() -> None:
    original = teacher()
    short = Process().respaced(10)
    steps = jnp.arange(8, dtype=jnp.int32)
    few = pairs(original, mixed(original), short, "unroll", steps)
    full = pairs(original, mixed(original), Process(), "unroll", jnp.asarray(short.timestep_map)[steps])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), few, full)


def test_a_velocity_teacher_is_shown_its_own_path_and_times() -> None:
    spec = teacher(depth=1).spec.replace(prediction=Prediction("velocity", "data", True))
    of, data, t = Model(spec, teacher(depth=1).params), batch(0), jnp.linspace(0, 1, 8)
    noise, far = jax.random.normal(jax.random.key(5), data["image"].shape), t[:, None, None, None]
    _, taps = of.apply((1 - far) * data["image"] + far * noise, 1 - t, data["label"], capture=("mixer/in",))
    source = Teacher(spec, group_sites(spec, [Site(0, "mixer")]), None, DistillConfig())
    (found,) = source.pairs(source.prepare(of.params), data["image"], source.condition(data), t, noise)[0].values()
    np.testing.assert_allclose(found[0], taps["mixer/in"], atol=1e-5)
    with pytest.raises(BadInput, match=r"process: got Process.*, expected Flow"):
        Teacher(spec, group_sites(spec, [Site(0, "mixer")]), Process(), DistillConfig())


def test_the_teacher_stops_at_its_last_site() -> None:
    original = teacher(depth=6)
    groups = group_sites(original.spec, [Site(0, "mixer"), Site(1, "mixer")])
    source = Teacher(original.spec, groups, Process(), DistillConfig())
    assert len(source.prepare(original.params)["blocks"].segments[0].ids) == 2


@pytest.mark.parametrize(
    ("program", "runs"),
    [((Step((0,)), Step((2,))), 0), ((Step((0,)), Step((1,), loops=2)), 2), ((Step((0,)), Step((1,)), Step((1,))), 2)],
)
def test_a_block_that_does_not_run_once_is_refused(program: tuple[Step, ...], runs: int) -> None:
    spec = teacher().spec.replace(program=program)
    with pytest.raises(BadInput, match=rf"blocks\[1\].mixer: its block runs {runs} times"):
        Teacher(spec, group_sites(spec, [Site(0, "mixer"), Site(1, "mixer")]), Process(), DistillConfig())


def test_rows_follow_the_program_of_the_teacher() -> None:
    program = (Step((3,)), Step((0, 2)), Step((1,)))
    reordered = teacher().replace(spec=teacher().spec.replace(program=program))
    data = batch(0)
    noise = jax.random.normal(jax.random.key(5), data["image"].shape)
    x_t = Process().q_sample(data["image"], T, noise)
    _, taps = reordered.apply(x_t, T, data["label"], capture=("mixer/in",))
    groups = group_sites(reordered.spec, [Site(1, "mixer"), Site(2, "mixer")])
    source = Teacher(reordered.spec, groups, Process(), DistillConfig())
    pairs, _ = source.pairs(source.prepare(reordered.params), data["image"], source.condition(data), T, noise)
    (found,) = pairs.values()
    np.testing.assert_allclose(found[0], taps["mixer/in"][jnp.array([3, 2])], atol=1e-5)


def test_images_of_another_shape_are_refused() -> None:
    original = teacher()
    groups = group_sites(original.spec, [Site(0, "mixer")])
    source = Teacher(original.spec, groups, Process(), DistillConfig())
    wrong = jnp.zeros((8, 4, 4, 4))
    with pytest.raises(BadInput, match=r"batch image: shape \(8, 4, 4, 4\), expected \(b, 8, 8, 4\)"):
        source.pairs(source.prepare(original.params), wrong, {"y": jnp.zeros(8, jnp.int32)}, T, wrong)
