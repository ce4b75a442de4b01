"""Model-based control that a network learns to imitate (Nagabandi et al., 2018).

"Neural network dynamics for model-based deep reinforcement learning with model-free
fine-tuning", arXiv 1708.02596:

    `num_model_episodes` times, after the random ones:               Algorithm 1
        run one episode by MPC, random shooting in the model
        fit the model to all the data
    `num_imitations` times, with the model as it then is:            Sec. V, DAgger
        run one episode, the first by MPC, later by the network, or by PLATO's teacher
        have MPC say what it would have done at each observation on the way
        fit the network to all that MPC has said
    repeat, without the model:                                       Sec. V
        run `num_episodes` episodes by the network, with noise
        improve it by TRPO

PLATO's teacher is MPC that is held near the network (Kahn, Zhang, Levine and Abbeel,
"PLATO: policy learning with adaptive trajectory optimization", 2017, Eq. (2)): at each
step it minimises

    cost of the plan + kl_weight KL(its first action || the network)

so that it goes where the network would, unless that costs too much; what the network
learns there is still what MPC alone would have done.  With its action normal and as
spread as the network's, KL is half the square of the gap between the two, in units of
the network's standard deviation.  With `kl_weight` 0 the teacher is MPC; the larger it
is, the nearer to DAgger, where the network acts.

The network begins model-free learning where MPC ends, and acts at a small share of the
cost of a search.  Deviations: what the network is fitted to counts alike in all
dimensions; TRPO's critic is a network; models as in `models/ensemble.py`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import gathering, imitation, optimizers, policies, replay
from mbrl_jax.models import aggregation, ensemble, outcomes
from mbrl_jax.models import by_name as models
from mbrl_jax.ops import checks, loop, normalize
from mbrl_jax.planners import mpc
from mbrl_jax.policy_gradient import actor_critic, experience
from mbrl_jax.policy_gradient import trpo as trpo_learner
from mbrl_jax.rollout import episode
from mbrl_jax.types import (
    Algorithm,
    Array,
    Env,
    Key,
    Metrics,
    Params,
    Policy,
    PyTree,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters.  A float may be traced, as under vmap; an int fixes a shape."""

    capacity: int = 10_000  # transitions kept, and as many of MPC's answers
    num_random_episodes: int = 1  # acted at random, before the first plan
    num_model_episodes: int = 5  # acted by MPC, before the first imitation
    num_imitations: int = 8  # episodes, before the first model-free update
    teacher: str = "dagger"  # who acts in these: the network; or "plato", MPC near it
    kl_weight: float = 1.0  # of plato: what a nat costs, in units of reward
    num_episodes: int = 16  # of a model-free update
    num_updates: int = 500  # of the network, after each episode of imitation
    batch_size: int = 128  # answers in an update
    learning_rate: float = 1e-3  # of Adam, for the network
    max_norm: float = 10.0  # of the gradient, above which it is scaled down
    # random_shooting, cem, icem, mppi, cma_es, gradient or ilqr
    planner: str = "random_shooting"
    plan: mpc.Config = mpc.Config(num_samples=1000)
    net: actor_critic.Config = actor_critic.Config(init_std=0.5)
    trpo: trpo_learner.Config = trpo_learner.Config()
    model: models.Config = models.Config(
        ensemble=ensemble.Config(probabilistic=False, num_members=1)
    )


class State(NamedTuple):
    model: PyTree
    replay: replay.Replay
    answers: replay.Replay  # transitions whose actions are MPC's
    learner: trpo_learner.State
    opt_state: optax.OptState  # of the imitation
    env_steps: Array  # [] int32
    num_steps: Array  # [] int32, of the algorithm


