"""The schema of recipes, what it refuses and how it says so, and that each recipe is the experiment that it names."""

import contextlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import SMALL_CUTOFFS, random_ids, scaled_down
from transformer_xl import TransfoXLConfig, TransfoXLLMHeadModel
from transformer_xl.configuration import PRESETS
from transformer_xl.data.corpora import KNOWN
from transformer_xl.data.opening import CorpusOptions
from transformer_xl.training.recipe import Recipe, make_recipe, read_recipe, write_recipe

ROOT = Path(__file__).parents[1]
RECIPES = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.toml"))}

# As `transformer-xl prepare` makes them; docs/data.md says where 205 comes from, the authors' enwik8 has 204.
VOCAB_SIZES = {
    "enwik8": 205,
    "text8": 27,
    "wikitext-103": 267_735,
    "wikitext-2": 33_278,
    "ptb": 10_000,
    "lm1b": 793_471,
}
OWN_COUNTS = {
    "text8-base": 40_964_635,
    "wt103-base-tf": 56_385_628,
    "ptb-small": 3_855_376,
    "wikitext2-small": 3_451_624,
    "text8-small": 1_930_587,
    "enwik8-small": 1_964_941,
}
PUBLISHED_COUNTS = {
    "enwik8-base": (41_055_949, "41M"),
    "enwik8-large": (277_232_845, "277M"),
    "enwik8-large-tf": (277_232_845, "277M"),
    "text8-large": (277_050_395, "277M"),
    "text8-large-tf": (277_050_395, "277M"),
    "wt103-base": (151_107_538, "151M"),
    "lm1b-base": (469_020_530, "0.46B"),
    "lm1b-large": (841_295_982, "0.8B"),
    "lm1b-large-tf": (841_354_862, "0.8B"),
}
DIFFERENT_COUNTS = {"wt103-large": 285_170_506, "wt103-large-tf": 285_205_322, "ptb": 26_362_960}
COUNTS = {**OWN_COUNTS, **DIFFERENT_COUNTS, **{name: exact for name, (exact, _) in PUBLISHED_COUNTS.items()}}


def n_parameters(recipe: Recipe, vocab_size: int | None = None) -> int:
    """How many weights the model of a recipe has, without making them."""
    with torch.device("meta"):
        model = TransfoXLLMHeadModel(recipe.config(vocab_size or VOCAB_SIZES[recipe.data.corpus]))
    return sum(parameter.numel() for parameter in model.parameters())


def a_recipe(**tables):
    """The shortest recipe, with changes to its tables."""
    shortest = {
        "title": "a test",
        "data": {"path": "text.txt"},
        "model": {},
        "train": {"batch_size": 4, "max_steps": 10},
    }
    return make_recipe({**shortest, **tables})


def write_toml(folder: Path, text: str = "") -> Path:
    """The shortest recipe as a file, with more lines."""
    path = folder / "recipe.toml"
    lines = ['title = "a test"', "[model]", "[train]", "batch_size = 4", "max_steps = 10", "[data]", 'path = "a.txt"']
    path.write_text("\n".join([*lines, text]), encoding="utf-8")
    return path


# Each recipe


def test_every_recipe_has_an_expected_size():
    assert set(RECIPES) == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_a_recipe_builds_a_model_of_the_size_that_it_states(name):
    recipe = read_recipe(RECIPES[name])
    assert n_parameters(recipe) == COUNTS[name]
    assert f"{COUNTS[name]:,}" in RECIPES[name].read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "exact", "printed"), [(name, *both) for name, both in PUBLISHED_COUNTS.items()])
def test_the_size_is_the_one_that_the_paper_prints(name, exact, printed):
    """To the last printed digit, rounded either way: the paper has 0.46B for 0.469 and 41M for 41.06."""
    digits, unit = printed[:-1], {"M": 1e6, "B": 1e9}[printed[-1]]
    n_decimals = len(digits.partition(".")[2])
    assert abs(exact - float(digits) * unit) < unit * 10**-n_decimals
    assert f"(paper: {printed})" in RECIPES[name].read_text(encoding="utf-8")


def test_sizes_that_are_not_the_papers_are_explained():
    """Against what the authors' scripts print, and the difference term by term."""
    enwik8, wt103, wt103_tf = (read_recipe(RECIPES[name]) for name in ("enwik8-base", "wt103-large", "wt103-large-tf"))
    assert n_parameters(enwik8) - n_parameters(enwik8, 204) == 512 + 1  # a symbol's embedding and bias
    printed_by_their_script, layers, width = 285_170_506, 18, 1024
    assert n_parameters(wt103) == printed_by_their_script
    assert n_parameters(wt103_tf) == printed_by_their_script + (layers - 1) * 2 * width  # u and v for each layer
    theirs, layers, width = 24_040_400, 16, 380
    own_distance_matrices, own_biases = layers * width * width, layers * 2 * width
    assert n_parameters(read_recipe(RECIPES["ptb"])) == theirs + own_distance_matrices + own_biases


