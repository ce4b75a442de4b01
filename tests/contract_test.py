"""What every algorithm promises (`types.Algorithm`): one contract over all modules.

A new module in mbrl_jax/algorithms needs a row in ROWS: a light environment and a
configuration that steps within milliseconds.
"""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import algorithms, networks, rollout
from mbrl_jax.algorithms import (
    a2c,
    actor_mimic,
    apg,
    bptt,
    deep_pilco,
    deep_spatial_autoencoder,
    distral,
    divide_and_conquer,
    dqn,
    dyna,
    dyna_q,
    e2c,
    gcg,
    gps,
    lqr_flm,
    maac,
    mba,
    mbpo,
    mbrl_v05,
    mbrl_v10,
    mbrl_v15,
    me_trpo,
    mve,
    naf,
    nagabandi,
    npg,
    pets,
    pilco,
    pipps,
    policy_distillation,
    power,
    ppo,
    qt_opt,
    reinforce,
    sac,
    shac,
    simple,
    steve,
    svg,
    td3,
    trpo,
    visual_foresight,
)
from mbrl_jax.algorithms import mpc as true_mpc
from mbrl_jax.envs import (
    grid,
    multi_task,
    pixels,
    planar,
    point_mass,
    simulator,
    two_discs,
)
from mbrl_jax.models import (
    bnn,
    ensemble,
    gaussian_process,
    latent,
    next_frame,
    spatial_autoencoder,
    video,
)
from mbrl_jax.models import by_name as models
from mbrl_jax.planners import mpc
from mbrl_jax.policy_gradient import natural_gradient
from mbrl_jax.policy_gradient import ppo as ppo_learner
from mbrl_jax.policy_gradient import reinforce as reinforce_learner
from mbrl_jax.policy_gradient import trpo as trpo_learner
from mbrl_jax.policy_gradient.actor_critic import Config as NetConfig
from mbrl_jax.policy_gradient.experience import CriticConfig
from mbrl_jax.replay import Replay
from mbrl_jax.types import Algorithm, Array, Env, EnvState, Key, Metrics, PyTree
from mbrl_jax.value_learning import branching, by_name, distillation, off_policy
from mbrl_jax.value_learning import dqn as dqn_learner
from mbrl_jax.value_learning import gcg as gcg_learner
from mbrl_jax.value_learning import naf as naf_learner
from mbrl_jax.value_learning import qt_opt as qt_opt_learner
from mbrl_jax.value_learning import sac as sac_learner
from mbrl_jax.value_learning import td3 as td3_learner
from tests import keys, mass

STEPS = 3  # of the algorithm, in a run


class Row(NamedTuple):
    env: Env
    config: Any


