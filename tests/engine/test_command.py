"""The command that a configuration says of itself composes that configuration."""

import shlex

import pytest

from engine.command import data_of, overrides_of
from engine.config import compose, plain
from engine.identity import identity
from engine.teacher import teacher_config


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("", "method=reverie data=digits"),
        (
            "seed=1 steps=33 data.steps=44 device=cpu log_every=3 run_dir=x overwrite=true",
            "method=reverie data=digits seed=1 data.steps=44 steps=33",
        ),
        ("experiment=cifar10_maze", "experiment=cifar10_maze method=maze data=cifar10"),
        (
            "loss=[at] distiller.losses.at.weight=500 method=kd data.size=16",
            "method=kd data=digits loss=[at] distiller.losses.at.weight=500 data.size=16",
        ),
        (
            "student=torchvision student.model.name=resnet18 data.size=32",
            "method=reverie data=digits student=torchvision student.model.name=resnet18 "
            "data.size=32",
        ),
        (
            "generator=large generator.channels=16 ~student.model.width",
            "method=reverie data=digits generator=large ~student.model.width generator.channels=16",
        ),
    ],
)
def test_short_and_in_the_words_of_train(given: str, wanted: str) -> None:
    config = plain(compose(shlex.split(given)))
    overrides = overrides_of(config)
    assert sorted(overrides) == sorted(shlex.split(wanted))
    assert identity(plain(compose(overrides))) == identity(config)


def test_whatever_can_be_said() -> None:
    given = [
        "data=npz",
        r"data.path='it\'s a=1, {x}\\'",
        r"data.dataset.classes=['1','it\'s',yes,'true','a b','c\\','é',null_]",
        "teacher.mean=[0.1,2,1e-7]",
        "method=kd",
        "~distiller.losses.kd",
        "+distiller.losses.x={weight:2,loss:{_target_:distillers.response.LogitL1}}",
        "optimizer={_target_:torch.optim.Adam,_partial_:true,lr:1e-5,betas:[0.5,0.9]}",
        "synthesis=null",
        "clip=1.5",
    ]
    config = plain(compose(given))
    assert identity(plain(compose(overrides_of(config)))) == identity(config)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("data=digits method=kd", "data=digits"),
        ("experiment=wine_splits seed=3 data.steps=9", "data=wine data.dataset.split=3"),
        (
            "data=csv data.path=a.csv data.dataset.test_path=b.csv data.size=null steps=4",
            "data=csv data.path=a.csv data.dataset.test_path=b.csv",
        ),
        ("data=mnist data.size=28 data.training.steps=3", "data=mnist data.size=28"),
    ],
)
def test_data_alone_for_programs_that_measure(given: str, wanted: str) -> None:
    config = plain(compose(given.split()))
    assert sorted(data_of(config)) == sorted(wanted.split())
    again = plain(compose(data_of(config)))["data"]
    assert again["dataset"] == config["data"]["dataset"]


def test_a_teachers_run_has_a_command_of_its_own() -> None:
    parent = compose(["experiment=mnist_dafl", "teacher=lenet5", "data.size=28", "seed=3"])
    config = plain(teacher_config(parent))
    overrides = overrides_of(config)
    assert {"method=scratch", "data=mnist", "student=lenet5", "data.size=28"} <= {*overrides}
    assert identity(plain(compose(overrides))) == identity(config)


def test_settings_that_no_command_brings() -> None:
    config = plain(compose([]))
    config["choices"]["method"] = "none_of_ours"
    with pytest.raises(ValueError, match="none_of_ours"):
        overrides_of(config)
    config = plain(compose([]))
    config["data"]["path"] = "$" + "{is this an interpolation}"
    with pytest.raises(ValueError, match="no command"):
        overrides_of(config)
    config = plain(compose([]))
    config["data"]["dataset"]["size"] = 16  # which is data.size everywhere
    assert identity(plain(compose(overrides_of(config)))) == identity(config)


def test_a_number_of_steps_takes_the_place_of_an_experiments_budget() -> None:
    """Also the number that is the default elsewhere."""
    usual = compose(["method=soft_labels"]).steps
    config = plain(compose(["experiment=digits_to_edges", f"steps={usual}"]))
    words = overrides_of(config)
    assert f"steps={usual}" in words
    assert compose(words).budget is None
