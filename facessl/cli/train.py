"""The commands that train: `pretrain`, `finetune`, and `plan`, which says what a run costs."""

import dataclasses
import json
import os
import sys

from facessl.cli.commandline import list_skipped, parsed_words, summary
from facessl.config.argument_parser import Parser
from facessl.config.pretrain import PretrainConfig
from facessl.core.errors import many
from facessl.core.schema import to_json


def cmd_pretrain(argv: list[str]) -> int:
    """Learn a face backbone from unlabeled images."""
    from facessl.config import parse

    arguments = parse.read(argv)
    if text := parse.help_or_configuration(arguments):
        print(text, end="")
        return 0
    config = parse.configuration(arguments)
    note = parse.rate_note(arguments, config)
    if note and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        print(note, file=sys.stderr)
    from facessl.training.pretrain import Pretraining  # only here, as torch takes seconds
    from facessl.training.run import run_job

    if arguments.crop:
        config = dataclasses.replace(config, source=_crops(config))
    result = run_job(Pretraining(config))
    if result.headline:
        print(json.dumps(result.headline))
    return 0


def _crops(config: PretrainConfig) -> str:
    """Crop the photos of a run unless they are cropped already; return the source of the crops."""
    from facessl.core.distributed import launched
    from facessl.core.launch import loader_workers
    from facessl.core.progress import ProgressLine
    from facessl.tools.crop import cached_crops
    from facessl.training.run import say

    first = launched()[0] == 0
    with ProgressLine("photo", enabled=first) as progress:
        workers = loader_workers(config.workers)
        source, crops = cached_crops(config.source, workers=workers, max_bad=config.max_bad, progress=progress)
    if first and crops is None:
        say(f"{source} has crops already")
    elif first and crops:
        list_skipped([*crops.skipped, *((photo, "no face found") for photo in crops.without_face)])
        say(f"{many(crops.faces, 'face')} of {many(crops.photos, 'photo')} -> {source}")
    return source


def cmd_finetune(argv: list[str]) -> int:
    """Fine-tune a backbone for a task, and score it; the last line is JSON."""
    from facessl.config import commands, parse

    arguments = parse.read(argv, commands.FINETUNE)
    if text := parse.help_or_configuration(arguments):
        print(text, end="")
        return 0
    config = parse.configuration(arguments)
    from facessl.training.finetune import Finetuning
    from facessl.training.run import run_job

    try:
        results = run_job(Finetuning(config))
    except KeyboardInterrupt:  # a second one, or one while images are scored
        print(json.dumps({"task": config.task["name"], "run": config.run, "out": config.out, "finished": False}))
        raise
    if results:
        test = results.get("test", {})
        scores = {k: v for k, v in test.items() if not isinstance(v, (dict, list)) or k in ("headline", "groups")}
        print(to_json({k: v for k, v in results.items() if k != "test"} | scores))
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