@pytest.mark.parametrize("preset", PRESETS)
def test_recipes_and_presets_are_the_same_models(preset):
    """The preset wt103-large is the TensorFlow one, whose weights were released."""
    recipe = read_recipe(RECIPES["wt103-large-tf" if preset == "wt103-large" else preset])
    vocab_size = PRESETS[preset].get("vocab_size", 267_735)
    made, wanted = (config.to_dict() for config in (recipe.config(vocab_size), TransfoXLConfig.preset(preset)))
    names = {*PRESETS[preset], "tie_projs"} & set(made)
    assert {name: made[name] for name in names} == {name: wanted[name] for name in names}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_its_corpus_and_writes_out_its_model(name):
    recipe = read_recipe(RECIPES[name])
    assert recipe.data.corpus in KNOWN
    assert CorpusOptions(corpus=recipe.data.corpus).known is not None
    assert not Path(recipe.data.path).is_absolute()
    decisive = {
        "attn_type", "n_layer", "d_model", "d_embed", "n_head", "d_head", "d_inner", "adaptive", "cutoffs", "div_val",
        "dropout", "dropatt", "untie_r", "pre_lnorm", "tgt_len", "mem_len", "ext_len", "same_length", "clamp_len",
        "initial_memory", "init", "init_std", "proj_init_std", "tie_word_embeddings",
    }  # fmt: skip
    assert decisive <= set(recipe.model)


@pytest.mark.parametrize("name", RECIPES)
def test_memory_starts_as_in_the_code_that_a_recipe_follows(name):
    config = read_recipe(RECIPES[name]).config(VOCAB_SIZES["lm1b"])
    is_tensorflow = name.endswith("-tf")
    assert config.initial_memory == ("zeros" if is_tensorflow else "empty")
    assert config.span_counts_self is not is_tensorflow
    assert config.layer_norm_epsilon == (1e-12 if is_tensorflow else 1e-5)


@pytest.mark.parametrize(
    ("name", "tgt_len", "mem_len", "clamp_len"),
    [
        ("enwik8-base", 80, 2100, 820),
        ("enwik8-large-tf", 128, 3800, 1000),
        ("text8-large-tf", 128, 3800, 1000),
        ("wt103-base", 64, 640, 400),
        ("wt103-large-tf", 128, 1600, 1000),
        ("lm1b-base", 32, 128, -1),
    ],
)
def test_the_test_text_is_read_as_in_the_paper(name, tgt_len, mem_len, clamp_len):
    test = read_recipe(RECIPES[name]).test
    assert (test.tgt_len, test.mem_len, test.clamp_len, test.same_length) == (tgt_len, mem_len, clamp_len, True)


def test_penn_treebank_is_read_without_memory_and_with_a_temperature():
    recipe = read_recipe(RECIPES["ptb"])
    assert (recipe.test.tgt_len, recipe.test.ext_len, recipe.test.mem_len) == (10, 130, 0)
    assert (recipe.test.batch_size, recipe.test.temperature, recipe.evaluation.temperature) == (1, 1.08, 1.0)


def changes_in_the_documentation() -> list[str]:
    """The changes to wt103-base in the tables 6 and 10 of docs/reproducing.md, their shell variables filled in."""
    text = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
    variables = dict(re.findall(r'^([A-Z]+)="(.*)"$', text, re.MULTILINE))
    cells = re.findall(r"^\|.*\| `([^`]*\$[A-Z]+[^`]*)` \|", text, re.MULTILINE)
    return [re.sub(r"\$([A-Z]+)", lambda found: variables[found[1]], cell) for cell in cells]


@pytest.mark.parametrize("options", changes_in_the_documentation())
def test_the_variants_in_the_documentation_are_possible(options):
    recipe = read_recipe(RECIPES["wt103-base"], [word for word in shlex.split(options) if word != "--set"])
    config = recipe.config(VOCAB_SIZES["wikitext-103"])
    for table in (recipe.evaluation, recipe.test):
        TransfoXLConfig(**{**config.to_dict(), "mem_len": table.mem_len})
        assert config.attn_type != 3 or table.tgt_len <= config.n_position_rows


def test_the_documentation_has_all_variants_of_tables_6_and_10():
    assert len(changes_in_the_documentation()) == 9 + 4


