"""Every command that README, docs/, configs/ and notebooks/ show runs, at toy size.

Commands that differ in values alone are run once. A configuration whose data are not here is
replaced by one of synthetic data; each configuration is trained by
tests/training/test_configurations.py.
"""

import importlib.util
import json
import re
import shlex
import shutil

import pytest
from command_worker import started
from doc_pages import ROOT, all_commands, blocks_of

# Command and one of its flags -> why it is not run here, if it is not the lack of a package.
NOT_RUN = {
    ("train", "coordinator"): "several processes; run by tests/training/test_several_processes.py",
    ("train", "distributed"): "a cluster; tests/training/test_processes.py has what can be tested",
    ("sweep", "workdir"): "run with its overrides by tests/studies/test_study_files.py",
}
# Command and one of its flags -> package of an extra that it needs.
NEEDS = {
    ("benchmark", "against"): "torch",
    ("export", "format"): "jax2onnx",
    ("export", "score"): "jax2onnx",
    ("export", "measure"): "jax2onnx",
}
# Command and one of its flags -> why it is run by `make slow` alone.
SLOW = {
    ("benchmark", "sweep"): "compiles a model for every length",
    ("benchmark", "configs"): "measures as --compare does",
    ("plan", "global_batch"): "compiles as the other plans do",
    ("plan", "json"): "compiles as the other plans do",
    ("train", "compilation_cache"): "trains as without, which is run; see test_several_processes",
    ("train", "config.train.best_after"): "trains as with other settings",
    ("train", "config.model.embed_dim"): "trains as with other settings",
}
NETWORK = ["embed_dim=8", "num_heads=2", "num_pre_layers=1", "num_post_layers=1"]
SMALL = [f"--config.model.{setting}" for setting in NETWORK]
# What makes a command small, behind its own arguments.
TOY = {
    "benchmark": ["--repeats=1", "--window=1"],
    "check_vectors": [],
    "cost": [*SMALL, "--compare=sft"],
    "diagram": [],
    "evaluate": [],
    "export": [],
    "plan": [*SMALL, "--topology=cpu:1", "--compare=sft", "--nolargest"],
    "predict": [],
    "prepare": ["--fake_size=12"],
    "report": [],
    "spread": [],
    "train": [
        *SMALL,
        "--config.train.duration=1 steps",
        "--config.train.batch_size=8",
        "--config.data.data_dir=prepared",
    ],
}
TOY_ATTENTION = ["--shape=1,16,2,4", "--strides=4"]
SYNTHETIC = """
from sft_jax.config import config_dict, load, override


def get_config():
    return config_dict(override(load("configs/synthetic.py"), {"model.num_classes": 4}))
"""
SHELL_VARIABLES = {"$name": "synthetic", "$seed": "0", "$run": "runs/seed", "$index": "0"}


def flags_of(words):
    return frozenset(word.split("=")[0].lstrip("-") for word in words if word.startswith("-"))


def distinct_commands():
    """The words of one command of each set of flags, by verb and flags.

    A name without arguments in a text is no command, but for `benchmark`; nor is `--input=...`.
    """
    found = {}
    for verb, arguments in all_commands():
        for name, value in SHELL_VARIABLES.items():
            arguments = arguments.replace(name, value)
        words = shlex.split(arguments.replace(" &", ""), comments=True)
        if "..." not in arguments and (words or verb == "benchmark"):
            found.setdefault((verb, flags_of(words)), words)
    return found


COMMANDS = distinct_commands()


def reason(table, verb, flags):
    return next((why for (of, flag), why in table.items() if of == verb and flag in flags), None)


def parameters(of_an_extra):
    for verb, flags in COMMANDS:
        needs = reason(NEEDS, verb, flags) is not None
        if needs is of_an_extra and not reason(NOT_RUN, verb, flags):
            marks = [pytest.mark.slow] if reason(SLOW, verb, flags) else []
            yield pytest.param(verb, flags, marks=marks, id=f"{verb}-{'-'.join(sorted(flags))}")


