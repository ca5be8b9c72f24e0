"""The queue holds the newest rows, whatever the batch sizes, and nothing else."""

import torch

from facessl.methods.swav import Queue


def test_queue_holds_the_newest_rows():
    """Against a list: steps of one or more micro-batches, fewer rows than it holds and more."""
    queue, newest, count = Queue(2, 5, 1).double(), [], 0
    for sizes in ((2,), (2,), (3, 3, 3), (1,), (7,), (), (2,)):
        before = queue.rows.clone()
        for size in sizes:
            numbers = torch.arange(count + 1, count + size + 1, dtype=torch.float64, requires_grad=True)
            queue.add(torch.stack([numbers, -numbers])[..., None])
            newest = [*newest, *numbers.tolist()][-5:]
            count += size
        assert torch.equal(queue.rows, before), "a note changes nothing yet"
        queue.update()
        assert sorted(queue.rows[0, :, 0].tolist()) == sorted([0.0] * (5 - len(newest)) + newest)
        assert torch.equal(queue.rows[0], -queue.rows[1])
        assert queue.is_full().item() == (count >= 5)
        assert queue.rows.dtype == torch.float64
        assert not queue.rows.requires_grad
