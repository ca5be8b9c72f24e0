"""Both kinds of run, from a configuration to a run folder: `run` (launch, folder, resume), `trainer` (the loop),
`derived` (derived numbers), `optimizers` (with schedules), `task_with_ema`, monitors, logs.
May import report, evaluation, inference, tasks, pretrained, methods, models, metrics, config, views, data and core.
"""