@pytest.mark.parametrize("name", RECIPES)
def test_a_scaled_down_recipe_keeps_its_options_and_learns(name):
    recipe = read_recipe(RECIPES[name])
    small = scaled_down(recipe)
    for table in ("optimizer", "regularisation"):
        assert getattr(small, table) == getattr(recipe, table)
    for table, key in [("schedule", "name"), ("averaging", "name"), ("data", "packed"), ("data", "varied_lengths")]:
        assert getattr(getattr(small, table), key) == getattr(getattr(recipe, table), key)
    config = small.config(SMALL_CUTOFFS[-1] + 5)
    whole = recipe.config(VOCAB_SIZES[recipe.data.corpus])
    for key in ("attn_type", "div_val", "same_length", "initial_memory", "untie_r", "tie_projs"):
        assert getattr(config, key) == getattr(whole, key)
    assert len(config.cluster_cutoffs) == len(whole.cluster_cutoffs)
    assert (config.mem_len > 0, config.ext_len > 0) == (whole.mem_len > 0, whole.ext_len > 0)

    torch.manual_seed(0)
    model = TransfoXLLMHeadModel(config)
    assert sum(parameter.numel() for parameter in model.parameters()) < 200_000
    ids, mems = random_ids(2, 2 * config.tgt_len + 1, vocab_size=config.vocab_size), None
    for first in (0, config.tgt_len):
        segment = slice(first, first + config.tgt_len)
        output = model(ids[:, :-1][:, segment], mems=mems, shift_labels=ids[:, 1:][:, segment])
        output.loss.backward()
        mems = output.mems
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


