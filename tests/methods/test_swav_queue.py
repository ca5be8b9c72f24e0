"""The queue holds the newest rows, whatever the batch sizes, and nothing else."""

import torch

from facessl.methods.swav import Queue


def rows(first, count):
    """(2, count, 1): first, first + 1, ... in set 0 and their negatives in set 1."""
    numbers = torch.arange(first, first + count, dtype=torch.float32)
    return torch.stack([numbers, -numbers])[..., None]


def held(queue):
    assert torch.equal(queue.rows[0], -queue.rows[1])
    return sorted(queue.rows[0, :, 0].tolist())


def test_oldest_rows_leave_and_full_is_said_when_it_is():
    queue, first, full = Queue(2, 5, 1), 1, []
    for count in (2, 2, 2, 3):
        queue.note(rows(first, count))
        queue.move()
        first += count
        full.append(queue.is_full().item())
    assert held(queue) == [5, 6, 7, 8, 9]
    assert full == [0, 0, 1, 1]
    assert torch.equal(queue.local_rows(), queue.rows)


def test_notes_gather_over_micro_batches_and_never_grow_beyond_the_queue():
    queue = Queue(2, 5, 1)
    for first in (1, 4, 7):
        queue.note(rows(first, 3))
    assert queue._pending is not None
    assert queue._pending.shape == (2, 5, 1)
    assert held(queue) == [0] * 5, "a note changes nothing yet"
    queue.move()
    assert held(queue) == [5, 6, 7, 8, 9]
    queue.move()
    assert held(queue) == [5, 6, 7, 8, 9], "nothing is put in twice"


def test_a_batch_larger_than_the_queue_leaves_its_last_rows():
    queue = Queue(2, 3, 1)
    queue.note(rows(1, 7))
    queue.move()
    assert held(queue) == [5, 6, 7]


def test_state_goes_on_where_it_was():
    queue, twin = Queue(2, 5, 1), Queue(2, 5, 1)
    queue.note(rows(1, 3))
    queue.move()
    twin.load_state_dict(queue.state_dict())
    for each in (queue, twin):
        each.note(rows(4, 4))
        each.move()
    assert torch.equal(queue.rows, twin.rows)
    assert twin.is_full() == 1


def test_gradients_stop_and_types_are_kept():
    queue = Queue(2, 4, 1).double()
    queue.note(rows(1, 4).double().requires_grad_())
    queue.move()
    assert queue.rows.dtype == torch.float64
    assert not queue.rows.requires_grad
