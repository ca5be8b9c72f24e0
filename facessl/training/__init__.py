"""Both kinds of run, from a configuration to a run folder: `run` (launch, folder, resume), `trainer` (the loop), `plan`
(derived numbers, the warm-up's length), optimisers and schedules (`optim`), monitors, logs.
May import every package but cli and tools.
"""
