"""Both kinds of run from a configuration to a run folder: the loop, launch and resume, optimisers, monitors, logs.
`pretrain.py` and `finetune.py` put a run together.
May import report and everything below it.
"""
