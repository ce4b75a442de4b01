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

A step whose reward, or the value after it, is not finite is worse than any other: its
action is not tried again, and backs up what its state was worth before.

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
from mbrl_jax.types import Array, Key, PyTree

RULES = ("uct", "puct", "gumbel")
NEVER = -1e30  # the logit of what cannot be

# (key, state, action [] or [A], outcome []) -> (next state, reward [], discount [])
SearchStep = Callable[[Key, PyTree, Array, Array], tuple[PyTree, Array, Array]]
Value = Callable[[Key, PyTree], Array]  # (key, state) -> []


class SearchModel(NamedTuple):
    """What is searched: A actions with C outcomes each; a state is a pytree of arrays.

    The discount is 0 where all ends, and negative where the other player moves next.
    After an end come reward and discount 0.
    """

    step: SearchStep
    logits: Callable[[PyTree], Array]  # of the actions [A], -inf for what cannot be
    chances: Callable[[PyTree], Array]  # log-probabilities of outcomes [A, C]
    value: Value  # for the player to move; may be a sample


Model = SearchModel  # its name before, which code outside uses


class _Place(NamedTuple):
    """What the tree holds of a node."""

    state: PyTree
    value: Array  # [] when it was expanded
    lost: Array  # [] bool, the step there was not finite: nothing is known of it


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
    q_values: Array  # [A], 0 without a visit, -inf where a return was not finite
    value: Array  # []


def search(key: Key, model: SearchModel, state: PyTree, config: Config) -> Result:
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
    value = _value(model, root_key, state)
    value = jnp.where(jnp.isfinite(value), value, 0)[None]
    root = mctx.RootFnOutput(
        prior_logits=_joint_logits(model, state)[None],
        value=value,
        embedding=_Place(states, value, jnp.zeros(1, bool)),
    )
    find = _by_gumbel if config.rule == "gumbel" else _by_score
    action, weights, tree = find(key, model, root, config, chances.shape)
    visits, q_values = _statistics(tree, 0, chances.shape)
    lost = _lost(tree, 0).reshape(chances.shape).any(axis=1)
    if weights is None:
        sound = jnp.where(lost & ~lost.all(), 0, visits)
        sound = jnp.where(sound.any(), sound, visits)
        weights = sound / sound.sum()
    q_values = jnp.where(lost, -jnp.inf, q_values)
    return Result(action, weights, visits, q_values, tree.node_values[0])


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
    key: Key, model: SearchModel, root: Any, config: Config, shape: tuple[int, ...]
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
        qtransform=_completed,
        gumbel_scale=config.gumbel_scale,
    )
    return found.action[0], found.action_weights[0], _first(found.search_tree)


def _by_score(
    key: Key, model: SearchModel, root: Any, config: Config, shape: tuple[int, ...]
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
    lost = _lost(tree, 0).reshape(shape).any(axis=1)
    # rather untried than lost, and rather lost than impossible
    count = jnp.where(_possible(tree, 0, shape), jnp.where(lost, -1, visits), -2)
    best = jnp.where(count == count.max(), q_values, -jnp.inf)
    return best.argmax().astype(jnp.int32), None, tree


def _expand(model: SearchModel, num_outcomes: int) -> Callable[..., Any]:
    def one(key: Key, edge: Array, place: _Place) -> tuple[Any, _Place]:
        step_key, value_key = jax.random.split(key)
        action, outcome = jnp.divmod(edge, num_outcomes)
        before = place.state
        state, reward, discount = model.step(step_key, before, action, outcome)
        value = _value(model, value_key, state)
        lost = ~(jnp.isfinite(reward) & jnp.isfinite(discount) & jnp.isfinite(value))
        sound = lambda x, instead: jnp.where(lost, instead, x).astype(value.dtype)
        state = jax.tree.map(lambda x, y: jnp.where(lost, x, y), before, state)
        value = sound(value, 0)
        output = mctx.RecurrentFnOutput(
            reward=sound(reward, place.value),
            discount=sound(discount, 0),
            prior_logits=_joint_logits(model, state),
            value=value,
        )
        return output, _Place(state, value, lost)

    def every(_: Any, key: Key, edges: Array, places: _Place) -> tuple[Any, _Place]:
        return jax.vmap(one)(jax.random.split(key, len(edges)), edges, places)

    return every


def _value(model: SearchModel, key: Key, state: PyTree) -> Array:
    """In a float type: rewards are counted in that of the value."""
    value = model.value(key, state)
    return jnp.asarray(value, jnp.result_type(value, float))


def _joint_logits(model: SearchModel, state: PyTree) -> Array:
    """Log-probabilities of the edges, [A C]; `NEVER` for what cannot be."""
    logits = jnp.nan_to_num(model.logits(state), nan=NEVER)
    actions = jax.nn.log_softmax(jnp.maximum(logits, NEVER))
    return jnp.maximum(actions[:, None] + model.chances(state), NEVER).reshape(-1)


def _select(tree: Any, node: Array, config: Config, shape: tuple[int, ...]) -> Array:
    """The edge to go on by."""
    visits, q_values = _statistics(tree, node, shape)
    logits = tree.children_prior_logits[node].reshape(shape)  # jointly
    prior, tried, total = jnp.exp(logits).sum(axis=1), visits > 0, visits.sum()
    lost = _lost(tree, node).reshape(shape).any(axis=1)
    if config.rule == "uct":
        width = jnp.sqrt(jnp.log(jnp.maximum(total, 1)) / jnp.maximum(visits, 1))
        score = jnp.where(tried, q_values + config.exploration * width, jnp.inf)
    else:
        known = jnp.where(tried & ~lost, q_values, tree.node_values[node])
        low = jnp.minimum(known.min(), tree.node_values[node])
        spread = jnp.maximum(known.max(), tree.node_values[node]) - low
        spread = jnp.where(spread > 0, spread, 1)
        scaled = jnp.where(tried, (q_values - low) / spread, 0)
        score = scaled + config.exploration * prior * jnp.sqrt(total + 1) / (1 + visits)
    possible = _possible(tree, node, shape)
    # where all are lost, it makes no difference
    possible &= ~lost | (lost | ~possible).all()
    room = config.widening_factor * (total + 1.0) ** config.widening_exponent
    allowed = possible & (jnp.cumsum(possible) - 1 < room)
    action = jnp.where(allowed, score, -jnp.inf).argmax()
    chances = jax.nn.softmax(logits[action])
    edge_visits = tree.children_visits[node].reshape(shape)[action]
    edge = action * shape[1] + (chances / (edge_visits + 1)).argmax()
    return edge.astype(jnp.int32)


def _possible(tree: Any, node: Array | int, shape: tuple[int, ...]) -> Array:
    """Which actions can be, [A] bool, however unlikely."""
    logits = tree.children_prior_logits[node].reshape(shape)
    return (logits > NEVER / 2).any(axis=1)


def _lost(tree: Any, node: Array | int) -> Array:
    """Which edges of a node led to nothing finite, [A C] bool."""
    child = tree.children_index[node]
    return (child >= 0) & tree.embeddings.lost[child]


def _completed(tree: Any, node: Array) -> Array:
    """The scaled values of actions that gumbel goes by, in any unit."""
    values = mctx.qtransform_completed_by_mix_value(
        tree, node, epsilon=float(jnp.finfo(tree.node_values.dtype).tiny)
    )
    return jnp.where(_lost(tree, node), NEVER, values)


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
