"""A decision process so small that all that can happen in it can be listed.

Two places at three times, and an end; three actions; every action has two outcomes,
equally likely, with rewards of their own.  The policy's probabilities are quarters, so
that 1024 episodes are, in their proportions, exactly what happens: means over them are
expectations.  What a gradient is to be is got by dynamic programming on the tables.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from mbrl_jax.ops import normalize
from mbrl_jax.policy_gradient import actor_critic, experience
from mbrl_jax.policy_gradient.actor_critic import ActorCritic, Agent
from mbrl_jax.types import Array, Env, EnvState, Key, Params, Transition, Window

NUM_TIMES, NUM_ACTIONS, END = 3, 3, 6  # node = 2 time + place; 6 is the end
# [node, action, outcome], the third action may end it all; after the last time all end
NEXT = np.array(
    [
        [[2, 3], [2, 2], [3, END]],
        [[2, 3], [3, 3], [2, END]],
        [[4, 5], [5, 5], [4, END]],
        [[4, 4], [4, 5], [5, END]],
        [[END, END]] * 3,
        [[END, END]] * 3,
    ]
)
REWARD = np.random.default_rng(0).integers(2, 9, size=NEXT.shape) / 2
REWARD[[1, 3, 5]] += 2  # one of the places is better
QUARTERS = np.array([[1, 1, 2], [2, 1, 1], [1, 2, 1], [1, 2, 1], [2, 1, 1], [1, 1, 2]])


class Process(NamedTuple):
    """`value` [7] and `gradient` are exact, of the policy of an actor."""

    env: Env
    net: ActorCritic
    agent: Agent  # acts by QUARTERS; its critic is exact for a discount of 1
    windows: Window  # [1024, T], in their proportions all there is
    paths: Window  # each that differs once
    chances: np.ndarray  # of `paths`
    value: Callable[[Params, float], Array]  # (actor, discount) -> of each node
    gradient: Callable[[float], Params]  # discount -> of the start's value; where it is
    # below 1, of rewards discounted from each step on, with no discount^t in front


@pytest.fixture(params=[(), (8,)], ids=["tabular", "network"])
def process(request: pytest.FixtureRequest) -> Process:
    return make(request.param)


@pytest.fixture
def tabular() -> Process:
    return make(())


@pytest.fixture
def surrogate_gradient() -> Callable[[Process, float], np.ndarray]:
    """(process, gae_lambda) -> [P], of a mean over steps of standardised advantages:
    the exact gradient, over the mean length of episodes and the std of advantages."""
    return _surrogate_gradient


look_back = jax.jit(experience.gae_samples, static_argnums=0)


def _surrogate_gradient(process: Process, gae_lambda: float) -> np.ndarray:
    rows, _ = look_back(process.net, process.agent, process.windows, 1.0, gae_lambda)
    length = process.windows.valid.sum(axis=1).mean()
    std = np.asarray(rows.advantage)[process.windows.valid].std()
    return np.asarray(ravel_pytree(process.gradient(1.0))[0]) / (length * std)


@functools.cache  # of arrays only, nothing that a test could change
def make(hidden_sizes: tuple[int, ...]) -> Process:
    env = make_env()
    net = actor_critic.make(env, actor_critic.Config(hidden_sizes=hidden_sizes))
    paths, counts = all_paths()
    windows = jax.tree.map(lambda x: np.repeat(x, counts, axis=0), paths)
    agent = jax.jit(lambda: actor_critic.init(jax.random.key(0), net))()
    _, agent = look_back(net, agent, windows, 1.0, 1.0)  # with statistics
    stats, scale = normalize.so_far(agent.obs), normalize.so_far(agent.returns)
    seen = jax.vmap(lambda obs: actor_critic.normalise_obs(stats, obs))(
        jnp.eye(END + 1)
    )
    policy = lambda actor: jax.nn.softmax(
        jax.vmap(lambda x: net.act(actor, (), x)[1])(seen[:END])
    )

    @jax.jit
    def value(actor: Params, discount: float) -> Array:
        return solve(policy(actor), discount)

    def objective(actor: Params, discount: float) -> Array:
        """Its gradient is the policy gradient theorem's."""
        probabilities = policy(actor)
        fixed = jax.lax.stop_gradient(probabilities)
        worth = action_values(solve(fixed, discount), discount)
        return (visits(fixed)[:, None] * probabilities * worth).sum()

    @functools.cache
    def gradient(discount: float) -> Params:
        return jax.device_get(jax.jit(jax.grad(objective))(agent.actor, discount))

    actor = fitted(agent.actor["net"], seen[:END], np.log(QUARTERS / 4))
    agent = agent._replace(actor={"net": actor})
    known = (value(agent.actor, 1.0)[:END, None] - scale.mean[0]) / scale.std[0]
    return Process(
        env=env,
        net=net,
        agent=agent._replace(critic=fitted(agent.critic, seen[:END], known)),
        windows=windows,
        paths=paths,
        chances=counts / counts.sum(),
        value=value,
        gradient=gradient,
    )


