"""The commands that use a trained network: `regions`, `probe`, `predict`, `export`, `convert`, `app`."""

from __future__ import annotations

import functools
import itertools
import json
import sys
from pathlib import Path
from typing import Any, Literal

from facessl.cli.commandline import computing_device, parsed_words, refuse_other_protocols, summary
from facessl.config.argument_parser import Parser
from facessl.core.errors import ConfigError
from facessl.core.schema import to_json

#: Exit status of `predict` if no photo had a face.
NOTHING_FOUND = 1


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
        scores: compare the regions with the source's masks and landmarks, beside baselines, as stored and moved.
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
    result: dict[str, Any] = {}
    if scores:
        from facessl.evaluation.regions import region_table, score_regions

        result = score_regions(method, source, count=score_images, seed=seed)
        print(region_table(result))
    print(to_json({"out": str(out), **result}))
    return 0


def cmd_probe(argv: list[str]) -> int:
    """Evaluate a frozen backbone on labeled images; the last line is JSON."""
    from facessl.core import plugins

    name = next((v for f, v in itertools.pairwise(argv) if f == "--protocol"), None)
    name = name or next((w.partition("=")[2] for w in argv if w.startswith("--protocol=")), "knn")
    refuse_other_protocols(argv, name)  # before torch is imported and a large file is read
    protocol = plugins.find("evaluation.protocols", name)
    parser = Parser(prog="facessl probe", description=summary(protocol))
    parser.add_argument(
        "run",
        help="run folder, checkpoint, exported backbone or timm:NAME; of a run of verification the trained embedding",
    )
    parser.add_argument("source", help="labeled images, NAME:PATH?option=value or a path; its own parts are used")
    parser.add_argument("--protocol", default="knn", help=f"one of {', '.join(plugins.names('evaluation.protocols'))}")
    parser.add_argument("--test", default=None, help="another source as the test part")
    parser.add_argument("--val", default=None, help="another source as the validation part")
    parser.add_argument(
        "--labels", default="all", help="training labels that are used: all, a percentage such as 10%, or 25-per-class"
    )
    parser.add_argument(
        "--baseline", type=bool, default=False, help="evaluate the same network with random weights as well"
    )
    parser.add_argument("--threads", type=int, default=None, help="CPU threads that compute; by default one per core")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--out", default=None, help="JSON file that the result is also written to")
    own: set[str | int] = {"backbone", "train", "test", "val", "labels", "workers"}
    parser.add_function_arguments(protocol, skip=own, as_group=False)
    if "workers" in plugins.keywords("evaluation.protocols", name):
        text = "loader processes; by default the cores minus one, at most 8"
        parser.add_argument("--workers", type=int, default=None, help=text)
    given = parsed_words(parser, argv, "probe")
    from facessl.core import files, launch
    from facessl.data.location import redacted
    from facessl.evaluation.evaluate import evaluate
    from facessl.inference.embed import load_embedder
    from facessl.report.results import headline_text

    run, source, device, threads, out = (given.pop(k) for k in ("run", "source", "device", "threads", "out"))
    files.check_output(out)
    if run == "none" and not Path(run).exists():
        raise ConfigError(
            "none is not a network: name a trained one, and --baseline evaluates random weights beside it"
        )
    if "workers" in given:
        given["workers"] = launch.loader_workers(given["workers"])
    backbone = load_embedder(run).to(computing_device(device, threads))
    result = {"run": run, "source": redacted(source), **evaluate(backbone, source, **given)}
    if out is not None:
        files.write_atomic(Path(out), to_json(result, indent=2).encode() + b"\n")
    print("\n".join([headline_text(result), *result.get("notes", ())]), file=sys.stderr)
    print(to_json(result))
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

    Under torchrun or srun every rank works on a part of the photos.

    Args:
        run: run folder of `facessl finetune`, or its model.safetensors.
        photos: image files, and folders of them.
        out: folder to write to, NAME.json and NAME.png for each photo.
        task: refuse a run of another task than this one.
        no_crop: each photo is a cropped face already.
        detector: mtcnn, or yunet, which needs --model.
        model: weights of the detector yunet (.onnx).
        margin: side of the square that is cropped, divided by the longer side of the face's box, as in `facessl crop`;
            only models trained on whole images use it and `lift` (null: as in the training images, which `finetune`
            measured, else 1.3).
        lift: how far that square is moved up from the center of the face's box, as a fraction of the box's longer side:
            0.1 shows more hair and less neck (null: as in the training images, else 0).
        draw: write pictures.
        overwrite: replace files of the same names that were written for other photos.
        batch_size: faces per forward pass.
        threads: CPU threads that compute; by default one per core.
        device: auto, cpu, cuda or mps.
        precision: number format of the forward pass: fp32, or bf16 or fp16, which are faster on a GPU (fp16 needs one).
        max_bad: fraction of unreadable photos above which it stops.
    """
    from facessl.core import files, launch, plugins
    from facessl.core.distributed import rank, ranks, totals
    from facessl.inference import predict
    from facessl.inference.trained_task import load_trained

    files.check_output(out, folder=True)
    trained = load_trained(run)
    if task is not None and plugins.known("tasks", task) != trained.name:
        raise ConfigError(
            f"{run} was trained for {trained.name}, not for {task}: leave --task out, or name another run"
        )
    with launch.expected_errors("give the same command again"):
        trained.module.to(computing_device(device, threads))
        if ranks()[0] > 1:
            trained.module.to(launch.start_fabric(device, precision).device)
        options: dict[str, Any] = {"margin": margin, "lift": lift, "detector": detector, "detector_model": model}
        options |= {"batch_size": batch_size, "precision": precision, "max_bad": max_bad}
        predictions = predict.predict(
            trained, photos, out=out, crop=not no_crop, draw=draw, overwrite=overwrite, **options
        )
        for photo in predictions:
            if photo.note:
                print(f"{photo.photo}: {photo.note}" if photo.read else f"skipped: {photo.note}", file=sys.stderr)
        read = [photo for photo in predictions if photo.read]
        faces = sum(len(photo.faces) for photo in read)
        photos_read, faces, skipped = totals(len(read), faces, len(predictions) - len(read))
    if rank() == 0:
        print(json.dumps({"photos": photos_read, "faces": faces, "out": str(out), "skipped": skipped}))
    return 0 if faces else NOTHING_FOUND


def cmd_export(
    run: str, format: Literal["onnx", "timm", "hf"] = "onnx", out: Path = Path("export"), overwrite: bool = False
) -> int:
    """Write a trained network for use without facessl; the last line is JSON.

    Args:
        run: run folder, checkpoint or exported backbone; of a run of `facessl finetune` onnx takes the whole task.
        format: onnx, compared with torch by ONNX Runtime; or the backbone alone as a folder that timm or transformers
            (hf) loads.
        out: folder to write, with a README.md to be completed.
        overwrite: replace an earlier export.
    """
    from facessl.inference.export import export

    result = export(run, out, format=format, overwrite=overwrite)
    for name, value in result["difference"].items():
        print(f"{name}: largest difference from torch {value:.1e} of its largest value")
    print(json.dumps(result))
    return 0


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
    keys = ("timm_name", "timm_options", "image_size", "mean", "std", "method", "guessed")
    print(json.dumps({"out": str(out), **{k: card[k] for k in keys if k in card}}))
    return 0


def cmd_app(argv: list[str]) -> int:
    """A local web page to look at faces: photos, search, groups, map, mistakes, training; Ctrl-C ends it."""
    parser = Parser(prog="facessl app", description=summary(cmd_app))
    parser.add_argument("run", help="run folder, checkpoint, exported backbone or timm:NAME")
    parser.add_argument(
        "source",
        nargs="?",
        help="the faces: images, NAME:PATH?option=value or a path, which are embedded once; or a file that "
        "`facessl embed` wrote (.parquet, .npy)",
    )
    parser.add_argument(
        "--models", nargs="+", default=[], help="run folders of `facessl finetune`, one of each task at most"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address that is listened on; by default only this machine")
    parser.add_argument("--port", type=int, default=None, help="by default the first free one from 7860")
    parser.add_argument(
        "--share", type=bool, default=False, help="also show the page to everybody with a link of Gradio's servers"
    )
    parser.add_argument(
        "--cache", default=None, help="folder of the embeddings of a source and its thumbnails; by default RUN/app"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images per forward pass")
    parser.add_argument("--workers", type=int, default=None, help="loader processes; by default the cores minus one")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads that compute; by default one per core")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    given = parsed_words(parser, argv, "app")
    from facessl.app.serve import serve

    device, threads, cache = given.pop("device"), given.pop("threads"), given.pop("cache")
    place = functools.cache(lambda: computing_device(device, threads))
    if device not in ("auto", "cpu") or threads is not None:
        place()  # may refuse them, before the page is there
    serve(**given, cache=None if cache is None else Path(cache), device=place)
    return 0
