"""The commands that train: `pretrain`, `finetune`, and `plan`, which says what a run costs."""

from __future__ import annotations

import json
import os
import sys

from facessl.cli.commandline import parsed_words, summary
from facessl.config.parser import Parser
from facessl.core.schema import to_json


def cmd_pretrain(argv: list[str]) -> int:
    """Learn a face backbone from unlabelled images."""
    from facessl.config import parse

    asked = parse.read(argv)
    if shown := parse.shown(asked):
        print(shown, end="")
        return 0
    config = parse.configuration(asked)
    note = parse.rate_note(asked, config)
    if note and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        print(note, file=sys.stderr)
    from facessl.training.pretrain import Pretraining  # only here, as torch takes seconds
    from facessl.training.run import run_job

    result = run_job(Pretraining(config))
    if result.headline:
        print(json.dumps(result.headline))
    return 0


def cmd_finetune(argv: list[str]) -> int:
    """Fine-tune a backbone for a task, and score it; the last line is JSON."""
    from facessl.config import commands, parse

    asked = parse.read(argv, commands.FINETUNE)
    if shown := parse.shown(asked):
        print(shown, end="")
        return 0
    config = parse.configuration(asked)
    from facessl.training.finetune import Finetuning
    from facessl.training.run import run_job

    try:
        results = run_job(Finetuning(config))
    except KeyboardInterrupt:  # a second one, or one while images are scored
        print(json.dumps({"task": config.task["name"], "run": config.run, "out": config.out, "finished": False}))
        raise
    if results:
        test = results.get("test", {})
        kept = {k: v for k, v in test.items() if not isinstance(v, (dict, list)) or k in ("headline", "groups")}
        print(to_json({k: v for k, v in results.items() if k != "test"} | kept))
    return 0


def cmd_plan(argv: list[str]) -> int:
    """What a pre-training recipe costs on so many GPUs, by arithmetic; the last line is JSON."""
    from facessl.tools import plan

    parser = Parser(prog="facessl plan", description=summary(cmd_plan))
    parser.add_class_arguments(plan.Options, as_positional=True, as_group=False)
    result = plan.plan(plan.Options(**parsed_words(parser, argv, "plan")))
    print(plan.table(result))
    print(json.dumps(result))
    return 0