def solve(policy: Array, discount: float) -> Array:
    """The value of each node [7], from the last time to the first."""
    values = jnp.zeros(END + 1)
    for node in reversed(range(END)):
        worth = action_values(values, discount)[node]
        values = values.at[node].set((policy[node] * worth).sum())
    return values


def action_values(values: Array, discount: float) -> Array:
    return (REWARD + discount * values[jnp.asarray(NEXT)]).mean(axis=2)


def visits(policy: Array) -> Array:
    """How often an episode comes to each node [6]."""
    found = jnp.zeros(END + 1).at[:2].set(0.5)
    for node in range(END):
        share = found[node] * jnp.repeat(policy[node], 2) / 2
        found = found.at[NEXT[node].ravel()].add(share)
    return found[:END]


def make_env() -> Env:
    next_nodes, rewards = jnp.asarray(NEXT), jnp.asarray(REWARD)

    def show(node: Array, reward: Array, time: Array, key: Key) -> EnvState:
        never = jnp.zeros((), bool)
        obs = jax.nn.one_hot(node, END + 1)
        return EnvState(obs, reward, node == END, never, time, (node, key))

    def reset(key: Key) -> EnvState:
        start_key, key = jax.random.split(key)
        node = jax.random.randint(start_key, (), 0, 2)
        return show(node, jnp.zeros(()), jnp.zeros((), jnp.int32), key)

    def step(state: EnvState, action: Array) -> EnvState:
        node, key = state.sim
        coin_key, key = jax.random.split(key)
        place = node, action, jax.random.randint(coin_key, (), 0, 2)
        return show(next_nodes[place], rewards[place], state.time + 1, key)

    sizes: Any = {"obs_size": END + 1, "action_size": 0, "action_limit": 0.0}
    return Env("nodes", reset, step, episode_length=3, num_actions=NUM_ACTIONS, **sizes)


def all_paths() -> tuple[Window, np.ndarray]:
    """Episodes that differ, and how many of 1024 each of them is."""
    found = []

    def go_on(node: int, steps: list, count: int) -> None:
        if node == END:
            found.append((steps, count))
            return
        for action in range(NUM_ACTIONS):
            for outcome in range(2):
                place = node, action, outcome
                after = int(NEXT[place])
                step = (node, action, REWARD[place], after)
                go_on(after, [*steps, step], count * QUARTERS[node, action] // 8)

    for start in (0, 1):
        go_on(start, [], 512)
    unused = [(END, 0, 0.0, END)]  # what `rollout.episode` fills up with is not valid
    rows = np.array([steps + unused * (NUM_TIMES - len(steps)) for steps, _ in found])
    node, action, reward, after = np.moveaxis(rows, 2, 0)
    node, action, after = (x.astype(int) for x in (node, action, after))
    eye, valid = np.eye(END + 1), node != END
    transitions = Transition(
        obs=eye[node],
        action=action,
        reward=reward,
        next_obs=eye[after],
        terminal=valid & (after == END),
        truncated=np.zeros_like(valid),
    )
    counts = np.array([count for _, count in found])
    return Window(transitions, valid, ((), ())), counts


def fitted(params: Params, inputs: Array, outputs: Array) -> Params:
    """With a last layer by which `inputs` [N, ...] give `outputs` [N, D] exactly."""
    layers, x = dict(params["params"]), inputs
    *hidden, last = sorted(layers)
    for name in hidden:
        x = jnp.tanh(x @ layers[name]["kernel"])  # biases start at 0
    weights = jnp.linalg.pinv(jnp.pad(x, ((0, 0), (0, 1)), constant_values=1)) @ outputs
    layers[last] = {"kernel": weights[:-1], "bias": weights[-1]}
    return {"params": layers}
