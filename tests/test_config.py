import numpy as np
import pytest

from carbrand import config
from carbrand.errors import ConfigError
from carbrand.training import train  # noqa: F401 (registers the names)
from carbrand.training.model import ModelSpec
from carbrand.training.optimizer import OptimizerSpec


@pytest.fixture(autouse=True)
def _forget_bindings():
    yield
    config.parse()


def test_bindings_win_over_files(tmp_path):
    (tmp_path / "a.gin").write_text("model.variant = 'v1.5'\nmodel.dropout = 0.1\n")
    config.parse([str(tmp_path / "a.gin")], ["model.dropout = 0.2"])
    assert ModelSpec() == ModelSpec(variant="v1.5", dropout=0.2)


def test_parse_forgets_what_was_parsed_before():
    config.parse(bindings=["model.dropout = 0.2"])
    config.parse()
    assert ModelSpec().dropout == 0


@pytest.mark.parametrize("name", ["probe", "finetune", "scratch", "smoke", "demo"])
def test_recipes_parse_and_their_names_resolve(name):
    for spelling in (f"gin_configs/{name}.gin", f"{name}.gin"):
        assert config.find_recipe(spelling).samefile(config.find_recipe(name))
    config.parse([name])


def test_unknown_recipe_names_those_that_exist():
    with pytest.raises(
        ConfigError, match="nothere: no such gin file, .* Recipes: demo, finetune, probe, scratch, smoke"
    ):
        config.parse(["nothere"])


@pytest.mark.parametrize("name", ["", "."])
def test_a_recipe_without_a_name_raises(name):  # of a variable of the shell that is not set
    with pytest.raises(ConfigError, match="no such gin file"):
        config.find_recipe(name)


@pytest.mark.parametrize(
    ("binding", "nearest"),
    [
        ("trian.run.epochs = 3", "train.run.epochs"),
        ("train.run.epoch = 3", "train.run.epochs"),
        ("model.varant = 'v1'", "model.variant"),
        ("augment.colour_jitter = 0.1", "augment.color_jitter"),
        ("weight.path = 'imagenet'", "weights.path"),
    ],
)
def test_misspelt_binding_suggests_the_nearest_name(binding, nearest):
    with pytest.raises(ConfigError, match=f"Did you mean {nearest}\\?"):
        config.parse(bindings=[binding])


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("batch_size = 4", r"batch_size=4: sets nothing. Did you mean train.run.batch_size\?"),
        ("learning_rat = 9.0", r"learning_rat=9.0: sets nothing. Did you mean optimizer.learning_rate\?"),
        ("main/optimizer.learning_rate = 7.0", r"main/optimizer.*=7.0: sets nothing. Did you mean optimizer.learning_"),
        ("train.run.run_dir = 'zzz'", "--gin_param .*: train.run.run_dir is given on the command line. Remove it here"),
        ("train.run.epochs = %n", "%n: is not set. Add, for example, n = 1, or give a value"),
    ],
)
def test_a_binding_that_sets_nothing_raises(binding, message):
    with pytest.raises(ConfigError, match=message):
        config.parse(bindings=[binding])


@pytest.mark.parametrize(
    ("bindings", "names"),
    [
        (["optimizer.learning_rate = @optimizer()"], "optimizer -> optimizer"),
        (["model.dropout = %a", "a = %b", "b = (0, %a)"], "%a -> %b -> %a|%b -> %a -> %b"),
    ],
)
def test_bindings_that_refer_to_themselves_raise(bindings, names):
    with pytest.raises(ConfigError, match=f"({names}): gin's bindings refer to themselves"):
        config.parse(bindings=bindings)


def test_macros_and_scopes_that_are_used_may_stand_anywhere(tmp_path):
    (tmp_path / "a.gin").write_text("optimizer.learning_rate = %rate\nmodel.dropout = %drop\ndrop = 0.5\n")
    more = ["rate = %low", "low = 0.3", "model.dropout = 0.1"]
    config.parse([str(tmp_path / "a.gin")], [*more, "train.run.augment = @few/augment()", "few/augment.flip = False"])
    assert OptimizerSpec().learning_rate == 0.3
    assert ModelSpec().dropout == 0.1


def test_misspelt_name_in_a_file_is_found_by_its_line(tmp_path):
    (tmp_path / "a.gin").write_text("model.dropout = 0.1\n\nmodel.droput = 0.1\n")
    with pytest.raises(ConfigError, match=r"a.gin, line 3: .*Did you mean model.dropout\?"):
        config.parse([str(tmp_path / "a.gin")])


@pytest.mark.parametrize("binding", ["model.variant = v1", "model.variant ==", "model.variant"])
def test_bad_syntax_says_what_a_value_is(binding):
    with pytest.raises(ConfigError, match="A value is a Python literal"):
        config.parse(bindings=[binding])


@pytest.mark.parametrize(("line", "message"), [("include 'no.gin'", "no.gin"), ("import nowhere", "nowhere")])
def test_what_a_file_needs_and_is_not_there_raises(line, message):
    with pytest.raises(ConfigError, match=message):
        config.parse(bindings=[line])


def test_wrong_value_is_refused_when_used():
    config.parse(bindings=["model.variant = 'v9'"])
    with pytest.raises(ConfigError, match="model.variant='v9' is not one of 'v1', 'v1.5'"):
        ModelSpec()


def test_as_gin_is_parsed_back():
    groups = {"model": {"variant": "v1.5", "hidden_units": (8,)}, "train.run": {"epochs": 3.5}}
    config.parse(bindings=[config.as_gin(groups)])
    assert ModelSpec() == ModelSpec(variant="v1.5", hidden_units=(8,))


def test_numbers_of_numpy_are_parsed_back():
    values = {"dropout": np.float64(0.03), "variant": np.str_("v1"), "hidden_units": (np.int64(8),)}
    assert config.as_gin({"model": values}) == (
        "model.dropout = 0.03\nmodel.variant = 'v1'\nmodel.hidden_units = (8,)\n"
    )


def test_names_that_others_rely_on():
    config.parse(
        bindings=[
            "train.run.epochs = 1", "train.run.batch_size = 8", "train.run.seed = 1", "train.run.deterministic = False",
            "weights.path = None", "model.variant = 'v1'", "model.freeze_until = 'conv4'",
        ]
    )  # fmt: skip
    assert ModelSpec().freeze_until == "conv4"