SHORT = simulator.time_limit(point_mass.make(), 4)
TINY_MODEL = models.Config(
    ensemble=ensemble.Config(
        num_members=3,
        num_elites=2,
        hidden_sizes=(8,),
        weight_decay=(1e-3, 2e-3),
        batch_size=4,
        num_epochs=3,
    )
)
TINY_PLAN = mpc.Config(horizon=3, num_samples=6, num_elites=3, num_iterations=2)
TINY_NET = NetConfig(hidden_sizes=(8,))
TINY_CRITIC = CriticConfig(num_epochs=2, num_minibatches=2)
TINY_COLLECT = off_policy.Config(  # nothing is learned in the first step
    capacity=12, warmup=4, interval=5, batch_size=8
)
TINY_SAC = sac_learner.Config(hidden_sizes=(8,), discount=0.9)
TINY_TD3 = td3_learner.Config(hidden_sizes=(8,), discount=0.9)
TINY_FUTURES = branching.Config(
    num_rollouts=4, last_length=2, grow_from=5, grow_until=10, retain=1
)  # longer in the third step than in the second
HALL = grid.make("hall", grid.parse("S.\nG.", slip=0.1), episode_length=4)
YARD = grid.make("yard", grid.parse("SG.", slip=0.1), episode_length=3)
TWO_HALLS = multi_task.make([HALL, YARD])
TINY_DISTIL = distillation.Config(
    capacity=6,
    interval=5,
    num_updates=2,
    batch_size=4,
    num_teacher_steps=1,
    collect=TINY_COLLECT,
    teacher=dqn_learner.Config(hidden_sizes=(8,)),
)
ROWS = {
    "a2c": Row(SHORT, a2c.Config(num_envs=3, num_updates=2, net=TINY_NET)),
    "actor_mimic": Row(HALL, actor_mimic.Config(hidden_sizes=(8,), distil=TINY_DISTIL)),
    "apg": Row(
        SHORT,
        apg.Config(
            num_envs=3,
            horizon=4,
            num_updates=2,
            discount=0.9,
            decay_steps=10,
            hidden_sizes=(8,),
            segment=2,
        ),
    ),
    "bptt": Row(
        SHORT,
        bptt.Config(
            capacity=10,
            num_updates=2,
            num_rollouts=4,
            horizon=3,
            discount=0.9,
            hidden_sizes=(8,),
            model=TINY_MODEL,
        ),
    ),
    "deep_pilco": Row(
        simulator.time_limit(mass.make(), 4),
        deep_pilco.Config(
            capacity=10,
            policy="linear",
            num_particles=4,
            num_updates=2,
            model=bnn.Config(
                kind="concrete_dropout",
                num_members=3,
                hidden_sizes=(8,),
                batch_size=4,
                num_updates=3,
            ),
        ),
    ),
    "distral": Row(
        TWO_HALLS,
        distral.Config(
            hidden_sizes=(8,),
            capacity=6,
            newest=6,
            interval=5,
            num_updates=2,
            batch_size=4,
        ),
    ),
    "divide_and_conquer": Row(
        SHORT,
        divide_and_conquer.Config(
            num_contexts=2,
            num_starts=12,
            num_episodes=6,
            period=2,
            num_last_passes=3,
            batch_size=8,
            net=TINY_NET,
            # more conjugate gradients would blow up the rounding of batched sums
            learn=trpo_learner.Config(num_iterations=3, critic=TINY_CRITIC),
        ),
    ),
    "deep_spatial_autoencoder": Row(
        pixels.make(
            simulator.time_limit(two_discs.make(), 4),
            pixels.Config(size=16, num_frames=1),
        ),
        deep_spatial_autoencoder.Config(
            num_random=2,
            num_guided=1,
            capacity=4,
            num_updates=2,
            batch_size=2,
            learning_rate=1e-5,  # Adam makes whole steps of gradients that are rounding
            num_kept=1,
            num_iterations=1,
            num_episodes=5,
            strength=20.0,
            num_clusters=1,
            num_remembered=8,
            model=spatial_autoencoder.Config(
                2, (3,), (3, 1), temperature=0.01, decoded_size=2
            ),
        ),
    ),
    "dqn": Row(
        HALL,
        dqn.Config(TINY_COLLECT, dqn_learner.Config(hidden_sizes=(8,))),
    ),
    "dyna": Row(
        SHORT,
        dyna.Config(
            starts="latest",
            actions="taken",
            collect=TINY_COLLECT,
            learner=by_name.Config(sac=TINY_SAC),
            imagine=TINY_FUTURES,
            model=TINY_MODEL,
        ),
    ),
    "dyna_q": Row(
        HALL,
        dyna_q.Config(interval=6, num_planning=3, kappa=1e-2),
    ),
    "e2c": Row(
        pixels.make(
            simulator.time_limit(planar.make(), 4),
            pixels.Config(size=4, num_frames=1, vector=True),
        ),
        e2c.Config(
            capacity=10,
            num_episodes=2,
            num_updates=2,
            batch_size=4,
            plan=mpc.Config(horizon=2, num_samples=3, num_iterations=1),
            model=latent.Config(2, (8,), (8,), (8,)),
        ),
    ),
    "gcg": Row(
        SHORT,
        gcg.Config(
            TINY_COLLECT,
            gcg_learner.Config(
                bootstrap=True,
                hidden_size=8,
                encoder_sizes=(8,),
                plan=mpc.Config(horizon=2, num_samples=4),
            ),
        ),
    ),
    "gps": Row(
        SHORT,
        gps.Config(
            variant="badmm",
            num_conditions=2,
            num_episodes=5,
            num_clusters=2,
            rows_per_cluster=15,
            num_remembered=8,
            hidden_sizes=(8,),
            num_updates=5,
            batch_size=16,
            num_inner=2,
        ),
    ),
    "lqr_flm": Row(
        SHORT,
        lqr_flm.Config(
            num_episodes=5, num_clusters=2, rows_per_cluster=15, num_remembered=8
        ),
    ),
    "maac": Row(
        SHORT,
        maac.Config(
            max_horizon=2,
            num_windows=5,
            collect=TINY_COLLECT,
            learn=TINY_SAC,
            imagine=TINY_FUTURES,
            model=TINY_MODEL,
        ),
    ),
    "mba": Row(
        SHORT,
        mba.Config(
            # fewer data leave the linear model undetermined
            collect=dataclasses.replace(
                TINY_COLLECT, capacity=60, warmup=16, interval=16
            ),
            learn=naf_learner.Config(hidden_sizes=(8,)),
            num_episodes=8,
            num_rollouts=4,
            rollout_length=2,
            retain=2,
        ),
    ),
    "mbpo": Row(
        SHORT,
        mbpo.Config(TINY_COLLECT, TINY_SAC, TINY_FUTURES, TINY_MODEL, num_watched=5),
    ),
    "mbrl_v05": Row(SHORT, mbrl_v05.Config(10, "cem", TINY_PLAN, TINY_MODEL)),
    "mbrl_v10": Row(SHORT, mbrl_v10.Config(10, 1, "cem", TINY_PLAN, TINY_MODEL)),
    "mbrl_v15": Row(SHORT, mbrl_v15.Config(10, 1, "cem", TINY_PLAN, TINY_MODEL)),
    "me_trpo": Row(
        SHORT,
        me_trpo.Config(
            capacity=20,
            num_episodes=2,
            num_rollouts=4,
            horizon=3,
            num_updates=2,
            num_rounds=2,
            min_improved=0.0,
            net=TINY_NET,
            # more conjugate gradients would blow up the rounding of batched sums
            trpo=trpo_learner.Config(num_iterations=3, critic=TINY_CRITIC),
            model=TINY_MODEL,
        ),
    ),
    "mpc": Row(simulator.observe_all(SHORT), true_mpc.Config("cem", TINY_PLAN)),
    "mve": Row(
        SHORT,
        mve.Config(
            horizon=2,
            collect=TINY_COLLECT,
            learner=by_name.Config(name="td3", td3=TINY_TD3),
            model=TINY_MODEL,
        ),
    ),
    "naf": Row(SHORT, naf.Config(TINY_COLLECT, naf_learner.Config(hidden_sizes=(8,)))),
    "nagabandi": Row(
        SHORT,
        nagabandi.Config(
            capacity=10,
            num_model_episodes=0,
            num_imitations=1,
            num_episodes=2,
            num_updates=2,
            batch_size=4,
            net=NetConfig(hidden_sizes=(8,), squash=True),
            trpo=trpo_learner.Config(critic=TINY_CRITIC),
            planner="cem",
            plan=TINY_PLAN,
            model=TINY_MODEL,
        ),
    ),
    "npg": Row(
        SHORT,
        npg.Config(
            num_envs=3,
            window=5,
            net=TINY_NET,
            learn=natural_gradient.Config(critic=TINY_CRITIC),
        ),
    ),
    "pets": Row(
        SHORT,
        pets.Config(
            capacity=10,  # the third episode overwrites the first
            num_particles=4,
            planner="cem",
            plan=TINY_PLAN,
            model=TINY_MODEL,
        ),
    ),
    "pilco": Row(
        simulator.time_limit(mass.make(), 4),
        pilco.Config(
            capacity=10,
            policy="linear",
            num_restarts=2,
            max_evaluations=4,
            model=gaussian_process.Config(max_exact=8, max_evaluations=4),
        ),
    ),
    "pipps": Row(
        simulator.time_limit(mass.make(), 4),
        pipps.Config(
            capacity=10,
            policy="linear",
            num_particles=4,
            num_updates=2,
            model=gaussian_process.Config(max_exact=8, max_evaluations=4, max_snr=10.0),
        ),
    ),
    "policy_distillation": Row(
        TWO_HALLS, policy_distillation.Config(hidden_sizes=(8,), distil=TINY_DISTIL)
    ),
    "power": Row(
        SHORT,
        power.Config(
            positions=(0, 1),
            velocities=(2, 3),
            goal=(0.5, -0.5),
            num_basis=3,
            num_rollouts=3,
            num_remembered=7,
            num_elites=3,
        ),
    ),
    "ppo": Row(
        SHORT,
        ppo.Config(
            num_envs=3,
            window=5,
            net=NetConfig(hidden_sizes=(8,), memory_size=4, squash=True),
            learn=ppo_learner.Config(num_epochs=2, num_minibatches=2),
        ),
    ),
    "qt_opt": Row(
        SHORT,
        qt_opt.Config(
            TINY_COLLECT,
            qt_opt_learner.Config(
                hidden_sizes=(8,), lag=4, num_samples=6, num_elites=2, num_iterations=2
            ),
        ),
    ),
    "reinforce": Row(
        SHORT,
        reinforce.Config(
            num_envs=3,
            net=TINY_NET,
            learn=reinforce_learner.Config(critic=TINY_CRITIC),
        ),
    ),
    "sac": Row(SHORT, sac.Config(TINY_COLLECT, TINY_SAC)),
    "shac": Row(
        SHORT,
        shac.Config(
            num_envs=3,
            horizon=4,
            num_updates=2,
            hidden_sizes=(8,),
            critic_sizes=(8,),
            num_epochs=2,
            num_minibatches=3,
        ),
    ),
    "simple": Row(
        pixels.make(
            simulator.time_limit(planar.make(), 4), pixels.Config(size=4, num_frames=2)
        ),
        simple.Config(
            capacity=20,
            num_envs=2,
            window=5,
            num_model_updates=2,
            batch_size=3,
            sequence_length=2,
            num_policy_updates=2,
            num_rollouts=3,
            horizon=3,
            net=TINY_NET,
            pixels=networks.EncoderConfig((4,), 4),
            learn=ppo_learner.Config(num_epochs=1, num_minibatches=1),
            model=next_frame.Config((4, 4), 4, 0),
        ),
    ),
    "steve": Row(
        SHORT,
        steve.Config(
            horizon=2,
            collect=TINY_COLLECT,
            learner=by_name.Config(name="td3", td3=TINY_TD3),
            model=TINY_MODEL,
        ),
    ),
    "svg": Row(
        SHORT,
        svg.Config(
            horizon=2,
            capacity=10,
            num_updates=2,
            batch_size=4,
            hidden_sizes=(8,),
            critic_sizes=(8,),
            model=TINY_MODEL,
        ),
    ),
    "td3": Row(
        SHORT,
        td3.Config(dataclasses.replace(TINY_COLLECT, num_envs=2), TINY_TD3),
    ),
    "trpo": Row(
        SHORT,
        trpo.Config(
            num_envs=3,
            window=5,
            net=TINY_NET,
            learn=trpo_learner.Config(critic=TINY_CRITIC),
        ),
    ),
    "visual_foresight": Row(
        pixels.make(
            simulator.time_limit(planar.make(), 4),
            pixels.Config(size=4, num_frames=1, colour=True),
        ),
        visual_foresight.Config(
            capacity=10,
            num_episodes=2,
            num_updates=2,
            batch_size=4,
            length=2,
            planner="random_shooting",
            plan=mpc.Config(horizon=2, num_samples=3),
            model=video.Config(kernel_size=3, num_channels=4, num_layers=2),
        ),
    ),
}
ENV_STEPS = {  # real steps in STEPS of a row: envs x window x updates, or episodes of 4
    "a2c": 3 * 5 * 2 * STEPS,
    "actor_mimic": 5 * STEPS,
    "apg": 3 * 4 * 2 * STEPS,
    "bptt": 4 * STEPS,
    "deep_pilco": 4 * STEPS,
    "deep_spatial_autoencoder": (3 + 5) * 4 * STEPS,
    "divide_and_conquer": 6 * 4 * STEPS,
    "distral": 2 * 5 * STEPS,
    "dqn": 5 * STEPS,
    "dyna": 5 * STEPS,
    "dyna_q": 6 * STEPS,
    "e2c": 2 * 4 * STEPS,
    "gcg": 5 * STEPS,
    "gps": 2 * 5 * 4 * STEPS,
    "lqr_flm": 5 * 4 * STEPS,
    "maac": 5 * STEPS,
    "mba": 16 * STEPS,
    "mbpo": 5 * STEPS,
    "mbrl_v05": 4 * STEPS,
    "mbrl_v10": 4 * STEPS,
    "mbrl_v15": 4 * STEPS,
    "me_trpo": 2 * 4 * STEPS,
    "mpc": 4 * STEPS,
    "mve": 5 * STEPS,
    "naf": 5 * STEPS,
    "nagabandi": 4 + 4 + 2 * 4,  # at random, by MPC, by the network
    "npg": 3 * 5 * STEPS,
    "pets": 4 * STEPS,
    "pilco": 4 * STEPS,
    "pipps": 4 * STEPS,
    "policy_distillation": 2 * 5 * STEPS,
    "power": 3 * 4 * STEPS,
    "ppo": 3 * 5 * STEPS,
    "qt_opt": 5 * STEPS,
    "reinforce": 3 * 4 * STEPS,
    "sac": 5 * STEPS,
    "shac": 3 * 4 * 2 * STEPS,
    "simple": 2 * 5 * STEPS,
    "steve": 5 * STEPS,
    "svg": 4 * STEPS,
    "td3": 2 * 5 * STEPS,
    "trpo": 3 * 5 * STEPS,
    "visual_foresight": 2 * 4 * STEPS,
}
# The others' contract is marked slow: one of each family is enough for a quick look.
REPRESENTATIVE = {"dqn", "dyna_q", "mbpo", "mpc", "pets", "ppo", "sac"}
DISCRETE_TOO = {"a2c", "npg", "ppo", "reinforce", "simple", "trpo"}
DISCRETE_ONLY = {"actor_mimic", "distral", "dqn", "dyna_q", "policy_distillation"}
DOUBLE = {"pilco", "pipps"}  # that refuse less than float64
PICTURES_TOO = {
    "deep_spatial_autoencoder",
    "ppo",
    "sac",
    "simple",
    "td3",
    "visual_foresight",
}
NO_PICTURES = "shows pictures|no `belief`|only the simulator of|plans with|positions is"
NAMES = sorted(module.name for module in pkgutil.iter_modules(algorithms.__path__))


