"""Every shipped recipe parses, says where it comes from, and holds the values of the table that it names."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import pytest

from facessl.config import parse as config_parse
from facessl.config import recipes
from facessl.config.commands import FINETUNE, PRETRAIN
from facessl.core import plugins
from facessl.core.errors import ConfigError, UnknownName
from facessl.data.source import parse
from facessl.training.derived import derive
from facessl.views import augment

DOWNSTREAM = [name for name in recipes.recipes() if name.startswith("downstream/")]


@pytest.mark.parametrize("name", recipes.recipes())
def test_recipe_is_valid_and_has_its_header(name: str) -> None:
    text = recipes.recipe_text(name)
    for field in ("# command:", "# source:", "# hardware:", "# score:", "# status:"):
        assert field in text, f"{name} lacks {field}"
    assert f"--config {name} " in text.replace("\n", " "), "the command must be the recipe's own"
    assert len(recipes.recipe_summary(name)) > 20, "the first line is what `facessl list recipes` prints"
    assert config_parse.from_dict(parsed(name).to_dict(), command(name)) == parsed(name)


def command(name: str) -> Any:
    return FINETUNE if name in DOWNSTREAM else PRETRAIN


@functools.cache
def parsed(name: str) -> Any:
    return config_parse.parse(["--config", name], command=command(name))


@pytest.mark.parametrize("name", DOWNSTREAM)
def test_downstream_recipe_never_runs_on_synthetic_faces_or_tunes_on_test_images_in_silence(name: str) -> None:
    config = parsed(name)
    source, _, options = parse(config.source)
    reader = plugins.find("data.sources", source)
    assert {"train", "test"} <= set(reader.splits)
    assert "split" not in options
    plugins.find("tasks", config.task["name"]).defaults[config.protocol]
    comments = [line[1:] for line in recipes.recipe_text(name).splitlines() if line.startswith("#")]
    header = " ".join(" ".join(comments).split())
    assert (config.select == "test") == ("select: test" in header), "select: test must be said in the header"
    published = name.count("/") > 1
    assert (config.run != "none") == published, "a published row names the backbone it needs"


#: Method -> the recipe that has the published settings of its optimizer.
PUBLISHED = {
    "byol": "byol/vggface2-r50",
    "dino": "dino/vggface2",
    "distill": "distill/vggface2-r50",
    "farl": "farl/laionface",
    "fra": "fra/vggface2-r50",
    "lewel": "lewel/vggface2-r50-eman",
    "mae": "mae/vggface2",
    "mcf": "mcf/laionface",
    "pcl": "pcl/vggface2-r50",
    "simclr": "simclr/laionface-r50",
    "swav": "swav/vggface2-r50",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_method_without_a_recipe_has_the_optimizer_of_its_published_recipe(name: str) -> None:
    own, recipe = config_parse.parse(["--method", name]), parsed(PUBLISHED[name])
    assert own.optim.peak(recipe.batch_size) == pytest.approx(recipe.optim.peak(recipe.batch_size))
    scaled = {field: getattr(recipe.optim, field) for field in ("lr", "reference_batch")}
    warmup = recipe.optim.warmup_epochs or own.optim.warmup_epochs  # epochs of a run of another length, or none at all
    assert dataclasses.replace(own.optim, **scaled, warmup_epochs=warmup) == recipe.optim
    assert own.clip_grad == recipe.clip_grad
    if getattr(plugins.find("methods", name), "patches_only", False):
        assert own.backbone == recipe.backbone


#: Data set and protocol -> (protocol, epochs, batch, pixels, select, frozen, balanced, what is special in the task).
PROTOCOLS = {
    "rafdb-ft": ("finetune", 100, 256, 224, "test", False, False, {}),
    "rafdb-lp": ("finetune", 100, 256, 224, "test", True, False, {}),
    "rafdb-eac": ("eac", 60, 32, 224, "test", False, False, {"consistency": 5.0}),
    "ferplus-ft": ("finetune", 100, 256, 224, "test", False, False, {}),
    "ferplus-lp": ("finetune", 100, 256, 224, "test", True, False, {}),
    "ferplus-eac": ("eac", 60, 32, 224, "test", False, False, {"consistency": 5.0}),
    "affectnet7-ft": ("finetune", 100, 256, 224, "test", False, True, {}),
    "affectnet7-lp": ("finetune", 100, 256, 224, "test", True, True, {}),
    "affectnet7-eac": ("eac", 60, 32, 224, "test", False, True, {"consistency": 5.0}),
    "celeba-ft": ("finetune", 100, 256, 224, "test", False, False, {"head": "fra"}),
    "celeba-lp": ("finetune", 100, 256, 224, "test", True, False, {"head": "linear"}),
    "wflw-star": ("star", 500, 32, 256, "test", False, False, {"head": "star", "thresholds": (0.1,)}),
    "300w-star": ("star", 500, 32, 256, "test", False, False, {"head": "star", "thresholds": (0.05,)}),
    "wflw-farl": ("finetune", 150, 40, 448, "test", False, False, {"head": "farl", "width": 768}),
    "300w-farl": ("finetune", 250, 40, 448, "test", False, False, {"head": "farl", "width": 768}),
    "aflw19-farl": ("finetune", 150, 40, 448, "test", False, False, {"hidden": True, "unit": "diag", "thresholds": ()}),
    "lapa-farl": ("finetune", 300, 40, 448, "test", False, False, {"width": 768}),
    "celebamaskhq-farl": ("finetune", 300, 40, 448, "test", False, False, {"width": 768}),
}


@pytest.mark.parametrize("row", PROTOCOLS)
def test_downstream_protocol_has_its_published_values(row: str) -> None:
    c = parsed(f"downstream/{row}")
    *values, task = PROTOCOLS[row]
    assert [c.protocol, c.epochs, c.batch_size, c.image_size, c.select, c.frozen, c.balanced] == values
    assert {key: c.task[key] for key in task} == task
    average = {"star": 0.99778, "farl": 0.999}.get(row.rsplit("-", 1)[1], 0.0)
    assert c.ema == average
    assert c.ema_ramp == (not average), "FaRL's and STAR's momentum is constant"


@pytest.mark.fault("D5", "the views of one image were erased independently")
@pytest.mark.parametrize(
    ("row", "published"),
    [
        ("rafdb-lp", augment.FRA_EXPRESSION),
        ("celeba-ft", augment.FRA_ATTRIBUTES),
        ("affectnet7-eac", augment.EAC_EXPRESSION),
        ("rafdb-eac", dataclasses.replace(augment.EAC_EXPRESSION, shared_erasing=True)),
        ("wflw-star", augment.STAR_ALIGNMENT),
        ("300w-farl", augment.FARL_ALIGNMENT),
        ("aflw19-farl", augment.FARL_ALIGNMENT_AFLW19),
        ("lapa-farl", augment.FARL_PARSING_LAPA),
        ("celebamaskhq-farl", augment.FARL_PARSING_CELEBAM),
    ],
)
def test_downstream_protocol_has_its_published_crop_and_augmentation(row: str, published: augment.Augment) -> None:
    c = parsed(f"downstream/{row}")
    preset = plugins.find("tasks", c.task["name"]).augments[c.protocol]
    assert dataclasses.replace(preset, **c.augment) == published


SCHEDULE = {"batch_size": 512, "epochs": 50, "image_size": 224, "seed": 23456}
LARS = {"name": "lars", "momentum": 0.9, "weight_decay": 1e-6, "trust": 0.001, "warmup_epochs": 10}

#: FRA, Tables 5-8: terms (GC, LC, SR), N, lambda_c, lambda_r, decoder layers; RAF-DB, typed from the paper again.
TABLES = {
    "table5-gc": ((True, False, False), 8, 0.5, 0.1, 1, 87.82),
    "table5-sr": ((False, False, True), 8, 0.5, 0.1, 1, 85.34),
    "table5-lc": ((False, True, False), 8, 0.5, 0.1, 1, 87.46),
    "table5-gc-lc": ((True, True, False), 8, 0.5, 0.1, 1, 88.05),
    "table5-all": ((True, True, True), 8, 0.5, 0.1, 1, 88.72),
    "table6-n8": ((True, True, True), 8, 0.5, 0.1, 1, 88.72),
    "table6-n32": ((True, True, True), 32, 0.5, 0.1, 1, 88.36),
    "table6-n64": ((True, True, True), 64, 0.5, 0.1, 1, 88.18),
    "table7-lc1.0-lr0": ((True, True, True), 8, 1.0, 0.0, 1, 87.82),
    "table7-lc0.5-lr0": ((True, True, True), 8, 0.5, 0.0, 1, 88.05),
    "table7-lc0.5-lr0.1": ((True, True, True), 8, 0.5, 0.1, 1, 88.72),
    "table7-lc0.5-lr0.5": ((True, True, True), 8, 0.5, 0.5, 1, 88.45),
    "table7-lc0.5-lr1.0": ((True, True, True), 8, 0.5, 1.0, 1, 88.08),
    "table8-layers0": ((True, True, True), 8, 0.5, 0.1, 0, 87.82),
    "table8-layers1": ((True, True, True), 8, 0.5, 0.1, 1, 88.72),
    "table8-layers2": ((True, True, True), 8, 0.5, 0.1, 2, 89.01),
    "table8-layers3": ((True, True, True), 8, 0.5, 0.1, 3, 89.06),
}


@pytest.mark.fault("D1", "the paper's scores stood beside a variant of FRA for which none are published")
@pytest.mark.parametrize("variant", ["official", "paper"])
@pytest.mark.parametrize("row", TABLES)
def test_ablation_recipe_has_its_row_by_the_release_and_by_the_paper(row: str, variant: str) -> None:
    *settings, score = TABLES[row]
    name = f"fra/ablation/{row}" + ("-paper" if variant == "paper" else "")
    m = parsed(name).method
    found = [(m["use_global"], m["use_local"], m["use_relation"]), m["num_regions"], m["lambda_c"], m["lambda_r"]]
    assert [*found, m["decoder_layers"]] == settings
    assert m["variant"] == variant
    published = f"RAF-DB {score:.2f}" if variant == "official" else "none published"
    assert published in recipes.recipe_text(name)


def test_tables_that_are_listed_here_are_all_that_there_are() -> None:
    ablations = {n.rsplit("/", 1)[1].removesuffix("-paper") for n in recipes.recipes() if "/ablation/" in n}
    assert ablations == set(TABLES)
    assert {n.removeprefix("downstream/") for n in DOWNSTREAM if n.count("/") == 1} == set(PROTOCOLS)
    assert {n.split("/")[0] for n in recipes.recipes() if n not in DOWNSTREAM} == set(PUBLISHED)


def test_a_row_is_printed_as_the_recipe_that_it_stands_for(tmp_path: Path) -> None:
    name = "downstream/table1/celeba-ft-farl"
    text = recipes.recipe_text(name)
    (tmp_path / "mine.yaml").write_text(text)
    values = recipes.read_recipe(str(tmp_path / "mine.yaml"))
    assert values == recipes.read_recipe(name) == recipes.read_recipe(f"recipes/{name}.yaml")
    assert (values["run"], values["source"], values["task"]) == (
        "runs/farl",
        "celeba:/data/CelebA",
        {"name": "attributes", "head": "linear"},
    )
    assert "facessl finetune runs/farl celeba:/data/CelebA --config" in text
    with pytest.raises(UnknownName, match="recipe 'tables'"):
        recipes.read_recipe("tables")


LAUGHS = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "\n".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)
)


@pytest.mark.fault("E9", "a few lines of aliases in a config.yaml took all memory on `--resume`")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "repeat it has more than 10000 values"),
        ("backbone: &b {options: *b}", "repeats what it is a part of"),
        ("views: " + "[" * 1000 + "]" * 1000, "nested more than 20 deep"),
        ("batch_size: " + "9" * 5000, "is not valid YAML"),
        ("source: 2020-13-45", "is not valid YAML"),
        ("a: b: c", "is not valid YAML"),
        ("- fra", "holds no settings"),
        ("1: 2", "the key in line 1 is not a text"),
        ("method: 5", "method = 5 is not valid: give a name"),
        ("method: {name: [fra]}", "method = {'name': ['fra']} is not valid: give a name"),
        ("protocol: [eac]", "protocol = ['eac'] is not valid: give a name"),
        ("print_config: true", "unknown setting 'print_config'"),
        ("base: ITSELF", "is its own base"),
        ("base: nowhere/at-all", "recipe 'nowhere/at-all'"),
        ("#" * 1_000_001, "1,000,001 bytes are more than the 1,000,000 that are read"),
        ("s: \udcff", "cannot be read"),
    ],
    ids=lambda value: value[:20],
)
def test_a_strangers_yaml_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("ITSELF", str(path)), errors="surrogateescape")
    with pytest.raises((ConfigError, UnknownName), match=re.escape(said)) as refused:
        config_parse.parse(["--config", str(path)])
    assert "\n" not in str(refused.value)
    path.rename(tmp_path / "config.yaml")
    with pytest.raises((ConfigError, UnknownName), match=r"config\.yaml is damaged, or is not of|unknown method"):
        config_parse.parse(["--resume", "--out", str(tmp_path)])


@pytest.mark.parametrize("name", ["fra/vggface2-r50", "fra/vggface2-r50-official", "byol/vggface2-r50"])
def test_published_schedule(name: str) -> None:
    config = parsed(name)
    assert {k: getattr(config, k) for k in SCHEDULE} == SCHEDULE
    assert {k: getattr(config.optim, k) for k in LARS} == LARS
    assert config.backbone.name == "resnet50"
    plan = derive(config, 512 * 100)
    assert plan.total_steps == 50 * 100
    assert plan.learning_rate(10 * 100 - 1) == pytest.approx(0.9)
    assert plan.learning_rate(0) == pytest.approx(0.9 / 1000)
    assert plan.learning_rate(30 * 100) == pytest.approx(0.45)
