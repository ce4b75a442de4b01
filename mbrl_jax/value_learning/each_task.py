"""Acting in every task of an environment, with a replay buffer for each.

Tasks are those of `envs.multi_task`; any other environment is its own only task.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax import gathering, policies, replay
from mbrl_jax.envs import multi_task
from mbrl_jax.replay import Replay
from mbrl_jax.types import Array, Env, Key, Policy


class Experience(NamedTuple):
    replay: Replay  # of each task [N, ...]
    parallel: gathering.ParallelEnvs  # of each task [N, ...]
    counters: gathering.Counters  # of all tasks


class Gatherer(NamedTuple):
    init: Callable[[Key], Experience]
    gather: Callable[
        [Key, Callable[[Array], Policy], Experience], tuple[Experience, Array]
    ]
    # (key, task [] -> who acts there, experience) -> with it, the return [] so far of
    # the episodes that run


def make(env: Env, capacity: int, num_steps: int) -> Gatherer:
    """Of `num_steps` in each task at a time, and `capacity` kept of each."""
    num_tasks = len(env.tasks) or 1
    tasks = jnp.arange(num_tasks)

    def gatherer(task: Array) -> gathering.Gatherer:
        return gathering.window_gatherer(multi_task.at(env, task), 1, num_steps)

    def init(key: Key) -> Experience:
        kept = lambda _: replay.of(env, capacity)
        start = lambda task, key: gatherer(task).init(key, policies.uniform(env))
        return Experience(
            jax.vmap(kept)(tasks),
            jax.vmap(start)(tasks, jax.random.split(key, num_tasks)),
            gathering.zero_counters(),
        )

    def gather(
        key: Key, acting: Callable[[Array], Policy], experience: Experience
    ) -> tuple[Experience, Array]:
        def one(
            task: Array, key: Key, parallel: gathering.ParallelEnvs
        ) -> gathering.Gathered:
            return gatherer(task).gather(key, acting(task), parallel)

        keys = jax.random.split(key, num_tasks)
        gathered = jax.vmap(one)(tasks, keys, experience.parallel)
        steps = jax.tree.map(lambda x: x[:, 0], gathered.windows.transitions)
        data = jax.vmap(replay.insert)(
            experience.replay, steps, jnp.ones((num_tasks, num_steps), bool)
        )
        counted = jax.tree.map(  # tasks as environments side by side
            lambda x: x[:, 0], gathered._replace(parallel=())
        )
        counters = gathering.count(experience.counters, counted)
        so_far = gathered.returns[..., -1].mean()
        return Experience(data, gathered.parallel, counters), so_far

    return Gatherer(init, gather)
