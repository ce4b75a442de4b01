"""System identification: physical parameters of a simulator, from recordings of it.

Given are obs [E, T + 1, O] and action [E, T, A] of E episodes, the equations of motion,
and a first guess of some of their constants, all of them positive:

    system = systems.own("pendulum")
    data = windows(obs, action, horizon=20)
    found = fit(system, {"mass": 0.7, "length": 1.2}, data, scale)

minimises the squares of (recorded - simulated obs) / `scale` [O], the std of the noise
in each dimension as far as it is known, over windows of `horizon` steps: one step for
the one-step loss.  The variables are the logarithms of the parameters, so that steps
are relative, and the method is Levenberg's and Marquardt's, see `ops.least_squares`: a
pure function, to be vmapped over data sets.  It needs float64 for sharp answers.

Noise in the observations: a simulation that starts at a noisy observation is off by
more than the noise, and least squares are then biased, most of all over one step.  By
default the state that each window starts in is therefore fitted too, to all of the
window's observations (errors in variables), and no observation is in two windows: the
residuals are independent, the estimate has no bias to first order in the noise, and the
intervals hold.  With `fit_starts=False` the recorded starts are taken for the truth,
which is right where noise drives the motion and not the sensors; there
`windows(..., shared=True)` uses every transition.

What the data cannot tell is said in two ways: `identifiable` of a parameter is false if
its 95 % interval reaches down to 0 (infinite intervals do), and `direction` is the
combination of parameters that is known worst: multiplying each by exp(c * its entry)
changes least of what is seen.  Both only hold for a model that explains the data, which
`misfit` of the residuals tells.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mbrl_jax import optimizers
from mbrl_jax.envs import systems
from mbrl_jax.envs.systems import ParametricSystem, Values
from mbrl_jax.ops import least_squares
from mbrl_jax.ops.floats import floats
from mbrl_jax.types import Array, PyTree

Z = 1.959964  # of the normal distribution, 95 % lie within


class Windows(NamedTuple):
    obs: Array  # [W, H + 1, O]
    action: Array  # [W, H, A]


class Fit(NamedTuple):
    """An estimate is nothing without its interval; all in the parameters' units."""

    estimate: dict[str, Array]
    low: dict[str, Array]  # the 95 % interval, at least 0
    high: dict[str, Array]  # may be infinite
    identifiable: dict[str, Array]  # [] bool
    direction: dict[str, Array]  # the worst known combination, of logarithms, norm 1
    direction_std: Array  # [] its logarithm's std; may be infinite
    covariance: Array  # [P, P] of the logarithms, in alphabetical order
    noise: Array  # [] std of the noise, in units of `scale`
    offsets: Array  # [W, D] of the starts from the states first observed
    residuals: Array  # [W, H + 1, O] (recorded - simulated) / scale; see `residuals`
    losses: Array  # [I + 1] sums of squared residuals
    converged: Array  # [] bool, the last steps changed nothing of note


def windows(
    obs: Array, action: Array, horizon: int, *, shared: bool = False
) -> Windows:
    """Cuts [E, T + 1, O] and [E, T, A] into windows of H steps, H = `horizon`.

    They have no observation in common or, if `shared`, each starts with the last one of
    the window before.  What does not fill a window at the end is dropped.
    """
    obs, action = floats("identification.windows", (obs, action))
    num_steps = action.shape[1]
    if obs.shape[:2] != (action.shape[0], num_steps + 1):
        raise ValueError(
            "obs must be [E, T + 1, O] and action [E, T, A], not "
            f"{obs.shape} and {action.shape}"
        )
    if not 1 <= horizon <= num_steps:
        raise ValueError(f"horizon is {horizon}, must be in 1 to {num_steps}")
    stride = horizon if shared else horizon + 1
    starts = range(0, num_steps - horizon + 1, stride)
    cut = lambda x, n: jnp.concatenate([x[:, t : t + n] for t in starts])
    return Windows(cut(obs, horizon + 1), cut(action, horizon))


def simulate(
    system: ParametricSystem, values: Values, start: Array, action: Array
) -> Array:
    """The observations [H + 1, O] from the state `start` [D] under `action` [H, A]."""
    parameters = systems.replace(system.parameters, values)

    def step(state: Array, action: Array) -> tuple[Array, Array]:
        state = system.dynamics(parameters, state, action)
        return state, system.observe(state)

    obs = jax.lax.scan(step, start, action)[1]
    return jnp.concatenate([system.observe(start)[None], obs])


def residuals(
    system: ParametricSystem,
    values: Values,
    data: Windows,
    scale: Array,
    offsets: Array | None,
) -> Array:
    """(recorded - simulated) / `scale` [O]; [W, H + 1, O].

    Windows start `offsets` [W, D] from the states that their first observations show.
    Without offsets, in those: the first observations say nothing then, [W, H, O].
    """

    def residual(obs: Array, action: Array, offset: Array) -> Array:
        start = system.place(obs[0]) + offset
        return (obs - simulate(system, values, start, action)) / scale[None]

    if offsets is None:
        every = jax.vmap(residual)(data.obs, data.action, _no_offsets(system, data))
        return every[:, 1:]
    return jax.vmap(residual)(data.obs, data.action, offsets)