class Run(NamedTuple):
    """A few steps of an algorithm; `states` begins with the initial one."""

    name: str
    module: ModuleType
    row: Row
    algorithm: Algorithm
    init: Callable[[Key], PyTree]
    step: Callable[[Key, PyTree], tuple[PyTree, Metrics]]
    traces: list[str]  # one entry for each time that `step` was traced
    states: list[PyTree]
    metrics: list[Metrics]


def step_keys(key: Key) -> Key:
    return jax.random.split(key, STEPS)


@cache
def run_of(name: str) -> Run:
    if name not in ROWS:
        pytest.fail(f"algorithms/{name}.py has no row in ROWS of {__file__}")
    module, row, traces = (
        importlib.import_module(f"mbrl_jax.algorithms.{name}"),
        ROWS[name],
        [],
    )
    algorithm = module.make(row.env, row.config)

    def step(key: Key, state: PyTree) -> tuple[PyTree, Metrics]:
        traces.append(name)
        return algorithm.step(key, state)

    init, step = jax.jit(algorithm.init), jax.jit(step)
    states, metrics = go(init, step, jax.random.key(0))
    return Run(name, module, row, algorithm, init, step, traces, states, metrics)


def go(init: Callable, step: Callable, key: Key) -> tuple[list[PyTree], list[Metrics]]:
    states, metrics = [init(key)], []
    for step_key in step_keys(key):
        state, metric = step(step_key, states[-1])
        states.append(state)
        metrics.append(metric)
    return states, metrics


