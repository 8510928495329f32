"""Every mistake in a configuration is reported, all at once, before anything is built."""

import itertools
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import engine.choices
import train
from engine.choices import ROOT, groups
from engine.config import ConfigError, compose
from engine.keys import set_key
from engine.overrides import sort_overrides

METHODS = sorted(p.stem for p in (ROOT / "method").glob("*.yaml"))
DATA = sorted({p.stem for p in (ROOT / "data").glob("*.yaml")} - {"none"})
DOCUMENTED = [
    "seed=3",
    "steps=7",
    "run_dir=here",
    "device=cpu",
    "device=auto",
    "device=cuda",
    "precision=bf16",
    "compile=true",
    "overwrite=true",
    "teacher.checkpoint=t.safetensors",
    "teacher.mean=[0.5]",
    "teacher.std=[0.5]",
    "data.root=elsewhere",
    "data.path=file.npz",
]
# What is written, and what the report has to say about it.
MISTAKES = [
    ("term=at", "term", "it is called loss now"),
    ("distiller.terms.kd.weight=2", "distiller.terms", "called distiller.losses.kd.weight now"),
    ("source.optimizer.lr=1", "source.optimizer.lr", "called synthesizer.optimizer.lr now"),
    ("source.synthesis_batch_size=8", "source.synthesis", "called synthesizer.size now"),
    ("source.reuse=true", "source.reuse", "called source.streams.fresh.reuse now"),
    ("sede=1", "sede", "did you mean 'seed'?"),
    ("metod=dafl", "metod", "did you mean method?"),
    ("checkpoint=t.pt", "checkpoint", "did you mean 'checkpoints'?"),
    ("method=dafll", "method=dafll", "did you mean 'dafl'?"),
    ("data=emnist", "data=emnist", "did you mean"),
    ("teacher=lenet_5", "teacher=lenet_5", "did you mean 'lenet5'?"),
    ("student=zzz", "student=zzz", "there is: digits_cnn, "),
    ("experiment=none", "experiment=none", "no 'none'"),
    ("steps=many", "steps='many'", "a whole number"),
    ("steps=0", "steps=0", "at least 1"),
    ("batch_size=0", "batch_size=0", "at least 1"),
    ("log_every=0", "log_every=0", "at least 1"),
    ("checkpoints=1000000000000", "checkpoints=1000000000000", "at most 1000000"),
    ("checkpoints=-1", "checkpoints=-1", "at least 0"),
    ("seed=", "seed=''", "a whole number"),
    ("seed=1.5", "seed=1.5", "a whole number"),
    ("compile=2", "compile=2", "true or false"),
    ("device=gpu", "device='gpu'", "one of auto, cpu, cuda"),
    ("precision=fp16", "precision='fp16'", "one of fp32, bf16"),
    ("teacher.mean=0.5", "teacher.mean=0.5", "list[float]"),
    ("teacher.mean=[a]", "teacher.mean=['a']", "list[float]"),
    ("teacher.chekpoint=a", "teacher.chekpoint", "did you mean 'checkpoint'?"),
    ("teacher.model.widht=3", "teacher.model.widht", "did you mean 'width'?"),
    ("teacher.model.width=a", "teacher.model.width='a'", "a whole number"),
    ("student.model._target_=models.digits.DigitsCnn", "_target_", "models.digits.DigitsCNN?"),
    ("student.model._target_=model.digits.DigitsCNN", "_target_", "no module 'model.digits'"),
    ("student.model._target_=torch.pi", "_target_", "not something that builds"),
    ("source.studnet_steps=2", "source.studnet_steps", "did you mean 'student_steps'?"),
    ("synthesizer.optimizer.lr=[1]", "lr=[1]", "a number"),
    ("synthesizer.optimizer=adam", "synthesizer.optimizer='adam'", ""),
    ("synthesizer.generator=large", "generator='large'", ""),
    ("optimizer=adam", "optimizer", "_target_"),
    ("optimizer.lr_rate=1", "optimizer.lr_rate", "no 'lr_rate'"),
    ("schedule=null", "schedule", "_target_"),
    ("distiller.losses.kd.wieght=2", "distiller.losses.kd.wieght", "did you mean 'weight'?"),
    ("distiller.losses.kd.weight=a", "distiller.losses.kd.weight='a'", "a number"),
    ("distiller.losses.kd.loss.temprature=2", "loss.temprature", "did you mean 'temperature'?"),
    ("distiller.losses.kd=null", "distiller.losses.kd", "group of keys"),
    ("distiller.losses.kd=4", "distiller.losses.kd", "group of keys"),
    ("distiller.losses=4", "distiller.losses", "group of keys"),
    ("data.dataset=x", "data.dataset", "builds a part"),
    ("distiller=[]", "distiller", "group of keys"),
    ("distiller=null", "distiller", "group of keys"),
    ("synthesis.losses.onehott.weight=1", "onehott", "did you mean 'onehot'?"),
    ("data.training.lr=fast", "data.training.lr='fast'", "a number"),
    ("data.training.epochs=4", "data.training.epochs", ""),
    ("data.path=x", "data.path: data=digits reads no file", "leave it out"),
    ("data.root.x=4", "data.root.x", ""),
    ("student=timm", "student.model.name", "not set"),
    ("~seed", "seed", "set another value"),
    ("~teacher.mean", "teacher.mean", "set another value"),
    ("~nothing", "nothing", "no 'nothing'"),
    ("seed=1,2", "seed=1,2", "one run for each"),
    ("steps=range(1,3)", "steps=range(1,3)", "one run for each"),
    ("seed", "'seed'", "key=value"),
    ("--verbose", "'--verbose'", "key=value"),
    ("seed=[1", "'seed=[1'", "key=value"),
    ("run_dir=${nowhere}", "nowhere", "quote ${ that is text: '\\${'"),
    ("teacher.checkpoint=", "teacher.checkpoint", "empty"),
    ("optimizer.lr=nan", "optimizer.lr=nan", "finite"),
    ("distiller.losses.kd.weight=inf", "distiller.losses.kd.weight=inf", "finite"),
    ("synthesizer.optimizer.betas=[0.9]", "betas=[0.9]", "a list of 2: a number, a number"),
    ("synthesizer.optimizer._partial_=3", "_partial_=3", "true or false"),
    ("synthesis.views=[3]", "synthesis.views=[3]", ""),
    (
        "data.dataset={_target_: data.files.npz, path: x, classes: [0, 1e3, yes]}",
        "classes=",
        '["0",',
    ),
    ("student={_target_: 3}", "student=", "no "),
    ("steps=" + "[" * 150 + "]" * 150, "steps=[[", ""),
    ("steps=" + "[" * 4000 + "]" * 4000, "steps=[[", "nested too deep"),
    ("run_root=\udcff", "run_root=", "UTF-8"),
    ("seed=" + "x" * 20000, "seed=xx", "too long"),
    ("seed=a(b", "seed=a(b", "'seed=\"a(b\"'"),
    ("-h2", "'-h2'", "--help and --show"),
    ("", "''", "key=value"),
]


