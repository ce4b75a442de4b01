import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.ops.returns import td_lambda

RNG = np.random.default_rng(0)
REWARDS, NEXT_VALUES = RNG.normal(size=(2, 6)).astype(np.float32)
NOWHERE = np.zeros(6, bool)


def by_sums(terminal: np.ndarray, cut: np.ndarray, discount: float, decay: float):
    """The weighted sum of n-step returns (Sutton and Barto, 2018, Eq. 12.3)."""
    found = []
    for start in range(6):
        ends = [t for t in range(start, 6) if terminal[t] or cut[t]]
        last = min([*ends, 5])

        def n_step(n: int, start: int = start) -> float:
            end = start + n - 1
            rewards = sum(discount**k * REWARDS[start + k] for k in range(n))
            follows = 0 if terminal[end] else discount**n * NEXT_VALUES[end]
            return rewards + follows

        longest = last - start + 1
        total = sum(
            (1 - decay) * decay ** (n - 1) * n_step(n) for n in range(1, longest)
        )
        found.append(total + decay ** (longest - 1) * n_step(longest))
    return np.array(found)


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("end", [None, 2, 5])
@pytest.mark.parametrize("kind", ["terminal", "cut"])
def test_lambda_returns_are_weighted_sums_of_n_step_returns(decay, end, kind):
    terminal, cut = NOWHERE.copy(), NOWHERE.copy()
    if end is not None:
        (terminal if kind == "terminal" else cut)[end] = True
    found = td_lambda(
        *map(jnp.asarray, (REWARDS, NEXT_VALUES, terminal, cut)), 0.9, decay
    )
    expected = by_sums(terminal, cut, 0.9, decay)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
