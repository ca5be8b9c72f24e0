"""The commands that make embeddings and use them: `embed`, `search`, `group`, `map`."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

from facessl.cli.commandline import computing_device, list_skipped


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
    """Embeddings of a source, one row per image; under torchrun or srun every rank embeds a part.

    The same command goes on after a stop.

    Args:
        run: run folder, checkpoint, exported backbone or timm:NAME; of a run of verification the trained embedding.
        source: images, NAME:PATH?option=value or a path.
        out: file to write: .parquet; .npy, with the paths in a .names.csv beside it; or .csv.
        batch_size: images per forward pass.
        workers: loader processes; by default the cores minus one, at most 8.
        threads: CPU threads that compute; by default one per core.
        device: auto, cpu, cuda or mps.
        precision: number format of the forward pass: fp32, or bf16 or fp16, which are faster on a GPU (fp16 needs one).
        max_bad: fraction of unreadable images above which it stops.
    """
    import torch

    from facessl.core import files, launch
    from facessl.core.distributed import launched, ranks
    from facessl.core.progress import ProgressLine
    from facessl.data.source import open_source
    from facessl.inference.embed import load_embedder
    from facessl.inference.embed_file import embed_to_file
    from facessl.inference.embedding_formats import ENDINGS

    files.check_ending(out, "embeddings", ENDINGS)
    files.check_output(out)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": launch.loader_workers(workers)}
    options |= {"precision": precision, "max_bad": max_bad}
    with launch.expected_errors("give the same command again, which goes on with what is done"):
        place: Any = computing_device(device, threads)
        backbone: Any = load_embedder(run)
        if ranks()[0] > 1:
            fabric = launch.start_fabric(device, precision)
            place, opened = fabric.device, launch.one_after_another(fabric, lambda: open_source(source))
        else:
            opened = open_source(source)
        backbone.to(place, memory_format=torch.channels_last)
        with ProgressLine("image", enabled=launched()[0] == 0) as progress:
            written = embed_to_file(out, backbone, opened, progress=progress, **options)
    if written is not None:
        count, skipped = written
        list_skipped(skipped)
        numbers = {"images": count, "skipped": len(skipped), "dimensions": backbone.num_features}
        print(json.dumps({**numbers, "out": str(out)}))
    return 0


def cmd_search(
    run: str,
    photo: str,
    embeddings: Path,
    k: int = 12,
    crop: bool = False,
    out: Path = Path("neighbors.png"),
    threads: int | None = None,
    device: str = "auto",
) -> int:
    """The images most similar to a photo of one face, as a table and a picture; the last line is JSON.

    Args:
        run: what made the embeddings: run folder, checkpoint or exported backbone.
        photo: image of one face. Without --crop it must be framed as the images that were embedded.
        embeddings: file that `facessl embed` wrote.
        k: how many images.
        crop: find the largest face of the photo and cut it out as `facessl crop` does by default, for embeddings of
            such crops.
        out: .png or .jpg file to write: the photo, then its neighbors with their distances, 1 - cosine.
        threads: CPU threads that compute; by default one per core.
        device: auto, cpu, cuda or mps.
    """
    from facessl.core import escape, files
    from facessl.inference import contact_sheet
    from facessl.inference.embed import load_embedder
    from facessl.inference.neighbors import check_photo, search

    files.check_output(out)
    files.check_ending(out, "picture", files.PICTURES)
    check_photo(photo)
    network: Any = load_embedder(run)
    network.to(computing_device(device, threads))
    nearest = search(network, photo, embeddings, k=k, crop=crop)
    cells = [contact_sheet.Cell(photo, ["query", Path(photo).name], framed=True)]
    neighbors = []
    print("rank  distance  path")
    for rank, (path, number) in enumerate(zip(nearest.paths, nearest.distances, strict=True), 1):
        distance, shown = round(float(number), 4), escape.printable(path)
        cells.append(contact_sheet.Cell(path, [f"{rank}   {distance:.4f}", Path(path).name]))
        neighbors.append({"path": shown, "distance": distance})
        print(f"{rank:4}  {distance:8.4f}  {shown}")
    files.write_picture(out, contact_sheet.sheet(cells, columns=7))
    print(json.dumps({"photo": escape.printable(photo), "neighbors": neighbors, "out": str(out)}))
    return 0


def cmd_group(
    embeddings: Path,
    out: Path = Path("groups"),
    metric: Literal["cosine", "euclidean"] = "cosine",
    min_cluster_size: int = 5,
    pca_components: int | None = None,
    faces: int = 48,
) -> int:
    """Groups of similar faces by HDBSCAN, such as those of one person, as a table and pictures; the last line is JSON.

    Args:
        embeddings: file that `facessl embed` wrote.
        out: folder to write to: groups.csv (path, group, probability; group -1: in none) and a sheet of each group.
        metric: distance of two images: cosine compares the directions of their embeddings, euclidean also the lengths.
        min_cluster_size: images of the smallest group.
        pca_components: compare so many principal components of the embeddings; null compares all dimensions. Above
            16,000 images, where not all distances fit in memory, 50 takes a fraction of the time.
        faces: images of a group's sheet at most, those with the highest cluster membership probability; 0 writes no
            sheets.
    """
    from facessl.inference import groups

    groups.check_folder(out, faces)
    grouped = groups.group(embeddings, metric=metric, min_cluster_size=min_cluster_size, pca_components=pca_components)
    replaced = groups.write_groups(out, grouped, faces=faces)
    sizes = [int((grouped.labels == number).sum()) for number in range(len(grouped))]
    if not sizes and min_cluster_size > 2:
        advice = "--min-cluster-size 2 or 3 finds smaller groups, and longer training better ones"
        print(f"no group of {min_cluster_size} or more similar faces was found: {advice}", file=sys.stderr)
    numbers = {"images": len(grouped.paths), "groups": len(sizes), "grouped": sum(sizes)}
    print(json.dumps({**numbers, "largest": max(sizes, default=0), "replaced": replaced, "out": str(out)}))
    return 0


def cmd_map(
    embeddings: Path,
    out: Path = Path("map.html"),
    projection: Literal["pca", "umap"] = "pca",
    color: Path | None = None,
    seed: int = 0,
) -> int:
    """A page that places similar faces near each other and shows each under the pointer; the last line is JSON.

    Args:
        embeddings: file that `facessl embed` wrote.
        out: .html file to write; it holds small pictures of up to 50,000 images, of more none, and
            fetches nothing.
        projection: pca, the two directions of the largest variance; or umap, which keeps neighborhoods and needs
            umap-learn (pip install 'facessl[umap]').
        color: table of the classes that give the colors: `path` and `group`, `label_name` or `label`, such as the
            groups.csv of `facessl group`; null: the labels of the embeddings, where they have any.
        seed: of umap.
    """
    from facessl.core import files
    from facessl.report.face_map import write_map

    files.check_output(out)
    print(json.dumps({**write_map(out, embeddings, projection=projection, color=color, seed=seed), "out": str(out)}))
    return 0