def make(env: Env, config: Config = Config()) -> Algorithm:
    """The algorithm.  Raises ValueError for a configuration that cannot be."""
    _validate(config)
    model, planned = aggregation.planning(env, config)
    num_steps = config.num_episodes * env.episode_length
    experience.check_minibatches(config.trpo, num_steps)
    net = actor_critic.make(env, config.net)
    learner = trpo_learner.make(net, config.trpo)
    gatherer = gathering.episode_gatherer(env, config.num_episodes)
    optimizer = optimizers.clipped_adam(config.learning_rate, config.max_norm)
    num_before = config.num_random_episodes + config.num_model_episodes

    def init(key: Key) -> State:
        model_key, learner_key = jax.random.split(key)
        nothing = jnp.zeros((), jnp.int32)
        data = replay.init(env.obs_size, env.action_size, config.capacity)
        learned = learner.init(learner_key)
        return State(
            model.init(model_key),
            data,
            data,
            learned,
            optimizer.init(learned.agent.actor),
            nothing,
            nothing,
        )

    def step(key: Key, state: State) -> tuple[State, Metrics]:
        guided_metrics = jax.eval_shape(guided, key, state)[1]
        tuned_metrics = jax.eval_shape(tuned, key, state)[1]
        every = {**guided_metrics, **tuned_metrics}
        blank = {name: jnp.zeros(x.shape, x.dtype) for name, x in every.items()}

        def full(one: Any) -> tuple[State, Metrics]:
            new, metrics = one(key, state)
            return new, {**blank, **metrics}

        tuning = state.num_steps >= num_before + config.num_imitations
        state, metrics = jax.lax.cond(tuning, lambda: full(tuned), lambda: full(guided))
        return state._replace(num_steps=state.num_steps + 1), metrics

    def guided(key: Key, state: State) -> tuple[State, Metrics]:
        """An episode for the model, or of imitation."""
        episode_key, fit_key, ask_key, update_key = jax.random.split(key, 4)
        at_random = state.num_steps < config.num_random_episodes
        acting = policies.switch(at_random, policies.uniform(env), guide(state))
        transitions, valid = episode(episode_key, env, acting)
        data = replay.insert(state.replay, transitions, valid)
        imitating = state.num_steps >= num_before
        fit = lambda _: model.fit(fit_key, state.model, data)
        shapes = jax.eval_shape(model.fit, fit_key, state.model, data)[1]
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        fitted, metrics = loop.when(~imitating, fit, (state.model, blank))
        state = state._replace(
            model=fitted,
            replay=data,
            env_steps=state.env_steps + valid.sum(dtype=jnp.int32),
        )

        def learn(carry: tuple[State, Array]) -> tuple[State, Array]:
            state, _ = carry
            actions = imitation.ask(ask_key, planned(state.model), transitions.obs)
            answers = transitions._replace(action=actions)
            known = replay.insert(state.answers, answers, valid)
            return imitate(update_key, state._replace(answers=known))

        state, loss = loop.when(imitating, learn, (state, jnp.zeros(())))
        return state, {
            **metrics,
            "env_steps": state.env_steps,
            "episode/return": transitions.reward.sum(),
            "episode/length": valid.sum().astype(loss.dtype),
            "imitation/loss": loss,
            "imitation/skipped_updates": state.opt_state.num_skipped,
        }

    def tuned(key: Key, state: State) -> tuple[State, Metrics]:
        """A model-free update."""
        act_key, update_key = jax.random.split(key)
        acting = learner.explore(state.learner)
        _, windows, ended, returns = gatherer.gather(act_key, acting, ())
        learned, metrics = learner.update(update_key, state.learner, windows)
        count = windows.valid.sum(dtype=jnp.int32)
        state = state._replace(learner=learned, env_steps=state.env_steps + count)
        return state, {
            **metrics,
            "env_steps": state.env_steps,
            "episode/return": jnp.where(ended, returns, 0).sum() / config.num_episodes,
            "episode/length": windows.valid.sum(axis=1).mean(),
            "imitation/skipped_updates": state.opt_state.num_skipped,
        }

    def imitate(key: Key, state: State) -> tuple[State, Array]:
        """Fits the network to the answers; the mean loss of the last tenth."""
        known, agent = state.answers, state.learner.agent
        seen = normalize.running_stats(env.obs_size)
        agent = agent._replace(
            obs=normalize.update(seen, known.data.obs, replay.valid(known))
        )

        def act(actor: Params, obs: Array) -> Array:
            acts = actor_critic.policy(net, agent._replace(actor=actor), explore=False)
            return acts.act(key, obs, acts.init())[0]

        actor, opt_state, losses = imitation.fit(
            key,
            act,
            optimizer,
            agent.actor,
            state.opt_state,
            known,
            action_limit=env.action_limit,
            num_updates=config.num_updates,
            batch_size=config.batch_size,
        )
        learned = state.learner._replace(agent=agent._replace(actor=actor))
        state = state._replace(learner=learned, opt_state=opt_state)
        return state, losses[-max(1, config.num_updates // 10) :].mean()

    def guide(state: State) -> Policy:
        """Who runs an episode that is not model-free: in the end, the teacher."""
        if config.teacher == "dagger":
            return policy(state)
        by_plan = state.num_steps <= num_before
        return policies.switch(by_plan, planned(state.model), adaptive(state))

    def adaptive(state: State) -> Policy:
        """PLATO's teacher.  Its memory is a plan, and the network's."""
        acts, agent = learner.policy(state.learner), state.learner.agent
        std = env.action_limit * config.net.init_std * jnp.exp(agent.actor["log_std"])

        def act(key: Key, obs: Array, memory: PyTree) -> tuple[Array, PyTree]:
            plan, own = memory
            mean, own = acts.act(key, obs, own)  # needs no key
            kl = lambda action: (((action - mean) / std) ** 2).sum() / 2
            held = planned(state.model, lambda action: config.kl_weight * kl(action))
            action, plan = held.act(key, obs, plan)
            return action, (plan, own)

        return Policy(lambda: (planned(state.model).init(), acts.init()), act)

    def policy(state: State) -> Policy:
        by_plan = state.num_steps <= num_before
        acts = learner.policy(state.learner)
        return policies.switch(by_plan, planned(state.model), acts)

    predict = outcomes.of_every_member(model)
    return Algorithm(init, step, policy, predict)


def _validate(config: Config) -> None:
    checks.at_least(config, 0, "num_model_episodes", "num_imitations")
    counts = ("num_random_episodes", "num_updates", "num_episodes", "batch_size")
    checks.at_least(config, 1, *counts)
    checks.positive(config, "learning_rate", "max_norm")
    checks.one_of(config, "teacher", ("dagger", "plato"))
    checks.at_least(config, 0, "kl_weight")
