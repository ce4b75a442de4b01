"""Population-based training, on members so small that only the population is tested."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mbrl_jax.algorithms import pets
from mbrl_jax.envs import point_mass, simulator
from mbrl_jax.models import by_name as models
from mbrl_jax.models import ensemble
from mbrl_jax.planners import mpc
from mbrl_jax.training import population, train
from mbrl_jax.training.population import Config, Range
from mbrl_jax.types import Algorithm, Array, Gaussian, Key, Metrics, Policy, PyTree

NAN, INF = np.nan, np.inf
TARGET = 3.0
NEVER = 1_000_000  # steps
RATES = {"learning_rate": Range(1e-3, 20.0, log=True)}  # above 1 it diverges
ENV = simulator.time_limit(point_mass.make(), 4)
CONFIG = Config(num_members=6, exploit_every=3, exploit_fraction=0.34)


class Member(NamedTuple):
    theta: Array  # [1]
    tag: Array  # [] of the initial member that this one goes back to
    count: Array  # [] int32
    env_steps: Array  # [] int32
    key: Key  # []


def toy(
    hyperparameters: Mapping[str, float | Array],
    episode_return: Callable[..., Array] | None = None,
    length: Callable[..., Array] = lambda hyperparameters: 5,
    has_model: bool = True,
) -> Algorithm:
    """Gradient ascent on -(theta - TARGET)^2, its return unless another is given."""
    rate = hyperparameters.get("learning_rate", 0.1)

    def init(key: Key) -> Member:
        theta, tag = jax.random.normal(key, (2, 1))
        return Member(theta, tag[0], jnp.int32(0), jnp.int32(0), key)

    def step(key: Key, member: Member) -> tuple[Member, Metrics]:
        theta = member.theta - rate * 2 * (member.theta - TARGET)
        value = -jnp.square(theta - TARGET).sum()
        if episode_return is not None:
            value = episode_return(hyperparameters, member)
        env_steps = member.env_steps + length(hyperparameters)
        after = Member(theta, member.tag, member.count + 1, env_steps, member.key)
        return after, {
            "env_steps": env_steps,
            "episode/return": value,
            "own/metric": value,
        }

    def policy(member: Member) -> Policy:
        return Policy(lambda: (), lambda key, obs, memory: (member.theta, memory))

    def predict(member: Member, obs: Array, action: Array) -> Gaussian:
        mean = (obs + member.theta * rate)[None]
        return Gaussian(mean, jnp.zeros_like(mean))

    return Algorithm(init, step, policy, predict if has_model else None)


def go(
    algorithm: Algorithm, num_steps: int, seed: int = 0, state: PyTree = None
) -> tuple[list[PyTree], Metrics]:
    """The states, beginning with the initial one, and the metrics [num_steps]."""
    init_key, key = jax.random.split(jax.random.key(seed))
    step = jax.jit(algorithm.step)
    states = [jax.jit(algorithm.init)(init_key) if state is None else state]
    metrics = []
    for key in jax.random.split(key, num_steps):
        state, metric = step(key, states[-1])
        states.append(state)
        metrics.append(metric)
    assert step._cache_size() == 1
    return states, jax.tree.map(lambda *x: np.stack(x), *metrics)


def plain(tree: PyTree) -> PyTree:
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(
        lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree
    )


def assert_same(a: PyTree, b: PyTree) -> None:
    jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))


def assert_close(a: PyTree, b: PyTree) -> None:
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, plain(a), plain(b))


# --- Draws.


@pytest.mark.parametrize("log", [False, True])
def test_draws_are_uniform_or_log_uniform(log: bool):
    low, high = 1e-3, 10.0
    values = np.asarray(population.draw(jax.random.key(0), Range(low, high, log), 4000))
    assert (np.float32(low) <= values).all()
    assert (values <= np.float32(high)).all()
    uniform = scipy.stats.uniform(low, high - low)
    law, other = scipy.stats.loguniform(low, high), uniform
    if not log:
        law, other = other, law
    assert scipy.stats.kstest(values, law.cdf).pvalue > 0.01
    assert scipy.stats.kstest(values, other.cdf).pvalue < 1e-6


def test_members_begin_with_their_own_draws_whatever_the_order_of_the_ranges():
    ranges = {"learning_rate": Range(0.1, 0.2), "b": Range(-5.0, -4.0)}
    turned = dict(reversed(ranges.items()))
    init = lambda ranges: population.make(toy, ranges, CONFIG).init(jax.random.key(0))
    state = init(ranges)
    assert_same(state, init(turned))
    assert len(set(state.members.tag.tolist())) == CONFIG.num_members
    for name, interval in ranges.items():
        values = state.hyperparameters[name]
        assert len(set(values.tolist())) == CONFIG.num_members
        assert ((interval.low <= values) & (values <= interval.high)).all()
    a, b = state.hyperparameters["learning_rate"], state.hyperparameters["b"]
    assert not np.allclose((a - 0.1) * 10, b + 5, atol=1e-2)  # two names, two draws


# --- Exploit and explore, by itself.

NUM_DRAWS = 2000
WIDE = {"a": Range(-1e6, 1e6), "b": Range(1e-9, 1e9, log=True)}


def generations(
    scores: Any, config: Config, ranges: Mapping[str, Range] = WIDE
) -> tuple[PyTree, PyTree, PyTree]:
    """Old states and hyperparameters; new ones and parents, for many keys."""
    scores = jnp.asarray(scores, float)
    num = len(scores)
    states = {"x": jnp.arange(num * 3.0).reshape(num, 3), "i": jnp.arange(num)}
    values = {"a": -1.0 - jnp.arange(num), "b": 1.0 + 10 * jnp.arange(num)}
    values = {name: values[name] for name in ranges}
    make = lambda key: population.exploit_and_explore(
        key, scores, states, values, ranges, config
    )
    after = jax.jit(jax.vmap(make))(jax.random.split(jax.random.key(1), NUM_DRAWS))
    return states, jax.device_get(values), jax.device_get(after)


@pytest.mark.parametrize(
    ("num_members", "fraction", "expected"),
    [(2, 0.5, 1), (3, 0.5, 1), (4, 0.25, 1), (5, 0.5, 2), (10, 0.2, 2), (9, 0.01, 1)],
)
def test_the_worst_become_copies_of_the_best_and_nobody_else_changes(
    num_members: int, fraction: float, expected: int
):
    scores = np.random.default_rng(0).permutation(num_members) - 4.0
    worst = np.argsort(scores)[:expected]
    best = np.argsort(scores)[-expected:]
    config = Config(num_members, exploit_fraction=fraction)
    states, values, (new_states, new_values, parents) = generations(scores, config)
    others = np.setdiff1d(np.arange(num_members), worst)
    assert (parents[:, others] == others).all()
    counts = [(parents[:, worst] == i).sum() for i in best]
    assert sum(counts) == NUM_DRAWS * expected  # no other parents
    if expected > 1:
        assert scipy.stats.chisquare(counts).pvalue > 0.01
    for name, x in states.items():
        np.testing.assert_array_equal(new_states[name], np.asarray(x)[parents])
    for name, x in values.items():
        assert (new_values[name][:, others] == x[others]).all()
        assert (new_values[name][:, worst] != x[parents[:, worst]]).all()


def test_a_perturbation_is_one_of_the_factors_for_each_alone():
    config = Config(4, low_factor=0.5, high_factor=3.0, resample_probability=0)
    _, values, (_, new, parents) = generations([1, 0, 2, 3], config)
    assert (parents[:, 1] == 3).all()
    factors = np.stack([new[x][:, 1] / values[x][3] for x in ("a", "b")])
    assert set(np.unique(factors)) == {0.5, 3.0}
    pairs = (factors == 3.0).astype(int).T @ [1, 2]
    assert scipy.stats.chisquare(np.bincount(pairs)).pvalue > 0.01


def test_some_are_drawn_afresh():
    config = Config(4, resample_probability=0.25)
    _, values, (_, new, _) = generations([1, 0, 2, 3], config)
    fresh = {}
    for name, (low, high, log) in WIDE.items():
        child = new[name][:, 1]
        factors = child[:, None] / values[name][3]
        fresh[name] = ~np.isclose(factors, [[0.8, 1.2]]).any(axis=1)
        law = scipy.stats.loguniform if log else scipy.stats.uniform
        law = law(low, high) if log else law(low, high - low)
        assert scipy.stats.kstest(child[fresh[name]], law.cdf).pvalue > 0.01
        raised = factors[~fresh[name], 0] > 1  # as likely as lowered, also here
        assert scipy.stats.binomtest(int(raised.sum()), len(raised)).pvalue > 0.01
    cases = [fresh["a"], fresh["b"], fresh["a"] & fresh["b"]]
    for case, expected in zip(cases, [0.25, 0.25, 0.25**2], strict=True):
        assert scipy.stats.binomtest(int(case.sum()), NUM_DRAWS, expected).pvalue > 0.01


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_what_is_explored_stays_in_its_range(probability: float):
    ranges = {"a": Range(-4.5, -3.5), "b": Range(29.0, 33.0, log=True)}
    config = Config(4, resample_probability=probability)
    _, _, (_, new, _) = generations([1, 0, 2, 3], config, ranges)
    for name, (low, high, _) in ranges.items():
        assert ((low <= new[name][:, 1]) & (new[name][:, 1] <= high)).all()
        at_the_edge = np.isin(new[name][:, 1], np.float32([low, high])).mean()
        assert at_the_edge == pytest.approx(1 - probability, abs=0.05)


@pytest.mark.parametrize(
    ("scores", "replaced", "parents"),
    [
        ([-1e30, NAN, INF, -5, -INF, 0, -3, -4], {0, 1, 2, 4}, {3, 5, 6, 7}),
        ([-1e30, NAN, INF, -5, 0, NAN], {1, 2, 5}, {0, 3, 4}),
        ([NAN, INF, -7, NAN], None, {2}),  # three are bad, two may be replaced
        ([NAN, NAN], None, {0, 1}),
    ],
)
def test_scores_that_are_not_finite_lose(
    scores: list[float], replaced: set[int] | None, parents: set[int]
):
    config = Config(exploit_fraction=0.5)
    _, _, (_, _, drawn) = generations(scores, config)
    moved = drawn != np.arange(len(scores))
    assert (moved.sum(axis=1) == len(scores) // 2).all()
    assert set(drawn[moved]) <= parents
    if replaced is not None:
        assert set(np.nonzero(moved)[1]) == replaced


# --- The population.


def test_a_population_that_never_exploits_is_its_members_alone():
    config = dataclasses.replace(CONFIG, exploit_every=NEVER)
    ranges = {"learning_rate": Range(1e-3, 0.5, log=True)}
    states, metrics = go(population.make(toy, ranges, config), 5)
    first, last = states[0], states[-1]
    assert_same(first.hyperparameters, last.hyperparameters)
    rates = np.asarray(first.hyperparameters["learning_rate"])
    start = np.asarray(first.members.theta)[:, 0]
    decay = (1 - 2 * rates) ** np.arange(1, 6)[:, None]  # [T, N]
    returns = -np.square((start - TARGET) * decay)
    assert_close(last.members.theta[:, 0], TARGET + (start - TARGET) * decay[-1])
    assert_close(metrics["episode/return"], returns.mean(axis=1))
    assert_close(last.total_return, returns.sum(axis=0))
    means = np.cumsum(returns, axis=0) / np.arange(1, 6)[:, None]
    assert_close(metrics["population/best_return"], means.max(axis=1))
    assert_close(metrics["population/learning_rate"], rates[np.argmax(means, axis=1)])
    assert (metrics["population/num_exploited"] == 0).all()
    assert (metrics["env_steps"] == np.arange(1, 6) * 5 * CONFIG.num_members).all()


def wave(h: Any, count: Any, lib: Any = jnp) -> Any:
    """A return that goes up and down, so that a mean is not the last one."""
    return lib.sin(37 * h * (count + 1))


def test_selection_is_by_the_mean_return_since_the_last_exploitation():
    """Against a second account of it, kept in numpy."""
    algorithm = population.make(
        partial(
            toy,
            episode_return=lambda h, member: wave(h["h"], member.count),
            length=lambda h: 1 + (h["h"] * 5).astype(jnp.int32),
        ),
        {"h": Range(0.0, 1.0)},
        CONFIG,
    )
    states, metrics = go(algorithm, 12)
    env_steps, total = 0, np.zeros(CONFIG.num_members)
    for i, (before, after) in enumerate(itertools.pairwise(states)):
        h = np.asarray(before.hyperparameters["h"])
        age = i % CONFIG.exploit_every + 1
        total += wave(h, i, np)
        env_steps += (1 + (h * 5).astype(int)).sum()
        order = np.argsort(-total, stable=True)  # best first
        assert after.best == order[0]
        assert metrics["env_steps"][i] == env_steps
        assert metrics["population/h"][i] == h[order[0]]
        best_return = total[order[0]] / age
        assert metrics["population/best_return"][i] == pytest.approx(best_return, 1e-4)
        worst, others = order[-2:], order[:-2]  # a third of six
        assert_same(after.members.tag[others], before.members.tag[others])
        assert_same(after.hyperparameters["h"][others], h[others])
        if age < CONFIG.exploit_every:
            assert_same(after.members.tag, before.members.tag)
            assert_same(after.hyperparameters["h"], h)
            continue
        assert (after.hyperparameters["h"][worst] != h[worst]).all()
        assert np.isin(after.members.tag[worst], before.members.tag[order[:2]]).all()
        total[:] = 0
    assert metrics["population/num_exploited"].tolist() == [0, 0, 2] * 4


def infinite(h: Mapping[str, Any], member: Member) -> Array:
    return jnp.where(h["learning_rate"] > 1, jnp.inf, 1.0)


@pytest.mark.parametrize(
    ("rate", "episode_return"), [(NAN, None), (1e38, None), (2.0, infinite)]
)
def test_a_member_that_is_not_finite_is_replaced_by_a_good_one(
    rate: float, episode_return: Callable[..., Array] | None
):
    """Its steps are undone until then, and so nothing non-finite is in a state."""
    algorithm = partial(toy, episode_return=episode_return)
    algorithm = population.make(algorithm, RATES, CONFIG)
    start = algorithm.init(jax.random.key(0))
    rates = jnp.full(CONFIG.num_members, 0.1).at[4].set(rate)
    start = start._replace(hyperparameters={"learning_rate": rates})
    states, metrics = go(algorithm, 6, state=start)
    for i, state in enumerate(states[:3]):
        assert np.isfinite(state.members.theta).all()
        assert np.isfinite(state.total_return).all()
        assert state.lost.tolist() == [i > 0 and n == 4 for n in range(6)]
        undone = 0 if episode_return is None else i  # only the return was bad
        assert state.members.count.tolist() == [
            undone if n == 4 else i for n in range(6)
        ]
    state = states[3]
    assert np.isin(state.members.tag[4], np.delete(start.members.tag, 4))
    assert state.members.count.tolist() == [3] * 6
    assert not state.lost.any()
    assert metrics["population/num_lost"].tolist() == [1, 1, 1, 0, 0, 0]
    # a step that was undone has been made in the environment all the same
    assert metrics["env_steps"].tolist() == [30 * i for i in range(1, 7)]
    assert all(np.isfinite(x).all() for x in metrics.values())


def test_the_policy_and_the_model_are_those_of_the_best_member():
    algorithm = population.make(toy, {"learning_rate": Range(1e-3, 0.5)}, CONFIG)
    state, obs = go(algorithm, 4)[0][-1], jnp.ones(1)
    nearest = int(np.argmin(np.abs(state.members.theta[:, 0] - TARGET)))
    assert nearest > 0  # or an index that is never set would do
    theta = state.members.theta[nearest]
    policy = algorithm.policy(state)
    action, _ = policy.act(jax.random.key(0), obs, policy.init())
    assert_same(action, theta)
    mean, _ = algorithm.predict(state, obs, jnp.zeros(1))
    rate = state.hyperparameters["learning_rate"][nearest]
    assert_close(mean, (obs + theta * rate)[None])
    blind = partial(toy, has_model=False)
    assert population.make(blind, RATES, CONFIG).predict is None


# --- It is an algorithm like any other.


@pytest.mark.parametrize("x64", [False, True])
def test_a_step_keeps_the_state_tree(x64: bool):
    with jax.enable_x64(x64):
        algorithm, key = population.make(toy, RATES, CONFIG), jax.random.key(0)
        before = jax.eval_shape(algorithm.init, key)
        after, metrics = jax.eval_shape(algorithm.step, key, before)
        describe = lambda x: (x.shape, x.dtype, x.weak_type)
        assert jax.tree.map(describe, after) == jax.tree.map(describe, before)
        assert all(x.shape == () for x in metrics.values())
    assert set(metrics) == {
        "env_steps",
        "episode/return",
        "population/best_return",
        "population/learning_rate",
        "population/num_exploited",
        "population/num_lost",
    }


def whole(algorithm: Algorithm, num_steps: int, key: Key) -> tuple[PyTree, Metrics]:
    init_key, key = jax.random.split(key)
    step = lambda state, key: algorithm.step(key, state)
    return jax.lax.scan(
        step, algorithm.init(init_key), jax.random.split(key, num_steps)
    )


def test_two_seeds_together_equal_each_alone():
    run = partial(whole, population.make(toy, RATES, CONFIG), 7)
    keys = jax.random.split(jax.random.key(0))
    together, alone = jax.jit(jax.vmap(run))(keys), jax.jit(run)
    for i in range(2):
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone(keys[i]))


def test_floats_of_the_configuration_are_a_batch_axis():
    def replaced(fraction: Array, factor: Array, probability: Array) -> PyTree:
        config = Config(6, 1, fraction, factor, factor, probability)
        state, metrics = whole(
            population.make(toy, RATES, config), 1, jax.random.key(0)
        )
        return state.hyperparameters["learning_rate"], metrics

    values = jnp.array([[0.2, 0.5, 0.0], [0.5, 0.5, 0.0], [0.2, 0.9, 0.0]]).T
    rates, metrics = jax.jit(jax.vmap(replaced))(*values)
    assert metrics["population/num_exploited"].tolist() == [[1], [3], [1]]
    child = np.flatnonzero(rates[0] != rates[2])
    assert_close(rates[2][child] / rates[0][child], np.full(1, 0.9 / 0.5))


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path):
    """Most members diverge in it at first, and the run goes on."""
    ranges = {"learning_rate": Range(1e-3, 1e30, log=True)}
    algorithm, key = population.make(toy, ranges, CONFIG), jax.random.key(1)
    lines: dict[int, dict[str, Any]] = {}

    def go_to(num_steps: int, folder: Path | None) -> PyTree:
        return train.run(
            key,
            algorithm,
            ENV,
            num_steps,
            eval_episodes=0,
            folder=folder,
            log=lambda step, metrics: lines.update({step: metrics}),
        ).state

    expected = go_to(40, None)
    assert lines[40]["env_steps"] == 40 * 5 * CONFIG.num_members
    assert lines[3]["population/num_lost"] > 2
    assert not any(x["state/non_finite"] for x in lines.values())
    go_to(20, tmp_path)
    assert_same(go_to(40, tmp_path), expected)


# --- It tunes.


def test_it_beats_the_median_of_fixed_hyperparameters():
    """The median member, on six seeds, from the same first draws."""

    def final(config: Config) -> Array:  # [S, N] distances
        algorithm = population.make(
            toy, {"learning_rate": Range(1e-4, 1e-1, True)}, config
        )
        run = jax.jit(jax.vmap(lambda key: whole(algorithm, 60, key)[0]))
        members = run(jax.random.split(jax.random.key(0), 6)).members
        return np.abs(np.asarray(members.theta)[..., 0] - TARGET)

    tuned = final(Config(8, exploit_every=3))
    fixed = final(Config(8, exploit_every=NEVER))
    assert (np.median(tuned, axis=1) < 0.1 * np.median(fixed, axis=1)).all()


def test_it_reaches_what_no_fixed_hyperparameters_do():
    """The toy of the paper, Fig. 2: two members, each sees one coordinate of theta.

    Q = 1.2 - theta_0^2 - theta_1^2 from theta = (0.9, 0.9), by the gradient of
    1.2 - h_0 theta_0^2 - h_1 theta_1^2.  With h = (1, 0) or (0, 1), Q stays below
    1.2 - 0.9^2.
    """
    num_steps, rate = 100, 0.05

    def surrogate(h: Mapping[str, float | Array]) -> Algorithm:
        weights = jnp.stack([h["h0"], h["h1"]])

        def step(key: Key, theta: Array) -> tuple[Array, Metrics]:
            theta = theta - rate * 2 * weights * theta
            value = 1.2 - jnp.square(theta).sum()
            return theta, {"episode/return": value, "env_steps": jnp.ones((), int)}

        return Algorithm(lambda key: jnp.full(2, 0.9), step, lambda theta: None)

    def run(config: Config) -> Array:  # [S, N] Q
        ranges = {"h0": Range(0.0, 1.0), "h1": Range(0.0, 1.0)}
        algorithm = population.make(surrogate, ranges, config)

        def init(key: Key) -> PyTree:
            grid = {"h0": jnp.array([1.0, 0.0]), "h1": jnp.array([0.0, 1.0])}
            return algorithm.init(key)._replace(hyperparameters=grid)

        run = partial(whole, algorithm._replace(init=init), num_steps)
        state, _ = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 6))
        return 1.2 - np.square(state.members).sum(axis=-1)

    config = Config(2, exploit_every=4, exploit_fraction=0.5)
    bound = 1.2 - 0.81 * (1 + (1 - 2 * rate) ** (2 * num_steps))
    fixed = run(dataclasses.replace(config, exploit_every=NEVER))
    np.testing.assert_allclose(fixed, bound, rtol=1e-5)
    assert (run(config).max(axis=1) > 1.1).all()


# --- Errors.


@pytest.mark.parametrize(
    ("ranges", "config", "fault"),
    [
        ({}, {}, "ranges is empty"),
        ({"a": Range(1.0, 1.0)}, {}, "a is from 1.0 to 1.0"),
        ({"a": Range(2.0, 1.0)}, {}, "a is from 2.0 to 1.0"),
        ({"a": Range(0.0, INF)}, {}, "a is from 0.0 to inf"),
        ({"a": Range(NAN, 1.0)}, {}, "a is from nan"),
        ({"a": Range(0.0, 1.0, log=True)}, {}, "a is from 0.0, must be positive"),
        ({"a": Range(-1.0, 1.0, log=True)}, {}, "a is from -1.0, must be positive"),
        (RATES, {"num_members": 1}, "num_members is 1"),
        (RATES, {"exploit_every": 0}, "exploit_every is 0"),
        (RATES, {"exploit_fraction": 0.0}, "exploit_fraction is 0.0"),
        (RATES, {"exploit_fraction": 0.6}, "exploit_fraction is 0.6"),
        (RATES, {"low_factor": 0.0}, "low_factor is 0.0"),
        (RATES, {"high_factor": -1.0}, "high_factor is -1.0"),
        (RATES, {"resample_probability": 1.1}, "resample_probability is 1.1"),
    ],
)
def test_impossible_populations_are_early_errors(
    ranges: Mapping[str, Range], config: dict[str, Any], fault: str
):
    with pytest.raises(ValueError, match=fault):
        population.make(toy, ranges, Config(**config))


# --- With a real algorithm.

PETS = pets.Config(
    capacity=20,
    num_particles=2,
    planner="random_shooting",
    plan=mpc.Config(horizon=2, num_samples=4),
    model=models.Config(
        ensemble=ensemble.Config(
            num_members=2, hidden_sizes=(4,), batch_size=4, num_epochs=2, max_holdout=0
        )
    ),
)


def tuned_pets(hyperparameters: Mapping[str, Any]) -> Algorithm:
    own = dataclasses.replace(PETS.model.ensemble, **hyperparameters)
    model = dataclasses.replace(PETS.model, ensemble=own)
    return pets.make(ENV, dataclasses.replace(PETS, model=model))


@pytest.mark.slow
def test_pets_is_tuned():
    interval = Range(1e-4, 1e-1, log=True)
    config = Config(3, exploit_every=2)
    algorithm = population.make(tuned_pets, {"learning_rate": interval}, config)
    states, metrics = go(algorithm, 3)
    assert metrics["population/num_exploited"].tolist() == [0, 1, 0]
    assert metrics["env_steps"].tolist() == [12, 24, 36]
    assert all(np.isfinite(x).all() for x in metrics.values())
    rates = np.stack([x.hyperparameters["learning_rate"] for x in states])  # [4, N]
    (worst,) = np.flatnonzero(rates[1] != rates[2])
    best = int(states[2].best)
    member = lambda step, i: jax.tree.map(lambda x: x[i], states[step].members)
    assert_same(member(2, worst), member(2, best))
    with pytest.raises(AssertionError):  # from then on they are two
        assert_same(member(3, worst).model.params, member(3, best).model.params)
    obs, action = jnp.zeros(ENV.obs_size), jnp.zeros(ENV.action_size)
    mean, _ = jax.jit(algorithm.predict)(states[-1], obs, action)
    assert mean.shape == (2, ENV.obs_size)
    with pytest.raises(ValueError, match="holdout_fraction"):
        population.make(tuned_pets, {"holdout_fraction": Range(0.1, 1.5)}, config)
