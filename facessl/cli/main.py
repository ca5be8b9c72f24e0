"""The command line. Thin: each command reads its flags, calls the library and prints; `cmd_x` is `facessl x`."""

from __future__ import annotations

import itertools
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from facessl.cli.commandline import (
    call,
    computing_device,
    list_skipped,
    listed,
    one_sentence,
    overview,
    parsed_words,
    refuse_other_protocols,
    summary,
)
from facessl.cli.data import cmd_crop, cmd_pack  # noqa: F401 (commands)
from facessl.config.flags import Parser
from facessl.core.errors import ConfigError, FaceSSLError, UnknownName
from facessl.core.schema import to_json

#: Exit status of a user's error; argparse uses the same.
USER_ERROR = 2
#: Exit status of `predict` where no photo had a face.
NOTHING_FOUND = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `facessl`; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    found = [(n.removeprefix("cmd_"), f) for n, f in globals().items() if n.startswith("cmd_")]
    commands = dict(sorted(found, key=lambda pair: pair[1].__module__ != __name__))  # imported ones last
    warnings.formatwarning = one_sentence
    try:
        if not words or words[0] in ("-h", "--help"):
            print(overview(commands))
            return 0
        if words[0] == "--version":
            from facessl.core import environment

            print(environment.version("facessl"))
            return 0
        if words[0] not in commands:
            raise UnknownName("command", words[0], commands)
        return call(words[0], commands[words[0]], words[1:])
    except FaceSSLError as error:
        print(f"facessl: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("facessl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


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
    from facessl.training.run import carry_out

    result = carry_out(Pretraining(config))
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
    from facessl.training.run import carry_out

    try:
        results = carry_out(Finetuning(config))
    except KeyboardInterrupt:  # a second one, or one while images are scored
        print(json.dumps({"task": config.task["name"], "run": config.run, "out": config.out, "finished": False}))
        raise
    if results:
        test = results.get("test", {})
        kept = {k: v for k, v in test.items() if not isinstance(v, (dict, list)) or k in ("headline", "groups")}
        print(to_json({k: v for k, v in results.items() if k != "test"} | kept))
    return 0


def cmd_embed(
    run: str,
    source: str,
    out: Path = Path("embeddings.parquet"),
    batch_size: int = 64,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    max_bad: float = 0.05,
) -> int:
    """Embeddings of a source, one row per image.

    Args:
        run: run folder, checkpoint or exported backbone; of a run of verification the trained embedding is taken.
        source: images, NAME:PATH?option=value or a path.
        out: .parquet file to write.
        batch_size: images per forward pass.
        workers: loader processes; by default the cores minus one, at most 8.
        threads: CPU threads that compute; by default one per core.
        device: auto, cpu, cuda or mps.
        precision: number format of the forward pass: fp32, or bf16 or fp16, which are faster on a GPU (fp16 needs one).
        max_bad: fraction of unreadable images above which it stops.
    """
    import torch

    from facessl.core import files
    from facessl.data.source import open_source
    from facessl.inference import embed
    from facessl.training.run import loader_workers

    files.check_output(out)
    backbone: Any = embed.load_embedder(run)
    backbone.to(computing_device(device, threads), memory_format=torch.channels_last)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": loader_workers(workers), "precision": precision}
    parts = embed.embedding_batches(backbone, open_source(source), max_bad=max_bad, **options)
    count, skipped = embed.write_parquet(out, parts)
    list_skipped(skipped)
    print(json.dumps({"images": count, "skipped": len(skipped), "dimensions": backbone.num_features, "out": str(out)}))
    return 0


def cmd_regions(
    run: str,
    source: str,
    out: Path = Path("regions.png"),
    count: int = 8,
    seed: int = 0,
    scores: bool = False,
    score_images: int = 300,
    device: str = "auto",
) -> int:
    """Picture of the regions a method found: image, heatmaps, arg-max segmentation; and their scores.

    Args:
        run: run folder or checkpoint of a method with regions (fra).
        source: images, NAME:PATH?option=value or a path.
        out: .png file to write.
        count: images shown.
        seed: of the choice of images.
        scores: compare the regions with the source's masks and landmarks, beside baselines on the same images.
        score_images: at most so many images are scored.
        device: auto, cpu, cuda or mps.
    """
    from facessl.core import environment, files
    from facessl.inference.region_pictures import write_regions
    from facessl.pretrained.load import load_method

    files.check_output(out)
    method: Any = load_method(run)
    method.to(environment.device_of(device))
    write_regions(out, method, source, count=count, seed=seed)
    found: dict[str, Any] = {}
    if scores:
        from facessl.evaluation.regions import region_table, score_regions

        found = score_regions(method, source, count=score_images, seed=seed)
        print(region_table(found))
    print(to_json({"out": str(out), **found}))
    return 0


def cmd_probe(argv: list[str]) -> int:
    """Evaluate a frozen backbone on labelled images; the last line is JSON."""
    from facessl.core import plugins

    name = next((v for f, v in itertools.pairwise(argv) if f == "--protocol"), None)
    name = name or next((w.partition("=")[2] for w in argv if w.startswith("--protocol=")), "knn")
    refuse_other_protocols(argv, name)  # before torch is imported and a large file is read
    judge = plugins.find("evaluation.protocols", name)
    parser = Parser(prog="facessl probe", description=summary(judge))
    parser.add_argument(
        "run",
        help="run folder, checkpoint or exported backbone; of a run of verification the trained embedding is taken",
    )
    parser.add_argument("source", help="labelled images, NAME:PATH?option=value or a path; its own parts are used")
    parser.add_argument("--protocol", default="knn", help=f"one of {', '.join(plugins.names('evaluation.protocols'))}")
    parser.add_argument("--test", default=None, help="another source as the test part")
    parser.add_argument("--val", default=None, help="another source as the validation part")
    parser.add_argument(
        "--labels", default="all", help="training labels that are used: all, a percentage such as 10%, or 25-per-class"
    )
    parser.add_argument("--threads", type=int, default=None, help="CPU threads that compute; by default one per core")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--out", default=None, help="file that the result is also written to")
    parser.add_function_arguments(judge, skip={"backbone", "train", "test", "val", "labels"}, as_group=False)
    given = parsed_words(parser, argv, "probe")
    from facessl.core import files
    from facessl.data.location import redacted
    from facessl.evaluation.evaluate import evaluate
    from facessl.inference.embed import load_embedder

    run, source, device, threads, out = (given.pop(k) for k in ("run", "source", "device", "threads", "out"))
    files.check_output(out)
    backbone = load_embedder(run).to(computing_device(device, threads))
    found = {"run": run, "source": redacted(source), **evaluate(backbone, source, **given)}
    if out is not None:
        files.write_atomic(Path(out), to_json(found, indent=2).encode() + b"\n")
    print(to_json(found))
    return 0


def cmd_predict(
    run: str,
    photos: list[str],
    out: Path = Path("predictions"),
    task: str | None = None,
    no_crop: bool = False,
    detector: str = "mtcnn",
    model: Path | None = None,
    margin: float | None = None,
    lift: float | None = None,
    draw: bool = True,
    overwrite: bool = False,
    batch_size: int = 32,
    threads: int | None = None,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    max_bad: float = 0.05,
) -> int:
    """Landmarks, masks or labels of the faces in photos, drawn and as JSON; exit status 1 where no face was found.

    Args:
        run: run folder of `facessl finetune`, or its model.safetensors.
        photos: image files, and folders of them.
        out: folder to write to, NAME.json and NAME.png for each photo.
        task: refuse a run of another task than this one.
        no_crop: each photo is one cut-out face already.
        detector: mtcnn, or yunet, which needs --model.
        model: weights of the detector yunet (.onnx).
        margin: side of the square that is cropped, divided by the longer side of the face's box, as in `facessl crop`;
            only models trained on whole images use it and `lift` (null: as in the training images, which `finetune`
            measured, else 1.3).
        lift: how far that square is moved up from the centre of the face's box, as a fraction of the box's longer side:
            0.1 shows more hair and less neck (null: as in the training images, else 0).
        draw: write pictures.
        overwrite: replace files of the same names that were written for other photos.
        batch_size: faces per forward pass.
        threads: CPU threads that compute; by default one per core.
        device: auto, cpu, cuda or mps.
        precision: number format of the forward pass: fp32, or bf16 or fp16, which are faster on a GPU (fp16 needs one).
        max_bad: fraction of unreadable photos above which it stops.
    """
    from facessl.core import files, plugins
    from facessl.inference import predict
    from facessl.inference.trained import load_trained

    files.check_output(out, folder=True)
    trained = load_trained(run)
    if task is not None and task != trained.name:
        plugins.find("tasks", task)  # a name that does not exist is said first
        raise ConfigError(
            f"{run} was trained for {trained.name}, not for {task}: leave --task out, or name another run"
        )
    trained.module.to(computing_device(device, threads))
    found = predict.predict(
        trained,
        photos,
        out=out,
        crop=not no_crop,
        margin=margin,
        lift=lift,
        detector=detector,
        detector_model=model,
        batch_size=batch_size,
        precision=precision,
        max_bad=max_bad,
        draw=draw,
        overwrite=overwrite,
    )
    for photo in found:
        if photo.note:
            print(f"{photo.photo}: {photo.note}" if photo.read else f"skipped: {photo.note}", file=sys.stderr)
    read = [photo for photo in found if photo.read]
    faces = sum(len(photo.faces) for photo in read)
    told = {"photos": len(read), "faces": faces, "out": str(out), "skipped": len(found) - len(read)}
    print(json.dumps(told))
    return 0 if faces else NOTHING_FOUND


def cmd_convert(
    path: str,
    out: Path = Path("backbone.safetensors"),
    name: str | None = None,
    heads: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> int:
    """Write the backbone of any checkpoint as safetensors with a card; the last line is JSON.

    Args:
        path: authors' checkpoint (FRA, LEWEL, MCF, FaRL, Bulat et al., PCL, MoCo v3, torchvision, timm), run folder
            or .ckpt.
        out: .safetensors file to write; its card is a .json beside it.
        name: timm model whose weights an authors' file holds, with or without timm's tag, e.g. convnext_atto.
        heads: attention heads of an authors' ViT, which no shape tells; null guesses, and says so.
        mean: RGB mean in 0..1 that an authors' file wants, such as '[0.5, 0.5, 0.5]'; null guesses, and says so.
        std: the same for the standard deviation.
    """
    from facessl.core import files
    from facessl.pretrained.convert import convert

    files.check_output(out)
    card = convert(path, out, name=name, heads=heads, mean=mean, std=std)
    told = ("timm_name", "timm_options", "image_size", "mean", "std", "method", "guessed")
    print(json.dumps({"out": str(out), **{k: card[k] for k in told if k in card}}))
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


def cmd_report(runs: list[Path], out: Path | None = None, compare: Literal["paper"] | None = None) -> int:
    """Rewrite the report of a run, or compare several; the last line is JSON.

    Args:
        runs: run folders; with --compare also files that `facessl probe --out` wrote.
        out: page to write; report.html (one run) or comparison.html (several) in the first run folder by default.
        compare: `paper` also prints a table of the runs' scores beside the published ones of the same data set and
            protocol, with the difference; without it no table is printed.
    """
    from facessl.core import files
    from facessl.report import paper
    from facessl.report.write import report

    files.check_output(out)
    found = report(runs, out=out, compare=compare)
    if compare is not None:
        print(paper.table(found["paper"]))
    print(json.dumps(found))
    return 0


def cmd_list(argv: list[str]) -> int:
    """What can be named on the command line: methods, sources, tasks, protocols, recipes."""
    kinds = ("methods", "sources", "tasks", "protocols", "recipes")
    parser = Parser(prog="facessl list", description=summary(cmd_list))
    parser.add_argument("what", nargs="?", metavar="WHAT", help=f"one of {', '.join(kinds)}")
    parser.add_argument("filter", nargs="?", metavar="FILTER", help="print only the names that contain this text")
    parser.add_argument("--show", metavar="NAME", help="print the YAML of one recipe, e.g. fra/vggface2-r50")
    given = parsed_words(parser, argv, "list")
    if given["show"] is not None:
        from facessl.config.recipes import recipe_text

        print(recipe_text(given["show"]), end="")
    elif given["what"] is None:
        print("facessl list WHAT [FILTER] lists one of: " + ", ".join(kinds))
    elif given["what"] not in kinds:
        raise UnknownName("kind of name", given["what"], kinds)
    else:
        for name, told in listed(given["what"], given["filter"] or ""):
            print(f"{name:{40 if given['what'] == 'recipes' else 14}} {told}")
    return 0


def cmd_check(as_json: bool = False) -> int:
    """Versions, device, bf16 support, optional parts.

    Args:
        as_json: print JSON.
    """
    from facessl.core import environment

    found = environment.check()
    print(json.dumps(found) if as_json else yaml.safe_dump(found, sort_keys=False, allow_unicode=True).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