@pytest.fixture(
    scope="module",  # one algorithm after the other
    params=[
        name if name in REPRESENTATIVE else pytest.param(name, marks=pytest.mark.slow)
        for name in NAMES
    ],
)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with jax.enable_x64(request.param in DOUBLE):
        yield run_of(request.param)
    run_of.cache_clear()
    batch_of.cache_clear()
    jax.clear_caches()


def assert_same(a: PyTree, b: PyTree) -> None:
    jax.tree.map(np.testing.assert_array_equal, *map(to_numpy, (a, b)))


def is_key(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def is_float(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def blank(env: Env) -> PyTree:
    """An observation, in the shape that `env` shows."""
    shape = jax.eval_shape(env.reset, jax.random.key(0)).obs
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)


def to_numpy(tree: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree
    )


def from_numpy(tree: PyTree, like: PyTree) -> PyTree:
    """The inverse, with the tree and the keys of `like`."""
    leaves = [
        jax.random.wrap_key_data(jnp.asarray(x)) if is_key(old) else jnp.asarray(x)
        for x, old in zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def test_no_row_is_for_nothing():
    assert set(ROWS) <= set(NAMES)
    assert ENV_STEPS.keys() == ROWS.keys()
    assert set(NAMES) >= REPRESENTATIVE


def test_a_module_exports_config_state_and_make(run: Run):
    own = {
        name
        for name, x in vars(run.module).items()
        if not name.startswith("_")
        and (inspect.isfunction(x) or inspect.isclass(x))
        and x.__module__ == run.module.__name__
    }
    assert own | {"State"} == {"Config", "State", "make"}  # State may be a loop's
    assert run.module.Config.__dataclass_params__.frozen
    assert issubclass(run.module.State, tuple)
    assert isinstance(run.states[0], run.module.State)
    assert isinstance(run.module.make(run.row.env), Algorithm)  # the defaults can be


def test_discrete_actions_are_fine_or_an_early_error(run: Run):
    if run.name in DISCRETE_ONLY:
        with pytest.raises(ValueError, match="the actions of point_mass are continuou"):
            run.module.make(SHORT, run.row.config)
        return
    if run.name in DISCRETE_TOO:
        env, key = grid.maze(), jax.random.key(0)
        if run.name == "simple":
            env = pixels.make(env, pixels.Config(size=4))
        algorithm = run.module.make(env, run.row.config)
        state = jax.eval_shape(algorithm.init, key)
        jax.eval_shape(algorithm.step, key, state)
        return
    env = simulator.observe_all(grid.maze()) if run.name == "mpc" else grid.maze()
    with pytest.raises(ValueError, match="the actions of maze are discrete, 4 of them"):
        run.module.make(env, run.row.config)


def test_pictures_are_fine_or_an_early_error(run: Run):
    plain, config = simulator.time_limit(planar.make(), 4), run.row.config
    if run.name in DISCRETE_ONLY:
        plain = HALL
    seen = pixels.make(plain, pixels.Config(size=6, colour=True))
    if run.name not in PICTURES_TOO:
        with pytest.raises(ValueError, match=NO_PICTURES):
            run.module.make(seen, config)
        return
    algorithm, key = run.module.make(seen, config), jax.random.key(0)
    before = jax.eval_shape(algorithm.init, key)
    after, _ = jax.eval_shape(algorithm.step, key, before)
    assert jax.tree.structure(after) == jax.tree.structure(before)


@pytest.mark.parametrize("x64", [False, True])
def test_a_step_keeps_the_state_tree(run: Run, x64: bool):
    """Its structure, shapes, types, and whether these are weak."""
    with jax.enable_x64(x64 or run.name in DOUBLE):
        key, init, step = jax.random.key(0), run.init, run.step  # traced already
        if x64:
            init, step, *_ = run.module.make(*run.row)
        before = jax.eval_shape(init, key)
        after, _ = jax.eval_shape(step, key, before)
        describe = lambda x: (x.shape, x.dtype, x.weak_type)
        assert jax.tree.map(describe, after) == jax.tree.map(describe, before)


def test_a_step_is_compiled_once(run: Run):
    run.step(jax.random.key(9), run.init(jax.random.key(9)))
    assert len(run.traces) == 1


def test_no_random_key_is_used_twice(run: Run):
    key = jax.random.key(0)
    keys.check(run.init.trace(key).jaxpr)
    keys.check(run.step.trace(key, run.states[0]).jaxpr)


def test_same_key_same_result_bit_for_bit(run: Run):
    states, metrics = go(run.init, run.step, jax.random.key(0))
    assert_same((states, metrics), (run.states, run.metrics))
    other, _ = run.step(jax.random.key(9), run.states[0])
    with pytest.raises(AssertionError):
        assert_same(other, run.states[1])


def test_a_resumed_run_is_an_uninterrupted_one(run: Run):
    """Out to numpy after each step, and back by the tree of an initial state."""
    template = jax.eval_shape(run.algorithm.init, jax.random.key(0))
    state = run.states[0]
    for key, expected in zip(step_keys(jax.random.key(0)), run.states[1:], strict=True):
        state, _ = run.step(key, from_numpy(to_numpy(state), like=template))
        assert_same(state, expected)


def test_metrics_are_the_same_finite_scalars_every_time(run: Run):
    names = set(run.metrics[0])
    for metrics in run.metrics:
        assert set(metrics) == names
        assert all(np.shape(x) == () for x in metrics.values())
        assert all(np.isfinite(x) for x in metrics.values())
    steps = [int(metrics["env_steps"]) for metrics in run.metrics]
    assert steps[0] > 0
    assert (np.diff(steps) >= 0).all()
    assert steps[-1] == ENV_STEPS[run.name] > steps[0]


# --- Batches of seeds and hyperparameters.


def floats(config: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], float]:
    """Every float of a configuration, by its path through dataclasses and tuples."""
    if isinstance(config, float):
        return {path: config}
    if isinstance(config, tuple):
        parts = list(enumerate(config))
    elif dataclasses.is_dataclass(config):
        parts = [(x.name, getattr(config, x.name)) for x in dataclasses.fields(config)]
    else:
        return {}
    found: dict[tuple[Any, ...], float] = {}
    for name, part in parts:
        found |= floats(part, (*path, name))
    return found


def with_floats(config: Any, values: dict[tuple[Any, ...], Any]) -> Any:
    """The configuration with these floats, the inverse of `floats`."""
    if () in values:
        return values[()]
    for name in {path[0] for path in values}:
        below = {path[1:]: x for path, x in values.items() if path[0] == name}
        if isinstance(config, tuple):
            part = with_floats(config[name], below)
            config = (*config[:name], part, *config[name + 1 :])
        else:
            part = with_floats(getattr(config, name), below)
            config = dataclasses.replace(config, **{name: part})
    return config


def test_floats_are_found_and_put_back():
    config = pets.Config(
        model=models.Config(ensemble=ensemble.Config(weight_decay=(0.25, 0.5)))
    )
    found = floats(config)
    assert found[("risk_level",)] == 1.0
    assert found[("plan", "init_std")] == 0.5
    assert found[("model", "ensemble", "weight_decay", 1)] == 0.5
    assert with_floats(config, found) == config
    assert with_floats(config, {("plan", "init_std"): 7.0}).plan.init_std == 7


# Four runs at once: a seed, a factor of every float of the row, is the simulator faulty
SEEDS = (0, 1, 0, 0)
FACTORS = (1.0, 1.0, 0.5, 1.0)
FAULTY_RUNS = np.array([False, False, False, True])


@cache
def batch_of(name: str) -> tuple[PyTree, Metrics]:
    """The last states and the metrics [STEPS] of the four runs, vmapped."""
    run = run_of(name)
    values = floats(run.row.config)

    def made(factor: Array, faulty: Array) -> Algorithm:
        traced = {path: factor * value for path, value in values.items()}
        config = with_floats(run.row.config, traced)
        return run.module.make(with_faults(run.row.env, faulty), config)

    @jax.jit
    @jax.vmap
    def init(key: Key, *which: Array) -> tuple[PyTree, Key]:
        return made(*which).init(key), step_keys(key)

    @jax.jit
    @jax.vmap
    def step(key: Key, state: PyTree, *which: Array) -> tuple[PyTree, Metrics]:
        return made(*which).step(key, state)

    which = np.array(FACTORS, np.float32), FAULTY_RUNS
    state, step_key = init(jax.vmap(jax.random.key)(np.array(SEEDS)), *which)
    metrics = []
    for i in range(STEPS):
        state, metric = step(step_key[:, i], state, *which)
        metrics.append(to_numpy(metric))
    return to_numpy(state), jax.tree.map(lambda *x: np.stack(x, 1), *metrics)


def with_faults(env: Env, faulty: Array) -> Env:
    """Shows 1e30 at the first step of every episode, then NaN, and then pays inf."""

    def step(env_state: EnvState, action: Array) -> EnvState:
        after = env.step(env_state, action)
        blind, rich = faulty & (after.time == 2), faulty & (after.time == 3)
        bad = jnp.where(blind, jnp.nan, 1e30)
        wrong = blind | (faulty & (after.time == 1))
        spoil = lambda x: jnp.where(wrong, bad, x) if is_float(x) else x
        return after._replace(
            obs=jax.tree.map(spoil, after.obs),
            reward=jnp.where(rich, jnp.inf, after.reward),
        )

    return env._replace(step=step)


def pick(i: int, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[i], tree)


@pytest.mark.parametrize("i", [0, 1])
def test_seeds_are_a_batch_axis(run: Run, i: int):
    """Each is what it is alone, to the rounding of batched sums."""
    alone, alone_metrics = go(run.init, run.step, jax.random.key(SEEDS[i]))
    metrics = jax.tree.map(lambda *x: np.stack(x), *to_numpy(alone_metrics))
    assert_close(pick(i, batch_of(run.name)), (alone[-1], metrics))


def test_floats_are_a_batch_axis(run: Run):
    """Any of them may be traced, and together they make a difference."""
    assert floats(run.row.config)
    states, metrics = batch_of(run.name)
    with pytest.raises(AssertionError):
        assert_close(pick(2, states), pick(0, states))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(pick(2, metrics)))


