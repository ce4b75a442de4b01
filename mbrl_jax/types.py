"""The shapes that everything in this package is made of.

Shape letters, used in every comment: B batch, T time in the environment, H planning
horizon, M ensemble members, P particles, N sampled action sequences, K kept sequences,
O obs size, A action size, C replay capacity, E evaluation episodes, S seeds.
`[]` is a scalar.  Everything is written for one example; callers vmap.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array  # a typed key, `jax.random.key(seed)`
PyTree = Any
Params = Any
Metrics = dict[str, Array]  # {"group/name": []}, the same keys at every step


class EnvState(NamedTuple):
    """What an environment is in, and what it showed on the way here."""

    obs: Array  # [O], or a picture, see `Env`
    reward: Array  # [] reward of the step that led here; 0 after a reset
    terminal: Array  # [] bool, the task ended here: nothing follows, the value is 0
    truncated: Array  # [] bool, the clock ran out here: the value goes on
    time: Array  # [] int32, steps since the reset
    sim: PyTree  # the simulator's own state


class Belief(NamedTuple):
    """What methods need that follow a Gaussian over observations, such as PILCO."""

    mean: tuple[float, ...]  # [O] of the first observation
    std: tuple[float, ...]  # [O] of it: its entries are independent
    angles: tuple[int, ...]  # entries to be seen by sine and cosine, rad
    reward: Callable[[Array, Array], Array]
    # (mean [O], cov [O, O]) of the next observation -> expected reward []


class Env(NamedTuple):
    """An environment.  Actions lie in [-action_limit, action_limit] in every dimension.

    Where `num_actions` is not 0 they are discrete instead: an action is one number of
    range(num_actions), int32 [], and `action_size` and `action_limit` are 0.

    Where `obs_shape` is not () observations are pictures instead of vectors: uint8 of
    that shape, [height, width, channels], and `obs_size` is 0.  The channels are those
    of the last `num_frames` frames, the newest last.

    `reward` and `terminal` are None where only the simulator knows them; a model then
    learns them.  `step` never resets: rollouts do, with a fresh key.
    """

    name: str
    reset: Callable[[Key], EnvState]
    step: Callable[[EnvState, Array], EnvState]  # (env_state, action [A])
    obs_size: int  # O
    action_size: int  # A
    action_limit: float
    episode_length: int  # steps after which `truncated` is set
    reward: Callable[[Array, Array, Array], Array] | None = None
    terminal: Callable[[Array, Array, Array], Array] | None = None
    # (obs [O], action [A], next_obs [O]) -> []
    render: Callable[[EnvState], Array] | None = None
    # states stacked over time, [T, ...] -> uint8 [T, height, width, 3]; not under jit
    num_actions: int = 0  # of a discrete environment
    host: bool = False  # steps outside jax, one run at a time: never vmap it
    belief: Belief | None = None  # where it is known
    tasks: tuple["Env", ...] = ()  # of several as one, see `envs.multi_task`
    picture: Callable[[EnvState, int, int], Array] | None = None
    # (one state, height, width) -> [height, width, 3] in [0, 1]; under jit, with a
    # gradient
    goal: Callable[[], EnvState] | None = None
    # what the task is to bring about, where that is one state
    obs_shape: tuple[int, ...] = ()  # of pictures
    num_frames: int = 1  # that a picture is of

    def blank_obs(self) -> Array:
        """An observation of zeros, of the right shape and type."""
        if self.obs_shape:
            return jnp.zeros(self.obs_shape, jnp.uint8)
        return jnp.zeros(self.obs_size)


class Transition(NamedTuple):
    """One step, or with a leading axis many.  `next_obs` is never that of a reset."""

    obs: Array  # [O]
    action: Array  # [A]
    reward: Array  # []
    next_obs: Array  # [O]
    terminal: Array  # [] bool
    truncated: Array  # [] bool


class Window(NamedTuple):
    """Steps of one environment as they came; episodes may end within."""

    transitions: Transition  # [T, ...]
    valid: Array  # [T] bool
    memory: PyTree  # (actor's, critic's) before the first step


class Gaussian(NamedTuple):
    """Independent normals."""

    mean: Array  # [..., D]
    std: Array  # [..., D]


class Model(NamedTuple):
    """A learned model of the dynamics, see `models/`.

    `predict` is about the outcome of one step, a vector of size D: `next_obs` [O], then
    the reward and the logit of a termination where these are learned.
    """

    init: Callable[[Key], PyTree]
    fit: Callable[[Key, PyTree, PyTree], tuple[PyTree, Metrics]]  # (key, state, replay)
    members: Callable[[PyTree], PyTree]  # state -> what `predict` needs, leading axis M
    predict: Callable[[PyTree, Array, Array], Gaussian]  # (one member, obs, action) [D]


class Plan(NamedTuple):
    """A diagonal Gaussian over action sequences, and what a planner makes of it."""

    mean: Array  # [H, A]
    std: Array  # [H, A]
    actions: Array  # [H, A] the sequence to execute
    elites: Array  # [K, H, A] sequences kept for the next search; K is 0 for most


class Simulation(NamedTuple):
    """A deterministic future, step by step, for the planners that look into it.

    Called with an action sequence [H, A] it is its return []: an `Objective`.
    """

    start: PyTree  # the state now
    step: Callable[[PyTree, Array], tuple[PyTree, Array]]
    # (state, action [A]) -> (next state, reward []); no reward after an end

    def __call__(self, actions: Array, /) -> Array:
        _, rewards = jax.lax.scan(self.step, self.start, actions)
        return rewards.sum()


class Objective(Protocol):
    """What planners maximise: an action sequence [H, A] -> its worth []."""

    def __call__(self, actions: Array, /) -> Array: ...


Planner = Callable[[Key, Objective, Plan], tuple[Plan, Metrics]]  # maximises


class Policy(NamedTuple):
    """Anything that acts.  `memory`: a plan, a recurrent state, a time index, or ()."""

    init: Callable[[], PyTree]
    act: Callable[[Key, Array, PyTree], tuple[Array, PyTree]]  # (key, obs, memory)
    values: Callable[[Array], Array] | None = None
    # obs -> what it ranks discrete actions by, values or logits [K]; None: unknown
    features: Callable[[Array], Array] | None = None
    # obs -> what these are a linear function of [F]


Act = Callable[[Key, Array], tuple[Array, Array]]
# (key, obs) -> action, and the bonus [] of acting so, such as SAC's entropy


class Learner(NamedTuple):
    """A model-free optimiser of a policy, used inside algorithms."""

    init: Callable[[Key], PyTree]
    update: Callable[[Key, PyTree, PyTree], tuple[PyTree, Metrics]]
    # (key, state, experience: windows on policy, transitions off policy)
    explore: Callable[[PyTree], Policy]  # what gathers experience
    policy: Callable[[PyTree], Policy]  # what has been learned


class Algorithm(NamedTuple):
    """A method.  `step` is one iteration of its outer loop, environment included.

    `step` can be jitted, vmapped and scanned as a whole.  Its metrics have the same
    keys every time; `env_steps` is one: real transitions since `init`.
    """

    init: Callable[[Key], PyTree]
    step: Callable[[Key, PyTree], tuple[PyTree, Metrics]]
    policy: Callable[[PyTree], Policy]  # what is evaluated and rendered
    predict: Callable[[PyTree, Array, Array], Gaussian] | None = None
    # the learned model where there is one: (state, obs, action) -> [M, D], O of D first
    foresee: Callable[[PyTree, Key, Array, Array], dict[str, Array]] | None = None
    # of a model of pictures: (state, key, obs [T + 1, ...] and actions [T, ...] of an
    # episode) -> by name, as "predicted" from the first of them on, or "reconstructed",
    # pictures [T + 1, height, width, 1 or 3] in [0, 1]