def test_every_exception_is_of_a_command_that_is_shown():
    assert len(COMMANDS) > 30
    for table in (NOT_RUN, NEEDS, SLOW):
        for verb, flag in table:
            assert any(verb == of and flag in flags for of, flags in COMMANDS), (verb, flag)
    for why in NOT_RUN.values():
        assert all((ROOT / path).is_file() for path in re.findall(r"tests/[\w/]+\.py", why))


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
    targets |= set(re.search(r"^SETS := (.*)", makefile, flags=re.MULTILINE)[1].split())
    texts = [page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    named = {
        name for text in texts for name in re.findall(r"(?:^|`)make ([a-z][\w.-]*)", text, re.M)
    }
    assert len(named) > 8
    assert named <= targets, named - targets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the commands name: configurations, data, and vectors."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "configs").symlink_to(ROOT / "configs")
    vectors = folder / "tests" / "reference_vectors"
    vectors.mkdir(parents=True)
    for name in ("metrics", "unimodal_text"):
        shutil.copy(ROOT / "tests" / "reference_vectors" / f"{name}.npz", vectors)
    blocks = [b.text for b in blocks_of(ROOT / "docs" / "own_data.md") if b.language == "python"]
    small = {"600": "60", "(120, ": "(16, ", "(40, ": "(8, ", "(24, ": "(8, ", '"mine.npz"': "path"}
    for shown, used in small.items():
        assert shown in blocks[0]
        blocks[0] = blocks[0].replace(shown, used)
    exec(blocks[0], {"path": folder / "mine.npz"})
    shutil.copy(folder / "mine.npz", folder / "my.npz")
    (folder / "mine.py").write_text(next(text for text in blocks if "def get_config" in text))
    (folder / "synthetic.py").write_text(SYNTHETIC)
    return folder


@pytest.fixture(scope="module")
def run(folder, quick_flags):
    environment = {
        "HOME": str(folder),
        "XLA_FLAGS": quick_flags,
        # Several commands train the same model.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with started(folder, **environment) as run:
        yield run


@pytest.fixture(scope="module")
def trained(run, folder):
    """A run that is scored, of which commands get copies."""
    options = ["--config=configs/arrays.py", "--config.data.options.path=mine.npz"]
    for words in (["train", *options, *TOY["train"]], ["evaluate"]):
        code, output = run(*words, "--workdir=trained")
        assert code == 0, output
    return folder / "trained"


def at_toy_size(verb, flags, words):
    """The arguments with a configuration whose data are here, and what makes them small."""
    if verb != "prepare" or "fake" not in flags:
        small = r"--(configs?)=configs/(?!arrays).*"
        words = [re.sub(small, r"--\1=synthetic.py", word) for word in words]
    toy = TOY[verb] if flags else TOY_ATTENTION if verb == "benchmark" else []
    if verb == "benchmark":
        toy = [*TOY[verb], *toy, *(["--compare=sft"] if "compare" in flags else [])]
        toy += ["--values=16,32"] if "sweep" in flags else []
        toy += SMALL if "config" in flags else []
        # PyTorch implements the paper's blocks and rates alone.
        paper = ["--config.model.preset=paper", "--config.optimizer.schedule=constant"]
        toy += paper if "against" in flags else []
    if "config.mixup.groups" in flags:
        toy = [*toy, "--config.mixup.groups=4"]
    return [word.replace("/shared/", "shared/") for word in [*words, *toy]]


def with_seed(path, seed):
    """Lets copies of one run differ in their seed, as `spread` asks of its runs."""
    config = json.loads(path.read_text())
    config["train"]["seed"] = seed
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(("verb", "flags"), list(parameters(of_an_extra=False)))
def test_every_command_runs(verb, flags, run, trained, folder):
    check_command(verb, flags, run, trained, folder)


@pytest.mark.parametrize(("verb", "flags"), list(parameters(of_an_extra=True)))
def test_every_command_of_an_extra_runs(verb, flags, run, trained, folder):
    if importlib.util.find_spec(package := reason(NEEDS, verb, flags)) is None:
        pytest.skip(f"needs {package} of an extra")
    check_command(verb, flags, run, trained, folder)


def check_command(verb, flags, run, trained, folder):
    words = at_toy_size(verb, flags, COMMANDS[verb, flags])
    for word in words:
        if (named := re.fullmatch(r"--workdirs?=(.*)", word)) and verb != "train":
            for seed, name in enumerate(named[1].split(",")):
                shutil.copytree(trained, folder / name, dirs_exist_ok=True)
                with_seed(folder / name / "config.json", seed)
        elif named:  # another command's run at toy size, with other settings
            shutil.rmtree(folder / named[1], ignore_errors=True)
    code, output = run(verb, *words)
    assert code == 0, f"{verb} {shlex.join(words)}\n{output[-3000:]}"
    assert output
