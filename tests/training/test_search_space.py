import pytest

from carbrand import config
from carbrand.errors import ConfigError
from carbrand.training import search_check, search_space

TEXT = """# comment
optimizer.learning_rate = log(1e-4, 1e-1)   # another
model.dropout = uniform(0, 0.5)

train.run.epochs = int(2, 10)
optimizer.name = choice('sgd',
                        'adamw')
model.hidden_units = choice((), (64, 32), None, -1)
"""


def test_each_kind_of_line():
    parameters = search_space.parse(TEXT, "a.space")
    assert [(p.name, p.kind, p.values, p.line) for p in parameters] == [
        ("optimizer.learning_rate", "log", (1e-4, 0.1), 2),
        ("model.dropout", "uniform", (0.0, 0.5), 3),
        ("train.run.epochs", "int", (2, 10), 5),
        ("optimizer.name", "choice", ("'sgd'", "'adamw'"), 6),
        ("model.hidden_units", "choice", ("()", "(64, 32)", "None", "-1"), 8),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nmodel.dropout = uniform(0, 0.5", r"a.space, line 2: model.dropout = uniform\(0, 0.5: cannot be read"),
        ("model.dropout", "a.space, line 1: model.dropout: no NAME = VALUES. Write, for example"),
        ("dropout = uniform(0, 0.5)", "line 1: dropout = .*: dropout is no gin name. Give a name with a dot"),
        ("a/model.dropout = uniform(0, 0.5)", "cannot be read"),
        ("model.dropout[0] = uniform(0, 0.5)", r"model.dropout\[0\] is no gin name"),
        ("model.dropout = 0.5", "model.dropout = 0.5: one value is not searched. Put it into the recipe, or give"),
        ("model.dropout = unifrm(0, 0.5)", r"unifrm\(\) is not known. Did you mean uniform\?"),
        ("model.dropout = q(0, 0.5)", r"q\(\) is not known. Give log\(1e-4, 1e-1\), "),
        ("model.dropout = uniform(low=0, high=1)", "uniform takes values without names. Write uniform"),
        ("model.dropout = uniform(0)", r"uniform takes two numbers. Write uniform\(0, 0.5\)"),
        ("model.dropout = uniform(0, '1')", "uniform takes two numbers"),
        ("model.dropout = uniform(False, True)", "uniform takes two numbers"),
        ("model.dropout = uniform(0, 1e999)", "uniform takes two numbers"),
        ("model.dropout = uniform(0.5, 0)", "the first limit, 0.5, is not below the second, 0"),
        ("optimizer.learning_rate = log(0, 1)", "the lower limit of log is 0. Give one above 0, or uniform"),
        ("train.run.epochs = int(2, 10.5)", "the limits of int are whole numbers"),
        ("train.run.batch_size = choice(16)", "choice takes two or more different values"),
        ("train.run.batch_size = choice(16, 16)", "choice takes two or more different values"),
        ("train.run.batch_size = choice(16, len)", "len is no Python literal. Give numbers, strings in quotes"),
        ("train.run.batch_size = choice(16, len('a'))", r"len\('a'\) is no Python literal"),
        ("a.b = int(1, 2)\na.b = int(1, 3)", "a.space, line 2: a.b stands in line 1 already. Remove one"),
        ("# nothing", "a.space: no parameter to search"),
        ("a.b = int(1, 2)\0", "a.space, line 1: .*cannot be read"),
    ],
)
def test_a_line_that_cannot_be_searched_is_named(text, message):
    with pytest.raises(ConfigError, match=message):
        search_space.parse(text, "a.space")


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="none: no such search space, nor one of carbrand's. Spaces: finetune, probe"):
        config.find_space("none")
    (tmp_path / "x.space").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="x.space: cannot be read as a search space"):
        search_space.load(tmp_path / "x.space")


@pytest.mark.parametrize(
    ("line", "value", "found"),
    [
        ("a.b = log(1e-4, 1e-1)", 0.01, 0.01),
        ("a.b = log(1e-4, 1e-1)", 1, None),
        ("a.b = uniform(0, 1)", 1, 1.0),
        ("a.b = uniform(0, 1)", True, None),
        ("a.b = int(2, 10)", 4.0, 4),
        ("a.b = int(2, 10)", 4.5, None),
        ("a.b = choice('x', None)", None, "None"),
        ("a.b = choice('x', None)", "y", None),
    ],
)
def test_a_recipe_s_value_is_found_in_the_space(line, value, found):
    (parameter,) = search_space.parse(line, "")
    assert repr(parameter.find(value)) == repr(found)


def test_the_recipe_s_values_are_those_bound_and_the_defaults():
    bindings = {"x, line 1": "optimizer.learning_rate = 1", "x, line 2": "optimizer.weight_decay = 1"}
    assert search_check.recipe_values(["probe"], ["train.run.epochs = 7"], bindings) == {
        "optimizer.learning_rate": "0.03",
        "optimizer.weight_decay": "0.0001",
        "train.run.epochs": "7",
        "train.run.head_epochs": "0.0",
    }


def test_an_unknown_name_is_named_with_its_line_and_the_nearest():
    with pytest.raises(ConfigError, match=r"x, line 3: No configurable .* Did you mean optimizer.learning_rate\?"):
        search_check.recipe_values([], [], {"x, line 3": "optimiser.learning_rate = 1"})


@pytest.mark.parametrize("name", ["probe", "finetune"])
def test_our_spaces_hold_the_values_of_the_recipe_of_the_same_name(name):
    parameters = search_space.load(config.find_space(name))
    values = search_check.recipe_values([name], [], {str(p.line): p.binding(p.values[0]) for p in parameters})
    for parameter in parameters:
        assert parameter.find(search_space.literal(values[parameter.name])) is not None
