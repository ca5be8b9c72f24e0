"""Two ranks do what one process does on the same global batch: loss, gradients, weights, statistics."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from facessl.core.types import Batch, Progress
from facessl.methods.byol import BYOL
from facessl.methods.dino import DINO
from facessl.methods.distill import Distill
from facessl.methods.farl import FaRL
from facessl.methods.fra import FRA
from facessl.methods.lewel import LEWEL
from facessl.methods.mae import MAE
from facessl.methods.mcf import MCF
from facessl.methods.pcl import PCL
from facessl.methods.simclr import SimCLR
from facessl.methods.swav import SwAV
from facessl.models.backbone import Backbone
from facessl.models.layers.color_regions import random_similarities
from facessl.models.layers.losses import sinkhorn
from facessl.models.layers.sync_batch_norm import convert_sync_batchnorm
from facessl.pretrained.load import load_backbone
from tests.helpers import UNUSED

DECODER = {"decoder_width": 32, "decoder_heads": 2, "decoder_feed_forward": 16, "dropout": 0.0}
MASKED = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
CASES = {
    "byol": (BYOL, {}),
    "fra-paper": (FRA, {"lambda_r": 1.0, **DECODER}),
    "fra-official": (FRA, {"variant": "official", "lambda_r": 1.0, **DECODER}),
    "fra-across": (FRA, {"relation": "both", "frame_prior": 0.5, "mask_embeddings": "free", "lambda_r": 1.0}),
    "fra-color": (FRA, {"targets": "color", "mask_embeddings": "free", "use_global": False, "lambda_r": 1.0}),
    "lewel-eman": (LEWEL, {}),
    "lewel-syncbn": (LEWEL, {"variant": "syncbn"}),
    "pcl": (PCL, {"noise": 0.0, "width": 8, "decoder_width": 16, "decoder_size": 16}),
    "mae": (MAE, MASKED),
    "mcf": (MCF, {"teacher": "timm:test_resnet?pretrained=false", "feature_weight": 1.0, **MASKED}),
    "farl": (FaRL, {"text_width": 16, "text_depth": 1, "text_heads": 2, "context": 8}),
    "simclr": (SimCLR, {}),
    "swav": (SwAV, {"prototypes": 10, "freeze_prototypes_epochs": 0}),
    "swav-frozen": (SwAV, {"prototypes": 10, "freeze_prototypes_epochs": 1}),
    "swav-queue": (SwAV, {"prototypes": 10, "freeze_prototypes_epochs": 0, "queue_length": 40, "queue_step": 0}),
}
CASES |= {
    "dino": (DINO, {"out_dim": 10, "freeze_last_layer_epochs": 0}),
    "dino-frozen": (DINO, {"out_dim": 10, "freeze_last_layer_epochs": 1}),
    "distill": (Distill, {"teacher": "timm:test_vit?pretrained=false", "teacher_dim": 64}),
}
HEADS = {"hidden": 24, "dim": 16, "hidden_dim": 24, "bottleneck_dim": 16}
NORMS = {
    "2-d": (nn.BatchNorm1d, (8, 6)),
    "3-d": (nn.BatchNorm1d, (8, 6, 5)),
    "4-d": (nn.BatchNorm2d, (8, 6, 3, 2)),
    "4-d with activation": (BatchNormAct2d, (8, 6, 3, 2)),
    "no momentum": (lambda c: nn.BatchNorm2d(c, momentum=None), (8, 6, 3, 2)),
    "no statistics": (lambda c: nn.BatchNorm2d(c, track_running_stats=False), (8, 6, 3, 2)),
    "no parameters": (lambda c: nn.BatchNorm2d(c, affine=False), (8, 6, 3, 2)),
    "channels last": (nn.BatchNorm2d, (8, 6, 3, 2)),
    "empty rank": (nn.BatchNorm2d, (8, 6, 3, 2)),
    "bfloat16": (nn.BatchNorm2d, (8, 6, 3, 2)),
    "float16": (nn.BatchNorm2d, (8, 6, 3, 2)),
    "all in bfloat16": (nn.BatchNorm2d, (8, 6, 3, 2)),
    "far from zero": (nn.BatchNorm2d, (8, 6, 3, 2)),
}
#: Kind -> tolerance, where it is not 1e-5: two roundings of 16 bits; a mean of 1000 deviations in float32.
NORM_TOLERANCE = {"bfloat16": 2**-7, "all in bfloat16": 2**-6, "float16": 2**-10, "far from zero": 1e-3}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


class Stepping(nn.Module):
    """DistributedDataParallel calls `forward`."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, batch):
        step = self.method.step(batch, Progress(0, 10))
        return step.loss, step.logs