def loss(
    system: ParametricSystem,
    values: Values,
    data: Windows,
    scale: Array,
    offsets: Array | None = None,
) -> Array:
    """The mean square of `residuals`, []: about 1 at the truth, with known noise."""
    return (residuals(system, values, data, scale, offsets) ** 2).mean()


def misfit(errors: Array, num_own: int) -> Array:
    """How unlike independent normal numbers [W, H + 1, O] are, in stds, [].

    The largest of two: the correlation of successive ones in a dimension, and the sum
    of squares of a window in which `num_own` unknowns were fitted, a chi-square made
    normal by its cube root (Wilson and Hilferty, 1931).  Beyond 5 or so, the model
    does not explain the recording, and no interval that rests on it holds.
    """
    num_windows, length, num_dims = errors.shape
    products = (errors[:, 1:] * errors[:, :-1]).mean(axis=(0, 1))
    serial = products.max() * jnp.sqrt(num_windows * (length - 1))
    freedom = length * num_dims - num_own
    variance = 2 / (9 * freedom)
    share = (errors**2).sum(axis=(1, 2)) / freedom
    sums = (jnp.cbrt(share) - (1 - variance)) / jnp.sqrt(variance)
    return jnp.maximum(serial, sums.max())


def descend(
    system: ParametricSystem,
    initial: Values,
    data: Windows,
    scale: Array,
    optimizer: optax.GradientTransformation,
    num_steps: int,
) -> tuple[dict[str, Array], Array]:
    """Plain gradient steps on logarithms and offsets; the values, losses [num_steps].

    For more windows than a Jacobian has room for; gives no intervals.
    """

    def objective(variables: tuple[dict[str, Array], Array]) -> Array:
        logs, offsets = variables
        return loss(system, jax.tree.map(jnp.exp, logs), data, scale, offsets)

    def step(carry: PyTree, _: None) -> tuple[PyTree, Array]:
        variables, state = carry
        value, gradient = jax.value_and_grad(objective)(variables)
        return optimizers.descend(optimizer, gradient, state, variables), value

    logs = {
        name: jnp.log(jnp.asarray(x, data.obs.dtype)) for name, x in initial.items()
    }
    variables = (logs, _no_offsets(system, data))
    carry = (variables, optimizer.init(variables))
    ((logs, _), _), losses = jax.lax.scan(step, carry, None, length=num_steps)
    return jax.tree.map(jnp.exp, logs), losses


def fit(
    system: ParametricSystem,
    initial: Values,
    data: Windows,
    scale: Array,
    *,
    fit_starts: bool = True,
    num_iterations: int = 40,
) -> Fit:
    """Levenberg-Marquardt from `initial`, and intervals by the Gauss-Newton Hessian.

    The noise may differ from `scale` [O] by a factor, which is estimated.  Raises
    ValueError for unknown parameters and for data that are fewer than what is fitted.
    """
    names = sorted(initial)
    offsets = _no_offsets(system, data)
    num_free = len(names) + fit_starts * offsets.size
    num_data = data.obs[:, 0 if fit_starts else 1 :].size
    if num_data <= num_free:
        raise ValueError(f"{num_data} observations cannot tell {num_free} unknowns")
    named = lambda x: dict(zip(names, x, strict=True))

    def residual(logs: Array, offset: Array, window: Windows) -> Array:
        one, values = jax.tree.map(lambda x: x[None], window), named(jnp.exp(logs))
        used = offset[None] if fit_starts else None
        return residuals(system, values, one, scale, used)[0]

    logs = jnp.log(
        jnp.stack([jnp.asarray(x, offsets.dtype) for x in map(initial.get, names)])
    )
    found = least_squares.minimise(residual, logs, offsets, data, num_iterations)
    variance = found.losses[-1] / (num_data - num_free)
    covariance = variance * found.inverse
    std = jnp.where(found.lost, jnp.inf, jnp.sqrt(jnp.diag(covariance)))
    spread, directions = jnp.linalg.eigh(covariance)
    estimate = jnp.exp(found.shared)
    return Fit(
        estimate=named(estimate),
        low=named(jnp.maximum(estimate * (1 - Z * std), 0.0)),
        high=named(estimate * (1 + Z * std)),
        identifiable=named(Z * std < 1),
        direction=named(directions[:, -1]),
        direction_std=jnp.where(found.lost.any(), jnp.inf, jnp.sqrt(spread[-1])),
        covariance=covariance,
        noise=jnp.sqrt(variance),
        offsets=found.own,
        residuals=found.residuals,
        losses=found.losses,
        # A thousandth of `scale` is no noise but rounding.
        converged=found.losses[-6:][0] - found.losses[-1]
        < 0.01 * jnp.maximum(variance, 1e-6),
    )


def _no_offsets(system: ParametricSystem, data: Windows) -> Array:
    return jnp.zeros_like(jax.vmap(system.place)(data.obs[:, 0]))
