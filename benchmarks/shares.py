"""Where the time of a training step goes: self time of every operation, given to the part that caused it.

Parts are named ranges around the library's own functions. An operation of the forward pass belongs to the innermost
range it runs in, one of the backward pass to the range of the forward operation with the same sequence number. What no
range claims is "rest" (losses, sums, Python). With a GPU, kernels' times are added up, else wall time on the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from facessl.methods import fra, mcf

PREFIX = "part: "
BACKWARD = "autograd::engine::evaluate_function"

#: Attribute of a method (dotted) -> part. An attribute that a method lacks is passed over.
ATTRIBUTES = {
    "backbone.forward": "backbone",
    "backbone.forward_both": "backbone",
    "target_backbone.forward": "target backbone",
    "target_backbone.forward_both": "target backbone",
    "heads.forward": "heads",
    "target_heads.forward": "heads",
    "heads.decoder.forward": "decoder",
    "target_heads.decoder.forward": "decoder",
    "projector.forward": "heads",
    "predictor.forward": "heads",
    "local_predictor.forward": "heads",
    "target_projector.forward": "heads",
    "decoder.forward": "decoder",
    "teacher": "teacher",
}


def part(name: str) -> Any:
    """A named range."""
    return record_function(PREFIX + name)


@contextlib.contextmanager
def ranges(method: Any) -> Iterator[None]:
    """Puts ranges around the functions of `method` while it lasts."""
    undo: list[Callable[[], None]] = []

    def put(owner: Any, name: str, label: Callable[[], str]) -> None:
        original = getattr(owner, name)
        own = name in vars(owner)

        def ranged(*args: Any, **kwargs: Any) -> Any:
            with part(label()):
                return original(*args, **kwargs)

        object.__setattr__(owner, name, ranged) if isinstance(owner, torch.nn.Module) else setattr(owner, name, ranged)
        undo.append((lambda: setattr(owner, name, original)) if own else (lambda: delattr(owner, name)))

    for path, label in ATTRIBUTES.items():
        owner: Any = method
        *way, last = path.split(".")
        for step in way:
            owner = getattr(owner, step, None)
        if owner is not None and hasattr(owner, last):
            put(owner, last, lambda label=label: label)  # type: ignore[misc]
    put(fra, "sinkhorn", lambda: "Sinkhorn")
    put(mcf, "encode_visible", lambda: "backbone" if torch.is_grad_enabled() else "target backbone")
    try:
        yield
    finally:
        for back in reversed(undo):
            back()


def measure(method: Any, work: Callable[[], None], steps: int, device: torch.device) -> dict[str, float]:
    """Share of the time of every part in `work`, which runs `method` once, over `steps` calls, the largest first."""
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with ranges(method), profile(activities=kinds, acc_events=True) as run:
        for _ in range(steps):
            work()
    seconds = _by_part(list(run.events() or []), device)
    total = sum(seconds.values()) or 1.0
    return {name: round(value / total, 4) for name, value in sorted(seconds.items(), key=lambda item: -item[1])}


def _by_part(events: list[Any], device: torch.device) -> dict[str, float]:
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = [e for e in events if e.device_type == torch.autograd.DeviceType.CPU]
    events.sort(key=lambda e: (e.time_range.start, -e.time_range.end))
    owner: dict[int, str] = {}  # sequence number -> part of the forward operation; the last one makes the node
    seconds: dict[str, float] = {}
    known: dict[int, str | None] = {}

    def label(event: Any) -> str | None:
        """Part of an event by its ancestors; asked from the top down, so that parents are known."""
        if event.id in known:
            return known[event.id]
        found: str | None = None
        if event.name.startswith(PREFIX):
            found = event.name.removeprefix(PREFIX)
        elif event.name.startswith(BACKWARD):
            found = owner.get(event.sequence_nr)
        elif event.cpu_parent is not None:
            found = label(event.cpu_parent)
        known[event.id] = found
        return found

    for event in events:
        name = label(event)
        inside = event
        while inside is not None and not inside.name.startswith(BACKWARD):
            inside = inside.cpu_parent
        if inside is None and event.sequence_nr >= 0 and not event.name.startswith(PREFIX):
            if name is None:
                owner.pop(event.sequence_nr, None)
            else:
                owner[event.sequence_nr] = name
        seconds[name or "rest"] = seconds.get(name or "rest", 0.0) + float(getattr(event, key))
    return seconds