def prepared(case, dtype, mine):
    """The method of a case and a batch: of 16 images those of the slice `mine`."""
    method_class, values = CASES[case]
    torch.manual_seed(0)
    masked = getattr(method_class, "patches_only", False)
    backbone = Backbone("test_vit" if masked else "test_resnet", image_size=64)
    sizes = {name: size for name, size in HEADS.items() if hasattr(method_class.Args, name)}
    method = method_class(backbone, **sizes, **values)
    if hasattr(method, "prepare"):
        method.prepare(load_backbone)
    with torch.no_grad():
        # At the start the decoder's first norm sees zeros and multiplies rounding by 1 / sqrt(epsilon) = 316.
        for name, parameter in method.named_parameters():
            if ".decoder." in name and parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    method.to(dtype)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, 3, 64, 64, generator=generator).to(dtype)
    views = [*x[:, mine]]
    if case.startswith(("swav", "dino")):
        views += [view[..., 16:48, 16:48] for view in views]  # multi-crop
    if case == "swav-queue":
        for _ in range(3):  # full, and at a place that is not a multiple of the batch
            rows = torch.nn.functional.normalize(torch.randn(2, 16, 16, generator=generator, dtype=dtype), dim=-1)
            method.queue.add(rows[:, mine])
            method.queue.update()
    if masked or case == "distill":
        views = views[:1]
    if masked:
        noise = torch.rand(2, 16, 16, generator=generator)  # two masks of 16 images of 16 patches
        method.noise = lambda batch: tuple(noise[:, batch.index]) if case == "mcf" else noise[0, batch.index]
    if case == "fra-color":
        turns = random_similarities(32, x).view(2, 16, 2, 3)
        method.turns = lambda batch: [*turns[:, batch.index]]
    if case == "pcl":
        views += [view.roll(shift, -1).flip(-1) for shift in (9, 30) for view in views] + views[:1]
    place = torch.rand(2, 16, 5, generator=torch.Generator().manual_seed(5))
    crops = torch.cat([place[..., :2] / 2, 0.2 + 0.3 * place[..., 2:4], place[..., 4:].round()], -1)  # some are apart
    text = [f"face {i}" for i in range(16)][mine] if "text" in method.needs else None
    index = torch.arange(16)[mine]
    return method, Batch(views=views, params=[], index=index, crops=[*crops[:, mine]], text=text)


def one_step(case, rank, ranks):
    """Loss, terms, gradients, and the whole state after one plain SGD step, on this rank's part of 16 images."""
    method, batch = prepared(case, torch.float64, slice(rank * 16 // ranks, (rank + 1) * 16 // ranks))
    module = Stepping(method)
    if ranks > 1:
        convert_sync_batchnorm(module)
        module = DistributedDataParallel(module)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    loss, logs = module(batch)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    optimizer.step()
    method.after_step(Progress(0, 10))
    return {"loss": loss.detach(), "logs": logs, "gradients": gradients, "state": method.state_dict()}


def one_norm(kind, device, rank, ranks):
    """Output, input gradient, parameter gradients (this rank's part) and buffers of a batch norm; then evaluated."""
    make, shape = NORMS[kind]
    norm = make(shape[1])
    with torch.no_grad():
        if norm.affine:
            norm.weight.copy_(torch.linspace(0.5, 1.5, shape[1]))
    dtype = getattr(torch, kind.split()[-1], torch.float32)
    norm = norm.to(device, dtype if kind.startswith("all in") else torch.float32)
    norm = convert_sync_batchnorm(norm) if ranks > 1 else norm
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 3 + 1
    x = (x / 300 + 10 if kind == "far from zero" else x).to(device, dtype)
    cut = 0 if kind == "empty rank" else 3  # ranks may hold different numbers of samples
    mine = slice(0, 8) if ranks == 1 else (slice(0, cut) if rank == 0 else slice(cut, 8))
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    part = x[mine].clone(memory_format=torch.channels_last if kind == "channels last" else torch.contiguous_format)
    part.requires_grad_()
    for _ in range(2):  # the second call meets statistics that have moved
        out = norm(part)
    (out * weights[mine]).sum().backward()
    assert out.dtype == part.grad.dtype == dtype
    result = {"out": out.detach(), "grad": part.grad}
    if norm.track_running_stats:
        result |= {"evaluated": norm.eval()(part[:1].detach() if ranks == 1 or part.numel() else x[:1])}
        result |= {"mean": norm.running_mean, "var": norm.running_var, "seen": norm.num_batches_tracked}
    if norm.affine:
        result |= {"weight": norm.weight.grad, "bias": norm.bias.grad}
    return {name: value.detach().cpu() for name, value in result.items()}


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    result = {case: one_step(case, rank, 2) for case in CASES}
    result |= {f"{kind} {device}": one_norm(kind, device, rank, 2) for kind in NORMS for device in DEVICES}
    result["sinkhorn"] = sinkhorn(scores()[: 7 if rank == 0 else None][0 if rank == 0 else 7 :], 3)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def scores():
    return torch.rand(20, 4, generator=torch.Generator().manual_seed(4)) ** 4


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(worker, args=(str(folder),), nprocs=2, start_method=UNUSED.get_start_method())
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process(ranks, case):
    alone = one_step(case, 0, 1)
    first, second = (r[case] for r in ranks)

    def same(ours, expected, name):
        tolerance = 1e-10 * (1 + expected.abs().max().item())
        torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance, msg=lambda m: f"{name}: {m}")

    same((first["loss"] + second["loss"]) / 2, alone["loss"], "loss")
    for name, value in alone["logs"].items():
        same((first["logs"][name] + second["logs"][name]) / 2, value, name)
    for part in ("gradients", "state"):
        assert first[part].keys() == alone[part].keys()
        for name, value in alone[part].items():
            same(first[part][name], value, f"{part}: {name}")
            assert torch.equal(second[part][name], first[part][name]), name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", NORMS)
def test_batch_norm_spans_the_ranks(ranks, kind, device):
    alone = one_norm(kind, device, 0, 1)
    first, second = (r[f"{kind} {device}"] for r in ranks)
    tolerance = NORM_TOLERANCE.get(kind, 1e-5)
    assert first.keys() == alone.keys()
    for name, expected in alone.items():
        ours = first[name]
        if name in ("out", "grad"):
            ours = torch.cat([first[name], second[name]])
        elif name in ("weight", "bias"):
            ours = first[name] + second[name]
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_sinkhorn_spans_the_ranks(ranks):
    torch.testing.assert_close(torch.cat([r["sinkhorn"] for r in ranks]), sinkhorn(scores(), 3))