def test_a_fault_of_the_simulator_stays_in_the_replay(run: Run):
    """What is learned is finite, and so is what is done on a healthy day."""
    state, metrics = pick(3, batch_of(run.name))
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Replay))
    learned = [x for x in leaves if not isinstance(x, Replay)]
    assert all(np.isfinite(x).all() for x in learned)
    counted = [x for name, x in metrics.items() if "non_finite" in name]
    seen = not all(np.isfinite(x).all() for x in metrics.values())
    assert seen or any((x > 0).any() for x in counted)  # it was bad
    with pytest.raises(AssertionError):  # but not in vain
        assert_same(state, run.states[0])

    def act(key: Key, obs: Array, state: PyTree) -> Array:
        policy = run.algorithm.policy(state)
        return policy.act(key, obs, policy.init())[0]

    state = from_numpy(state, like=run.states[0])
    assert np.isfinite(jax.jit(act)(jax.random.key(0), blank(run.row.env), state)).all()


def assert_close(a: PyTree, b: PyTree) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        *map(to_numpy, (a, b)),
    )


# --- The policy, and the model.


def test_the_policy_acts_is_evaluated_and_rendered(run: Run):
    env, state, key = run.row.env, run.states[-1], jax.random.key(0)
    policy = run.algorithm.policy
    show = jax.jit(lambda key, state: rollout.trajectory(key, env, policy(state)))
    states, valid = show(key, state)
    for x, one in zip(*map(jax.tree.leaves, (states.obs, blank(env))), strict=True):
        assert x.shape == (env.episode_length + 1, *one.shape)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(states.obs))
    assert valid[:2].all()
    if env.render is not None:
        frames = env.render(states)
        assert frames.dtype == np.uint8
        assert frames.shape[0] == env.episode_length + 1
        assert frames.shape[3] == 3
    evaluate = lambda key, state: rollout.evaluate(key, env, policy(state), 2)
    metrics, episodes = jax.eval_shape(evaluate, key, state)
    assert all(x.shape == () for x in metrics.values())
    shape = (2, env.episode_length, *(() if env.num_actions else (env.action_size,)))
    assert episodes.transitions.action.shape == shape


def test_the_memory_of_the_policy_keeps_its_types(run: Run):
    env = run.row.env

    def act(key: Key, obs: Array, state: PyTree) -> tuple[PyTree, PyTree]:
        policy = run.algorithm.policy(state)
        return policy.init(), policy.act(key, obs, policy.init())[1]

    key = jax.random.key(0)
    before, after = jax.eval_shape(act, key, blank(env), run.states[0])
    assert before == after


def test_the_model_predicts_from_every_member(run: Run):
    if run.algorithm.predict is None:
        pytest.skip("has no model")
    env = run.row.env
    obs, action = jnp.zeros(env.obs_size), jnp.zeros(env.action_size)
    mean, std = jax.jit(run.algorithm.predict)(run.states[-1], obs, action)
    assert mean.shape == std.shape
    assert mean.shape[1] >= env.obs_size
    assert np.isfinite(mean).all()
    assert (std >= 0).all()
