import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import minimax
from mbrl_jax.envs import tic_tac_toe


def reachable() -> list[minimax.Board]:
    """Every board of every game, seen by the player to move."""
    found, new = {minimax.EMPTY}, {minimax.EMPTY}
    while new:
        new = {minimax.after(b, m) for b in new for m in minimax.moves(b)} - found
        found |= new
    return sorted(found)


def test_every_board_is_as_in_plain_python():
    """Counted by others too: 5478 boards, 958 of them over."""
    boards = reachable()
    array = jnp.array(boards, jnp.int32)
    legal = np.asarray(jax.vmap(tic_tac_toe.legal)(array))
    assert len(boards) == 5478
    assert (~legal.any(axis=1)).sum() == 958
    rows = [np.isin(np.arange(9), minimax.moves(board)) for board in boards]
    np.testing.assert_array_equal(legal, rows)
    lost = jax.vmap(tic_tac_toe.lost)(array)
    np.testing.assert_array_equal(lost, [minimax.lost(board) for board in boards])
    play = jax.jit(jax.vmap(tic_tac_toe.play))
    for move in range(9):
        here = [board for board in boards if move in minimax.moves(board)]
        moved = play(jnp.array(here, jnp.int32), jnp.full(len(here), move))
        np.testing.assert_array_equal(moved, [minimax.after(b, move) for b in here])


def test_a_game():
    """The first player has the left column: three moves to two."""
    board = tic_tac_toe.start()
    assert tic_tac_toe.legal(board).all()
    for move in (0, 1, 3, 2):
        board = tic_tac_toe.play(board, jnp.array(move))
    np.testing.assert_array_equal(board, [1, -1, -1, 1, 0, 0, 0, 0, 0])
    assert not tic_tac_toe.lost(board)
    board = tic_tac_toe.play(board, jnp.array(6))
    assert tic_tac_toe.lost(board)
    assert not tic_tac_toe.legal(board).any()


def test_minimax_knows_what_everybody_knows():
    """A draw; a corner opening is answered in the centre only, an edge is not lost."""
    assert minimax.value(minimax.EMPTY) == 0
    assert minimax.best(minimax.EMPTY) == list(range(9))
    assert minimax.best(minimax.after(minimax.EMPTY, 0)) == [4]
    assert minimax.best(minimax.after(minimax.EMPTY, 4)) == [0, 2, 6, 8]
    fork = (1, -1, 0, 0, 0, 0, 0, 0, 0)
    assert minimax.value(fork) == 1