# What is refused, and how


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"optimiser": {"lr": 1.0}}, "optimiser is unknown: did you mean optimizer?"),
        ({"optimizer": {"lrr": 1.0}}, "optimizer.lrr is unknown: did you mean optimizer.lr?"),
        ({"schedule": {"warmup_step": 5}}, "schedule.warmup_step is unknown: did you mean schedule.warmup_steps?"),
        ({"model": {"n_layers": 5}}, "model.n_layers is unknown: did you mean model.n_layer?"),
        ({"model": {"zzzz": 5}}, "model.zzzz is unknown: see docs/recipes.md for the keys of model."),
        ({"zzzz": 5}, "zzzz is unknown: see docs/recipes.md for the keys of a recipe."),
        ({"train": {"batch_size": 4}}, "train.max_steps is missing: give it a value."),
        ({"title": ""}, "title='' must not be empty."),
        ({"data": "text.txt"}, "data='text.txt' must be a table."),
        ({"model": 3}, "model=3 must be a table."),
        ({"data": {"path": 3}}, "data.path=3 must be a valid string."),
        (
            {"data": {"path": "a", "mode": "word"}},
            "data.mode='word' must be 'words', 'characters', 'moses' or 'bytes'.",
        ),
        ({"optimizer": {"name": "lamb"}}, "optimizer.name='lamb' must be 'adam', 'adamw', 'sgd', 'adagrad' or 'muon'."),
        ({"optimizer": {"lr": 0.0}}, "optimizer.lr=0.0 must be greater than 0."),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr=nan must be a finite number."),
        ({"optimizer": {"lr": True}}, "optimizer.lr=True must be a valid number."),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas=[0.9] must hold two numbers from 0 to below 1."),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "optimizer.betas=[0.9, 1.0] must hold two numbers from 0 to below 1."),
        ({"schedule": {"lr_min": 1.0}}, "schedule.lr_min=1.0 must be at most optimizer.lr=0.00025."),
        ({"train": {"batch_size": 2.5, "max_steps": 1}}, "train.batch_size=2.5 must be a valid integer."),
        (
            {"train": {"batch_size": 4, "max_steps": 1, "accumulation": 3}},
            "train.batch_size=4 must be a multiple of train.accumulation=3.",
        ),
        (
            {"train": {"batch_size": 4, "max_steps": 1, "parallel": "fsdp"}, "optimizer": {"name": "muon"}},
            "optimizer.name='muon' must be another than muon with train.parallel='fsdp', which leaves no process a "
            "whole matrix.",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_told_in_one_line(tables, message):
    with pytest.raises(ValueError, match=f"^{re.escape('recipe: ' + message)}$"):
        a_recipe(**tables)


def test_the_line_names_the_file(tmp_path):
    path = write_toml(tmp_path, "[log]\nevry = 3\n")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: log.evry is unknown: did you mean log.every\\?$"):
        read_recipe(path)


def test_a_model_that_cannot_be_is_told_in_one_line():
    with pytest.raises(ValueError, match=r"^model\.dropout=2\.0 must be a probability: pass a number from 0 to 1\.$"):
        a_recipe(model={"dropout": 2.0}).config(300_000)
    with pytest.raises(ValueError, match=r"^model\.d_model='wide' must be an integer\.$"):
        a_recipe(model={"d_model": "wide"}).config(300_000)


def test_a_model_with_fewer_tokens_than_its_text_is_refused():
    recipe = a_recipe(model={"vocab_size": 100, "cutoffs": []})
    rule = r"be at least 101, the size of the corpus's vocabulary, or be left out"
    with pytest.raises(ValueError, match=rf"^model\.vocab_size=100 must {rule}\.$"):
        recipe.config(101)
    assert recipe.config(99).vocab_size == 100


@pytest.mark.parametrize("content", [b"title = ", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_file_that_is_no_toml_is_refused(tmp_path, content):
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is no TOML file: [^\n]*$"):
        read_recipe(path)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "recipe.toml")


# Changes


@pytest.mark.parametrize(
    ("change", "table", "key", "value"),
    [
        ("train.max_steps=30", "train", "max_steps", 30),
        ("train.max_steps = 1_000", "train", "max_steps", 1000),
        ("optimizer.lr=5e-4", "optimizer", "lr", 5e-4),
        ("optimizer.lr=1", "optimizer", "lr", 1.0),
        ("optimizer.betas=[0.5, 0.6]", "optimizer", "betas", [0.5, 0.6]),
        ("train.compile=true", "train", "compile", True),
        ("data.path=/some/folder=1", "data", "path", "/some/folder=1"),
        ("data.path='1234'", "data", "path", "1234"),
        ("train.precision=bfloat16", "train", "precision", "bfloat16"),
        ("test.clamp_len=-1", "test", "clamp_len", -1),
    ],
)
def test_a_change_replaces_a_value(tmp_path, change, table, key, value):
    found = getattr(getattr(read_recipe(write_toml(tmp_path), [change]), table), key)
    assert found == value
    assert type(found) is type(value)


def test_changes_reach_the_title_and_the_model_and_the_last_one_wins(tmp_path):
    changes = ["title=Another one", "model.cutoffs=[5, 7]", "model.div_val=1", "model.div_val=2"]
    recipe = read_recipe(write_toml(tmp_path), changes)
    assert recipe.title == "Another one"
    assert recipe.model == {"cutoffs": [5, 7], "div_val": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.max_steps", "--set train.max_steps must be KEY=VALUE, such as train.max_steps=30."),
        ("=3", "--set =3 must be KEY=VALUE, such as train.max_steps=30."),
        ("train.=3", "--set train.=3 must be KEY=VALUE, such as train.max_steps=30."),
        (".max_steps=3", "--set .max_steps=3 must be KEY=VALUE, such as train.max_steps=30."),
        ("max_steps=3", "--set max_steps=3 names no table: write TABLE.KEY=VALUE, such as train.max_steps=30."),
        ("title.max_steps=3", "--set title.max_steps=3: title is a value, no table."),
    ],
)
def test_a_change_that_is_none_is_told_in_one_line(tmp_path, change, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_recipe(write_toml(tmp_path), [change])


def test_an_unknown_key_in_a_change_is_refused_like_one_in_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"train\.max_step is unknown: did you mean train\.max_steps\?$"):
        read_recipe(write_toml(tmp_path), ["train.max_step=3"])


@given(change=st.text(max_size=30) | st.sampled_from(["train.seed=", "data.path=", "model.d_model=", "a.b.c="]))
def test_no_change_ends_in_anything_but_a_value_error(change, tmp_path_factory):
    path = write_toml(tmp_path_factory.getbasetemp())
    with contextlib.suppress(ValueError):  # anything else ends the test
        read_recipe(path, [change])


# Writing


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_was_written_is_read_back_the_same(tmp_path, name):
    recipe = read_recipe(RECIPES[name], ['data.path=a folder/with "quotes" and a \\ and umlauts äöü'])
    write_recipe(tmp_path / "recipe.toml", recipe)
    assert read_recipe(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_written_with_its_model_makes_the_same_model(tmp_path, name):
    recipe = read_recipe(RECIPES[name])
    vocab_size = VOCAB_SIZES[recipe.data.corpus]
    config = recipe.config(vocab_size)
    write_recipe(tmp_path / "recipe.toml", recipe, config)
    again = read_recipe(tmp_path / "recipe.toml")
    assert again.config(vocab_size).to_dict() == config.to_dict()
    assert again.model["vocab_size"] == vocab_size
    assert again.model_copy(update={"model": recipe.model}) == recipe


def test_a_written_recipe_holds_the_defaults_too(tmp_path):
    write_recipe(tmp_path / "recipe.toml", a_recipe())
    text = (tmp_path / "recipe.toml").read_text(encoding="utf-8")
    for line in ("seed = 1111", "clip_norm = 0.25", 'precision = "float32"', "warmup_steps = 0", "keep = 2"):
        assert line in text
    assert "max_minutes" not in text  # TOML knows no null: what is unset is left out
