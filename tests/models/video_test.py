"""Video prediction: flows that are chosen, sequences, and what can be learned."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbrl_jax.models import video
from mbrl_jax.models.video import Flow, Scene
from mbrl_jax.ops import flow
from mbrl_jax.types import Array

SHAPE = (6, 8, 2)
KINDS = [(kernels, skip) for kernels in video.KERNELS for skip in (False, True)]


def config(kernels: str = "dna", skip: bool = True) -> video.Config:
    return video.Config(kernels, skip, num_kernels=3, num_channels=4, num_layers=2)


def pictures(number: int, shape: tuple[int, ...] = SHAPE) -> Array:
    return jax.random.uniform(jax.random.key(7), (number, *shape))


def made(kernels: str, skip: bool) -> tuple[video.Video, Any, Flow, Scene]:
    """A model, and its flow of random pictures, by weights that are not small."""
    model = video.make(SHAPE, 2, config(kernels, skip))
    params = jax.tree.map(lambda x: 3 * x, model.init(jax.random.key(0)))
    scene = Scene(*pictures(2))
    by = jax.jit(model.flow)(params, scene, jnp.array([0.3, -0.9]))
    return model, params, by, scene


@pytest.mark.parametrize(("kernels", "skip"), KINDS)
def test_weights_of_kernels_and_masks_add_up_to_one(kernels: str, skip: bool):
    _, _, by, _ = made(kernels, skip)
    num_images = 1 if kernels == "dna" else 3
    assert by.kernels.shape == ((6, 8, 25) if kernels == "dna" else (3, 25))
    assert by.masks.shape == (6, 8, num_images + 1 + skip)
    for weights in by:
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
        assert float(weights.min()) >= 0
        assert float(weights.std()) > 1e-3


@pytest.mark.parametrize(("kernels", "skip"), KINDS)
def test_actions_and_pictures_decide_the_flow(kernels: str, skip: bool):
    """The first picture where there is a skip, only."""
    model, params, by, scene = made(kernels, skip)
    same = lambda other: all(
        bool((x == y).all()) for x, y in zip(by, other, strict=True)
    )
    action = jnp.array([0.3, -0.9])
    assert not same(model.flow(params, scene, -action))
    assert not same(model.flow(params, scene._replace(now=scene.first), action))
    other = model.flow(params, scene._replace(first=scene.now), action)
    assert same(other) == (not skip)


def chosen(which: int, num_images: int, by: Flow) -> Flow:
    """All of one part: what is moved, what stays, or the first picture."""
    mask = jax.nn.one_hot(which, num_images + 2)
    return by._replace(masks=jnp.broadcast_to(mask, (*by.masks.shape[:2], len(mask))))


def test_a_mask_chooses_what_is_shown():
    _, _, by, scene = made("dna", True)
    after = video.moved(chosen(2, 1, by), scene)
    np.testing.assert_array_equal(after.now, scene.first)
    np.testing.assert_array_equal(after.first, scene.first)
    after = video.moved(chosen(1, 1, by), scene)
    np.testing.assert_array_equal(after.now, scene.now)
    _, _, by, scene = made("cdna", True)
    parts = flow.around(scene.now, 5, repeat_edges=True)
    each = flow.of_all_pixels(parts, by.kernels)
    for i in range(3):
        after = video.moved(chosen(i, 3, by), scene)
        np.testing.assert_allclose(after.now, each[i], rtol=1e-6)


def test_a_distribution_goes_where_the_picture_goes():
    _, _, by, _ = made("dna", True)
    inside = jnp.zeros((6, 8, 1)).at[3, 4].set(1)
    first = jnp.zeros((6, 8, 1)).at[2, 3].set(1)
    scene = Scene(inside, first)
    spread, whole = video.moved(by, scene), video.track(by, scene)
    total = float(spread.now.sum())
    expected = np.asarray(spread.now) / max(total, 1)
    np.testing.assert_allclose(whole.now, expected, rtol=1e-5)
    corner = Scene(jnp.zeros((6, 8, 1)).at[0, 0].set(1), first)
    uniform = by._replace(kernels=jnp.full_like(by.kernels, 1 / 25))
    moves = chosen(0, 1, uniform)
    left = float(video.track(moves, corner).now.sum())
    assert left == pytest.approx(9 / 25, abs=1e-5)  # the rest left the picture
    there = flow.normalised(video.track(moves, corner).now[..., 0])
    assert float(there.sum()) == pytest.approx(1, abs=1e-6)


def test_what_was_hidden_comes_back_by_the_skip():
    """Something else is drawn over the designated pixel, and gone again a step later:
    all of it is back with a skip, and nothing without."""
    _, _, by, _ = made("dna", True)
    here = jnp.zeros((6, 8, 1)).at[3, 4].set(1)
    from_the_right = jnp.zeros((6, 8, 25)).at[..., 12].set(1).at[3, 4].set(0)
    covers = by._replace(kernels=from_the_right.at[3, 4, 13].set(1))
    hidden = video.track(chosen(0, 1, covers), Scene(here, here))
    assert float(hidden.now.sum()) == 0
    for which, expected in ((2, 1.0), (1, 0.0)):
        back = video.track(chosen(which, 1, by), hidden)
        assert float(back.now[3, 4, 0]) == expected


@pytest.mark.parametrize(("kernels", "skip"), KINDS)
def test_the_loss_is_that_of_futures_made_of_predictions(kernels: str, skip: bool):
    model, params, _, _ = made(kernels, skip)
    seen, actions = pictures(4), jnp.array([[0.1, 0.2], [-0.5, 1.0], [0.7, 0.0]])
    scene, errors = Scene(seen[0], seen[0]), []
    for action, after in zip(actions, seen[1:], strict=True):
        scene = video.moved(model.flow(params, scene, action), scene)
        errors.append(float(((scene.now - after) ** 2).mean()))
    loss = jax.jit(jax.value_and_grad(model.loss))
    value, gradient = loss(params, seen, actions, jnp.ones(3, bool))
    assert float(value) == pytest.approx(np.mean(errors), rel=1e-4)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert all((x != 0).any() for x in jax.tree.leaves(gradient))
    short = jnp.array([True, True, False])
    value, _ = loss(params, seen.at[3].set(9.0), actions, short)
    assert float(value) == pytest.approx(np.mean(errors[:2]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kernels", video.KERNELS)
def test_a_dot_that_an_action_moves_is_learned(kernels: str):
    """Of errors by staying where it was, a tenth is left; it goes the right way."""
    shape = (8, 8, 1)
    model = video.make(shape, 1, video.Config(kernels, True, 3, 3, 16, 2))

    def sequence(key: Array) -> tuple[Array, Array]:
        place_key, key = jax.random.split(key)
        actions = jax.random.randint(key, (2, 1), -1, 2)
        row, column = jax.random.randint(place_key, (2,), 2, 6)
        columns = column + jnp.pad(actions[:, 0].cumsum(), (1, 0))
        show = lambda column: jnp.zeros(shape).at[row, column].set(1)
        return jax.vmap(show)(columns), actions.astype(float)

    def loss(params: Any, key: Array) -> Array:
        seen, actions = jax.vmap(sequence)(jax.random.split(key, 16))
        valid = jnp.ones(2, bool)
        each = jax.vmap(lambda x, u: model.loss(params, x, u, valid))
        return each(seen, actions).mean()

    optimizer = optax.adam(1e-2)

    def update(carry: Any, key: Array) -> tuple[Any, Array]:
        value, gradient = jax.value_and_grad(loss)(carry[0], key)
        updates, opt_state = optimizer.update(gradient, carry[1])
        return (optax.apply_updates(carry[0], updates), opt_state), value

    @jax.jit
    def learn(key: Array) -> tuple[Any, Array]:
        params = model.init(key)
        keys = jax.random.split(key, 150)
        carry = (params, optimizer.init(params))
        (params, _), losses = jax.lax.scan(update, carry, keys)
        return params, losses

    params, losses = learn(jax.random.key(0))
    assert float(losses[-10:].mean()) < 0.1 * float(losses[:3].mean())
    dot = jnp.zeros(shape).at[4, 3].set(1)
    by = model.flow(params, Scene(dot, dot), jnp.ones(1))
    place = flow.centre(flow.normalised(video.track(by, Scene(dot, dot)).now[..., 0]))
    np.testing.assert_allclose(place, [4, 4], atol=0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernels": "sna"}, "kernels is 'sna', must be one of: dna, cdna"),
        ({"kernel_size": 4}, "kernel_size is 4, must be odd and at least 3"),
        ({"kernel_size": 1}, "kernel_size is 1, must be odd and at least 3"),
        ({"num_layers": 0}, "num_layers is 0, must be at least 1"),
        ({"num_kernels": 0}, "num_kernels is 0, must be at least 1"),
    ],
)
def test_what_cannot_be_is_an_early_error(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        video.make(SHAPE, 2, dataclasses.replace(config(), **change))


def test_pictures_of_odd_sides_are_an_early_error():
    with pytest.raises(ValueError, match="pictures are 7 by 8, must have even sides"):
        video.make((7, 8, 1), 2, config())