@pytest.mark.parametrize(("written", "named", "hint"), MISTAKES)
def test_a_mistake_is_one_line_that_names_it(written: str, named: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([written] if "method=" in written else ["method=dfq", written])
    lines = caught.value.mistakes
    assert any(named in line and hint in line for line in lines), lines
    assert all(len(line) < 700 and "\n" not in line for line in lines)


def test_nothing_else_is_blamed() -> None:
    """One mistake, one line; a group's choice that is mistyped stands for the one meant."""
    for mistake in ("sede=1", "seed=a", "teacher.model.widht=3", "synthesizer.optimizer=adam"):
        with pytest.raises(ConfigError) as caught:
            compose([mistake])
        assert len(caught.value.mistakes) == 1, caught.value.mistakes
    with pytest.raises(ConfigError) as caught:
        compose(["method=deep_inversoin", "synthesizer.iterations=5"])
    assert len(caught.value.mistakes) == 1, caught.value.mistakes


def test_all_at_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """... and nothing is built, claimed or written first."""
    monkeypatch.setattr(train, "Runtime", None)
    monkeypatch.setattr(train, "run", None)
    written = ["sede=1", "steps=many", "seed=1,2", "data=digit", "optimizer.lr=a", "source.x=1"]
    assert train.main([*written, "synthesis.losses.bn.loss.y=1", "clip"]) == 1
    text = capsys.readouterr().err
    for name in ("sede:", "steps='", "'seed=1,2'", "data=digit:", "optimizer.lr=", "source.x:"):
        assert sum(name in line for line in text.splitlines()) == 1, name
    assert "'clip'" in text
    assert "synthesis.losses.bn.loss.y" in text
    assert "Traceback" not in text
    assert not list(Path.cwd().iterdir())


def test_an_experiment_file_is_held_against_the_schema_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "configs"
    shutil.copytree(ROOT, root)
    (root / "experiment").mkdir(exist_ok=True)
    monkeypatch.setattr(engine.choices, "ROOT", root)
    file = root / "experiment" / "mine.yaml"
    good = "# @package _global_\ndefaults:\n  - override /method: dafl\nsteps: 5\nema: 0.5\n"
    file.write_text(good)
    config = compose(["experiment=mine", "steps=6"])
    assert (config.choices.method, config.steps, config.ema) == ("dafl", 6, 0.5)
    file.write_text(good + "stepz: 5\ndata: {training: {epochs: 3}, colour: 1}\nclip: strong\n")
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=mine"])
    assert len(caught.value.mistakes) == 4, caught.value.mistakes
    for name in ("stepz: no 'stepz'; did you mean 'steps'", "epochs", "data.colour", "clip"):
        assert any(name in line for line in caught.value.mistakes), name
    file.write_text("steps: [1\n")
    with pytest.raises(ConfigError):
        compose(["experiment=mine"])


PATHS = [
    "logs/epoch=9-step=90.ckpt",
    "net (1).pth",
    "[a]{b}/net.pth",
    "李明/été/net.pth",
    "a&b,c;d/net.pth",
    "2024",
    "true",
    "1e3",
    "C:\\data\\x.npz",
    "folder/",
    "it's",
    'say "a".npz',
    "$x:%y",
]


@pytest.mark.parametrize("key", ["teacher.checkpoint", "run_dir", "data.path", "run_root"])
def test_paths_are_what_the_shell_gives(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    expected = [(text, text) for text in PATHS]
    expected += [("~/a=b", "/home/me/a=b"), ("null", None), ("'a b'", "a b"), ("${device}", "auto")]
    config = compose([])
    for text, path in expected:
        _, [setting] = sort_overrides([f"{key}={text}"], {}, [])
        set_key(config, setting, mistakes := [], groups())
        assert not mistakes
        assert OmegaConf.select(config, key) == path


def test_an_argument_annotated_as_a_path_is_one_too() -> None:
    node = "{_target_: data.label_embeddings.label_embeddings}"
    changes = ["method=nayer", f"synthesizer.variable.embeddings={node}"]
    config = compose([*changes, "synthesizer.variable.embeddings.path=a=b.safetensors"])
    assert config.synthesizer.variable.embeddings.path == "a=b.safetensors"


@pytest.mark.parametrize("override", DOCUMENTED)
def test_documented_overrides(override: str) -> None:
    config = compose(["data=npz", override] if override.startswith("data.path") else [override])
    key, value = override.split("=")
    node = config
    for part in key.split("."):
        node = node[part]
    assert str(node).lower() == value


def test_documented_groups() -> None:
    config = compose(["method=dafl", "data=mnist", "teacher=lenet5", "student=lenet5_half"])
    assert config.choices.method == "dafl"
    assert config.data.dataset.name == "MNIST"
    assert config.teacher.model._target_ == "models.lenet.LeNet5"
    assert config.choices.student == "lenet5_half"
    assert compose(["experiment=null"]) == compose([])


def test_keys_of_parts_are_set_by_path() -> None:
    """Those that a file names, those that only a signature names, and through a reference."""
    changes = [
        "synthesizer.clip=2.0",
        "synthesizer.generator.channels=8",
        "~synthesis.losses.balance",
    ]
    config = compose([*changes, "optimizer.weight_decay=0.1", "+optimizer.amsgrad=true"])
    assert config.synthesizer.clip == 2.0
    assert config.generator.channels == 8
    assert config.optimizer.amsgrad is True
    assert "balance" not in config.synthesis.losses


def test_losses_join_a_methods_own() -> None:
    config = compose(["method=dfq", "loss=[kd,l1]", "distiller.losses.l1.weight=2"])
    assert set(config.distiller.losses) == {"kd", "l1"}
    assert config.distiller.losses.l1.weight == 2
    assert compose(["loss=null"]) == compose(["loss=[]"]) == compose([])
    assert "l1" in compose(["method=dfq", "loss=l1"]).distiller.losses
    with pytest.raises(ConfigError, match="loss=l3: no 'l3'") as caught:
        compose(["loss=[l3,l1]"])
    assert len(caught.value.mistakes) == 1
    with pytest.raises(ConfigError, match=r"~distiller.losses.kd removes what loss=kd adds"):
        compose(["method=kd", "~distiller.losses.kd", "loss=[at,kd]"])


def test_an_entrys_taps_are_its_losses() -> None:
    config = compose(["method=zskt", "distiller.losses.attention.taps=[stage2]"])
    entry = config.distiller.losses.attention
    assert entry.loss.taps == ["stage2"]
    assert "taps" not in entry
    schedule = "distiller.losses.kd.schedule={_target_: core.schedules.until, end: 0.5}"
    assert compose(["method=dfq", schedule]).distiller.losses.kd.schedule.end == 0.5
    for written, line in (
        ("distiller.losses.kd.taps=[stage1]", "distiller.losses.kd.loss.taps: no 'taps'"),
        ("distiller.losses.kd.schedule=0.5", "distiller.losses.kd.schedule builds a part"),
        ("distiller.labels=mine", "distiller.labels='mine'"),
    ):
        with pytest.raises(ConfigError) as caught:
            compose(["method=dfq", written])
        assert [line in m for m in caught.value.mistakes] == [True], caught.value.mistakes


def few_pairs() -> set[tuple[str, str]]:
    """Every method with two data sets, and each of these with a method of either kind."""
    turns = {(m, DATA[i * step % len(DATA)]) for i, m in enumerate(METHODS) for step in (1, 5)}
    return turns | set(itertools.product(("kd", "fast_dfkd"), DATA))


@pytest.mark.parametrize(("method", "data"), sorted(few_pairs()))
def test_methods_compose_with_all_data(method: str, data: str) -> None:
    """They meet in the keys that methods read of the data, which all data sets have."""
    config = compose([f"method={method}", f"data={data}"])
    assert config.choices.method == method
    assert config.choices.data == data


def test_show_prints_the_composed_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--show", "method=kd", "seed=5"]) == 0
    text = capsys.readouterr().out
    assert "seed: 5" in text
    assert "RealSource" in text
    assert not list(Path.cwd().iterdir())
