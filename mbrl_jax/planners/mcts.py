"""Monte-Carlo tree search over known or learned models, on the trees of mctx.

    num_simulations times, from the root:
        select    actions by a rule, and outcomes by their chances, down to a new one
        expand    it: one step of the model
        evaluate  the state there: logits of its actions, and its value
        back up   the value, discounted, along the path
    act as most often (gumbel: as is best of those that were left)

The rules: `uct` (Kocsis and Szepesvari, "Bandit based Monte-Carlo planning", 2006),
`puct` (Silver et al., "Mastering the game of Go without human knowledge", 2017; values
scaled as by Schrittwieser et al., "Mastering Atari, Go, chess and shogi by planning
with a learned model", 2020) and `gumbel` (Danihelka et al., "Policy improvement by
planning with Gumbel", 2022).

Chance: an edge of the tree is an action and one of its C outcomes.  Outcomes are taken
in turn as their chances say; those of an action are averaged over.  Where only samples
are to be had, C of them are drawn per action and state, of equal chances.

Continuous actions: every state of the tree has K of its own, drawn by a proposal
(Hubert et al., "Learning and planning in complex action spaces", 2021).  Progressive
widening (Couetoux et al., "Continuous upper confidence trees", 2011) lets the first
widening_factor N^widening_exponent of them be tried in N visits of the state.

Two players: a negative discount, and values as the player to move sees them.

A back-up by mctx passes over the whole tree, so the time grows with the square of
`num_simulations`: several rollouts per value are cheaper than many simulations.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mctx

from mbrl_jax.ops import checks
from mbrl_jax.ops.tabular import Tables
from mbrl_jax.types import Array, Env, EnvState, Key, Policy, PyTree

RULES = ("uct", "puct", "gumbel")
NEVER = -1e30  # the logit of what cannot be

# (key, state, action [] or [A], outcome []) -> (next state, reward [], discount [])
Step = Callable[[Key, PyTree, Array, Array], tuple[PyTree, Array, Array]]
Value = Callable[[Key, PyTree], Array]  # (key, state) -> []


class Model(NamedTuple):
    """What is searched: A actions with C outcomes each; a state is a pytree of arrays.

    The discount is 0 where all ends, and negative where the other player moves next.
    After an end come reward and discount 0.
    """

    step: Step
    logits: Callable[[PyTree], Array]  # of the actions [A], -inf for what cannot be
    chances: Callable[[PyTree], Array]  # log-probabilities of outcomes [A, C]
    value: Value  # for the player to move; may be a sample


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    rule: str = "uct"  # by which actions are selected: uct, puct or gumbel
    num_simulations: int = 100  # per action
    max_depth: int = 0  # of the tree, 0 for no limit
    exploration: float = 1.4  # in units of the value with uct, of its spread with puct
    widening_factor: float = math.inf  # progressive widening where finite; uct, puct
    widening_exponent: float = 0.5  # of progressive widening
    gumbel_scale: float = 0.0  # of the noise of the logits at the root; gumbel
    discount: float = 0.99  # of what is earned later
    rollout_length: int = 20  # steps of a random rollout, whose return is the value
    num_rollouts: int = 1  # averaged over
    num_outcomes: int = 1  # C, sampled per action, where an environment is random
    num_samples: int = 16  # K, actions per state, where they are continuous
    num_repeats: int = 1  # environment steps per action


class Result(NamedTuple):
    """What is known at the root after a search."""

    action: Array  # [] int32
    weights: Array  # [A] a better policy, to learn from: shares of the visits
    visits: Array  # [A]
    q_values: Array  # [A], 0 without a visit
    value: Array  # []


class Node(NamedTuple):
    """A state with the actions that can be chosen in it."""

    state: PyTree
    actions: Array  # [K, A]


def search(key: Key, model: Model, state: PyTree, config: Config) -> Result:
    """Searches from one state; vmap for many.

    Raises ValueError for a configuration that cannot be.
    """
    validate(config)
    chances = jax.eval_shape(model.chances, state)
    if config.rule == "gumbel" and chances.shape[1] > 1:
        raise ValueError(
            f"rule is gumbel, which knows no chance: {chances.shape[1]} outcomes"
        )
    # mctx works on batches: here, of one
    root_key, key = jax.random.split(key)
    states = jax.tree.map(lambda x: jnp.asarray(x)[None], state)
    root = mctx.RootFnOutput(
        prior_logits=_joint_logits(model, state)[None],
        value=model.value(root_key, state)[None],
        embedding=states,
    )
    find = _by_gumbel if config.rule == "gumbel" else _by_score
    action, weights, tree = find(key, model, root, config, chances.shape)
    visits, q_values = _statistics(tree, 0, chances.shape)
    shares = visits / visits.sum() if weights is None else weights
    return Result(action, shares, visits, q_values, tree.node_values[0])


def make(env: Env, config: Config = Config()) -> Policy:
    """Plans with `env` itself; what is observed has to be the state that it steps.

    For `rollout.evaluate(key, simulator.observe_all(env), policy, ...)`.  Future noise
    is none of the simulator's: keys in its state are drawn afresh.  Values are those
    of random rollouts.  Raises ValueError for a configuration that cannot be.
    """
    validate(config)
    if env.host:
        raise ValueError(f"{env.name} steps outside jax: nothing can plan with it")

    def choose(key: Key, shown: Any) -> Array:
        root_key, key = jax.random.split(key)
        state = bare(shown)
        step = of_env(env, shown, config.discount, config.num_repeats)
        if env.num_actions:
            model = random_outcomes(step, env.num_actions, config)
            return search(key, model, state, config).action
        limit, shape = env.action_limit, (env.action_size,)
        propose = lambda key, state: jax.random.uniform(
            key, shape, minval=-limit, maxval=limit
        )
        model, root = sampled_actions(step, propose, config)
        node = root(root_key, state)
        return node.actions[search(key, model, node, config).action]

    return policy(choose)


def policy(choose: Callable[[Key, Array], Array]) -> Policy:
    """Acts as `choose(key, obs)` says, without a memory."""
    return Policy(lambda: (), lambda key, obs, memory: (choose(key, obs), memory))


def of_env(
    env: Env, like: EnvState, discount: float | Array, num_repeats: int = 1
) -> Step:
    """`num_repeats` steps of `env`, in states as `like` but for their keys.

    The clock is not looked at: a time limit is no end.
    """

    def once(carry: tuple, key: Key) -> tuple[tuple, None]:
        state, action, total, weight = carry
        after = env.step(_with_keys(key, state, like), action)
        on = ~state.terminal
        total = total + jnp.where(on, weight * after.reward, 0).astype(total.dtype)
        weight = jnp.where(on & ~after.terminal, weight * discount, 0)
        kept = jax.tree.map(lambda x, y: jnp.where(on, x, y), bare(after), state)
        return (kept, action, total, weight.astype(total.dtype)), None

    def step(
        key: Key, state: EnvState, action: Array, outcome: Array
    ) -> tuple[EnvState, Array, Array]:
        start = (state, action, jnp.zeros(()), jnp.ones(()))
        keys = jax.random.split(key, num_repeats)
        (state, _, total, weight), _ = jax.lax.scan(once, start, keys)
        return state, total, weight

    return step


def of_tables(tables: Tables, num_outcomes: int, config: Config) -> Model:
    """Of known or counted tables, the state a number; `num_outcomes` is the largest
    number of states that an action leads to.  Values are those of random rollouts."""
    probabilities, cells = jax.lax.top_k(tables.transition, num_outcomes)  # [S, A, C]

    def step(
        key: Key, state: Array, action: Array, outcome: Array
    ) -> tuple[Array, Array, Array]:
        on = ~tables.terminal[state]
        after = jnp.where(on, cells[state, action, outcome], state)
        reward = jnp.where(on, tables.reward[state, action], 0)
        return after, reward, jnp.where(tables.terminal[after], 0, config.discount)

    model = Model(
        step=step,
        logits=lambda state: jnp.zeros(tables.reward.shape[1]),
        chances=lambda state: jnp.log(probabilities[state]),
        value=_zero,
    )
    return model._replace(value=rollouts(step, _draw(model), config))


def of_game(
    play: Callable[[PyTree, Array], PyTree],
    legal: Callable[[PyTree], Array],
    lost: Callable[[PyTree], Array],
    config: Config,
) -> Model:
    """Of a game of two who move in turn: 1 for who wins, -1 for who loses.

    A state is as the player to move sees it; `legal` [A] is false where all has ended,
    `lost` [] is true where the other has won.  Values are those of random rollouts.
    """

    def step(
        key: Key, state: PyTree, action: Array, outcome: Array
    ) -> tuple[PyTree, Array, Array]:
        on = legal(state).any()
        new = play(state, action)
        after = jax.tree.map(lambda x, y: jnp.where(on, x, y), new, state)
        reward = jnp.where(on & lost(after), 1.0, 0.0)
        return after, reward, jnp.where(legal(after).any(), -config.discount, 0.0)

    logits = lambda state: jnp.where(legal(state), 0.0, -jnp.inf)
    certain = lambda state: jnp.zeros_like(logits(state))[:, None]
    model = Model(step, logits, certain, _zero)
    return model._replace(value=rollouts(step, _draw(model), config))


def random_outcomes(step: Step, num_actions: int, config: Config) -> Model:
    """Of steps that draw what comes of them by their key.

    Values are those of random rollouts.
    """
    model = Model(
        step=step,
        logits=lambda state: jnp.zeros(num_actions),
        chances=lambda state: _even(num_actions, config.num_outcomes),
        value=_zero,
    )
    return model._replace(value=rollouts(step, _draw(model), config))


def sampled_actions(
    step: Step, propose: Callable[[Key, PyTree], Array], config: Config
) -> tuple[Model, Callable[[Key, PyTree], Node]]:
    """A model of `Node`s, and what makes one of a state.

    `propose(key, state)` draws an action [A]: that of the K tried there, and of the
    random rollouts that values are.
    """

    def node(key: Key, state: PyTree) -> Node:
        keys = jax.random.split(key, config.num_samples)
        return Node(state, jax.vmap(propose, (0, None))(keys, state))

    def step_node(
        key: Key, at: Node, action: Array, outcome: Array
    ) -> tuple[Node, Array, Array]:
        step_key, key = jax.random.split(key)
        result = step(step_key, at.state, at.actions[action], outcome)
        return node(key, result[0]), result[1], result[2]

    model = random_outcomes(step_node, config.num_samples, config)
    value = rollouts(
        step, lambda key, state: (propose(key, state), jnp.array(0)), config
    )
    return model._replace(value=lambda key, at: value(key, at.state)), node


def bare(state: PyTree) -> PyTree:
    """Without keys, since a tree can hold numbers only: zeros in their place."""
    blank = lambda x: jnp.zeros(x.shape, jnp.uint8) if _is_key(x) else x
    return jax.tree.map(blank, state)


def rollouts(
    step: Step,
    draw: Callable[[Key, PyTree], tuple[Array, Array]],
    config: Config,
) -> Value:
    """The mean return of `num_rollouts` of actions and outcomes that `draw` makes."""

    def one(key: Key, state: PyTree) -> Array:
        def advance(carry: tuple, key: Key) -> tuple[tuple, None]:
            state, total, weight = carry
            draw_key, key = jax.random.split(key)
            state, reward, discount = step(key, state, *draw(draw_key, state))
            total = (total + weight * reward).astype(total.dtype)
            return (state, total, (weight * discount).astype(total.dtype)), None

        start = (state, jnp.zeros(()), jnp.ones(()))
        keys = jax.random.split(key, config.rollout_length)
        return jax.lax.scan(advance, start, keys)[0][1]

    def mean(key: Key, state: PyTree) -> Array:
        keys = jax.random.split(key, config.num_rollouts)
        return jax.vmap(one, (0, None))(keys, state).mean()

    return mean


def validate(config: Config) -> None:
    """Raises ValueError, naming the fields, for a configuration that cannot be."""
    checks.one_of(config, "rule", RULES)
    counts = ("num_rollouts", "num_outcomes", "num_samples", "num_repeats")
    checks.at_least(config, 1, "num_simulations", *counts)
    checks.at_least(config, 0, "max_depth", "rollout_length", "gumbel_scale")
    checks.at_least(config, 0, "exploration")
    checks.positive(config, "widening_factor")
    checks.within(config, 0, 1, "widening_exponent", "discount")
    if config.rule == "gumbel" and config.widening_factor != math.inf:
        raise ValueError(
            f"widening_factor is {config.widening_factor}, must be inf with gumbel"
        )


def _by_gumbel(
    key: Key, model: Model, root: Any, config: Config, shape: tuple[int, ...]
) -> tuple[Array, Array, Any]:
    """The action, its weights [A], and the tree."""
    found = mctx.gumbel_muzero_policy(
        (),
        key,
        root,
        _expand(model, shape[1]),
        config.num_simulations,
        invalid_actions=root.prior_logits <= NEVER,
        max_depth=config.max_depth or None,
        gumbel_scale=config.gumbel_scale,
    )
    return found.action[0], found.action_weights[0], _first(found.search_tree)


def _by_score(
    key: Key, model: Model, root: Any, config: Config, shape: tuple[int, ...]
) -> tuple[Array, None, Any]:
    """The action visited most, the better one of equals; and the tree."""

    def select(key: Key, tree: Any, node: Array, depth: int | Array = 0) -> Array:
        return _select(tree, node, config, shape)

    tree = _first(
        mctx.search(
            (),
            key,
            root=root,
            recurrent_fn=_expand(model, shape[1]),
            root_action_selection_fn=select,
            interior_action_selection_fn=select,
            num_simulations=config.num_simulations,
            max_depth=config.max_depth or None,
        )
    )
    visits, q_values = _statistics(tree, 0, shape)
    best = jnp.where(visits == visits.max(), q_values, -jnp.inf)
    return best.argmax().astype(jnp.int32), None, tree


def _expand(model: Model, num_outcomes: int) -> Callable[..., Any]:
    def one(key: Key, edge: Array, state: PyTree) -> tuple[Any, PyTree]:
        step_key, value_key = jax.random.split(key)
        action, outcome = jnp.divmod(edge, num_outcomes)
        state, reward, discount = model.step(step_key, state, action, outcome)
        value = model.value(value_key, state)
        output = mctx.RecurrentFnOutput(
            reward=reward.astype(value.dtype),
            discount=discount.astype(value.dtype),
            prior_logits=_joint_logits(model, state),
            value=value,
        )
        return output, state

    def every(_: Any, key: Key, edges: Array, states: PyTree) -> tuple[Any, PyTree]:
        return jax.vmap(one)(jax.random.split(key, len(edges)), edges, states)

    return every


def _joint_logits(model: Model, state: PyTree) -> Array:
    """Log-probabilities of the edges, [A C]; `NEVER` for what cannot be."""
    actions = jax.nn.log_softmax(jnp.maximum(model.logits(state), NEVER))
    return jnp.maximum(actions[:, None] + model.chances(state), NEVER).reshape(-1)


def _select(tree: Any, node: Array, config: Config, shape: tuple[int, ...]) -> Array:
    """The edge to go on by."""
    visits, q_values = _statistics(tree, node, shape)
    chances = jnp.exp(tree.children_prior_logits[node]).reshape(shape)  # jointly
    prior, tried, total = chances.sum(axis=1), visits > 0, visits.sum()
    if config.rule == "uct":
        width = jnp.sqrt(jnp.log(jnp.maximum(total, 1)) / jnp.maximum(visits, 1))
        score = jnp.where(tried, q_values + config.exploration * width, jnp.inf)
    else:
        known = jnp.where(tried, q_values, tree.node_values[node])
        low = jnp.minimum(known.min(), tree.node_values[node])
        spread = jnp.maximum(known.max(), tree.node_values[node]) - low
        scaled = jnp.where(tried, (q_values - low) / jnp.maximum(spread, 1e-8), 0)
        score = scaled + config.exploration * prior * jnp.sqrt(total + 1) / (1 + visits)
    possible = prior > 0
    room = config.widening_factor * (total + 1.0) ** config.widening_exponent
    allowed = possible & (jnp.cumsum(possible) - 1 < room)
    action = jnp.where(allowed, score, -jnp.inf).argmax()
    edge_visits = tree.children_visits[node].reshape(shape)[action]
    edge = action * shape[1] + (chances[action] / (edge_visits + 1)).argmax()
    return edge.astype(jnp.int32)


def _statistics(
    tree: Any, node: Array | int, shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """Visits and mean returns of the actions of a node, [A]; 0 without a visit."""
    later = tree.children_discounts[node] * tree.children_values[node]
    q_values = (tree.children_rewards[node] + later).reshape(shape)
    edge_visits = tree.children_visits[node].reshape(shape)
    visits = edge_visits.sum(axis=1)
    return visits, (edge_visits * q_values).sum(axis=1) / jnp.maximum(visits, 1)


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)


def _draw(model: Model) -> Callable[[Key, PyTree], tuple[Array, Array]]:
    """An action and its outcome, as likely as the model says."""

    def draw(key: Key, state: PyTree) -> tuple[Array, Array]:
        action_key, outcome_key = jax.random.split(key)
        action = jax.random.categorical(action_key, model.logits(state))
        chances = model.chances(state)[action]
        if len(chances) == 1:  # to draw takes time, here and of the compiler
            return action, jnp.zeros((), jnp.int32)
        return action, jax.random.categorical(outcome_key, chances)

    return draw


def _zero(key: Key, state: PyTree) -> Array:
    return jnp.zeros(())


def _even(num_actions: int, num_outcomes: int) -> Array:
    return jnp.full((num_actions, num_outcomes), -math.log(num_outcomes))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _with_keys(key: Key, state: PyTree, like: PyTree) -> PyTree:
    """`state` with new keys where `like` has some."""
    leaves, structure = jax.tree.flatten(state)
    for i, old in enumerate(jax.tree.leaves(like)):
        if _is_key(old):
            leaves[i] = jax.random.split(jax.random.fold_in(key, i), old.shape)
    return jax.tree.unflatten(structure, leaves)
