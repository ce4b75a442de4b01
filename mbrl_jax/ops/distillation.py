"""What a student is fitted to when it learns from a teacher, for one example.

The teacher is never changed: no gradient goes into what it said.
"""

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array


def soft_cross_entropy(
    logits: Array, teacher: Array, temperature: float | Array
) -> Array:
    """Towards the teacher's probabilities at a temperature T; logits [K] -> [].

    T^2 times the cross-entropy of softmax(teacher / T) and softmax(logits / T), so that
    its gradient has about the same size whatever T (Hinton et al., 2015, "Distilling
    the knowledge in a neural network", Sec. 2); for a high T this is to match the
    logits, but for a constant (Eq. (4)).
    """
    target = jax.nn.softmax(jax.lax.stop_gradient(teacher) / temperature)
    return -(temperature**2) * target @ jax.nn.log_softmax(logits / temperature)


def soft_and_hard(
    logits: Array,
    teacher: Array,
    label: Array,
    temperature: float | Array,
    hard_weight: float | Array,
) -> Array:
    """The above, and a share `hard_weight` of the cross-entropy of the label [] itself,
    which is at the temperature 1 (Hinton et al., 2015, Sec. 2)."""
    hard = -jax.nn.log_softmax(logits)[label]
    soft = soft_cross_entropy(logits, teacher, temperature)
    return (1 - hard_weight) * soft + hard_weight * hard


def most_likely(logits: Array, teacher: Array) -> Array:
    """Negative log-likelihood of the teacher's best action; [K] -> [].

    (Rusu et al., 2016, "Policy distillation", Eq. (1).)
    """
    return -jax.nn.log_softmax(logits)[teacher.argmax()]


def squared_error(values: Array, teacher: Array) -> Array:
    """Of all values of the teacher, summed (Rusu et al., 2016, Eq. (2)); [K] -> [].

    Or of its features, where the student's are mapped to them by a learned function
    (Parisotto et al., 2016, "Actor-mimic", Sec. 3).
    """
    return jnp.square(values - jax.lax.stop_gradient(teacher)).sum()


def sharpened_divergence(
    logits: Array, teacher: Array, temperature: float | Array
) -> Array:
    """KL(softmax(teacher / T) || softmax(logits)); [K] -> [].

    (Rusu et al., 2016, Eq. (3).)  The teacher's are values, which differ by little from
    action to action: a T below 1 makes a policy of them.  The student is at 1.
    """
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature)
    return jnp.exp(log_p) @ (log_p - jax.nn.log_softmax(logits))
