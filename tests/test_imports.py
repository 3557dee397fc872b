"""Files of a user's own: run where they are named, and nowhere else."""

import json
import shutil
import sys

import pytest

from jaxface import imports
from jaxface.cli import parse
from jaxface.data.engines import ENGINES
from jaxface.data.records import open_records
from jaxface.data.tasks import TASKS
from jaxface.errors import UserError
from jaxface.kernels.attention import KERNELS
from jaxface.runs.command_line import read_command_line
from jaxface.runs.config import Config
from jaxface.runs.folder import read_config
from jaxface.runs.saved_config import to_dict

MINE = """
from pathlib import Path
from jaxface.data.tasks import Task, register_task
from jaxface.kernels.attention import register, xla_attention

register_task(Task("glasses", ("no", "yes")))
register("mine", lambda q, k, v, **options: xla_attention(q, k, v, **options))
with Path(__file__).with_name("ran").open("a") as log:
    log.write("x")
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """What a test imports is forgotten after it."""
    monkeypatch.setattr(imports, "_imported", {})
    monkeypatch.setattr(imports, "_trusted", [])
    with TASKS.temporarily(), KERNELS.temporarily(), ENGINES.temporarily():
        yield
    for name in [name for name in sys.modules if name.startswith(("jaxface_import_", "jaxface_config_"))]:
        del sys.modules[name]


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "code" / "mine.py"
    path.parent.mkdir()
    path.write_text(MINE)
    return path


@pytest.fixture
def run(tmp_path, mine):
    """A run folder whose configuration needs `mine.py`, seen by a process that has not run it."""
    words = ["--import", str(mine), "--tasks", "glasses", "--encoder.attention", "mine"]
    config = read_command_line(words)
    assert config.imports.keys() == {"mine.py"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(to_dict(config)))
    imports._imported.clear()
    for name in [name for name in sys.modules if name.startswith("jaxface_import_")]:
        del sys.modules[name]
    mine.with_name("ran").unlink()
    return tmp_path / "run"


def test_a_named_file_is_run_once_and_what_it_registers_is_known_to_the_options_behind_it(mine):
    config = parse(Config, args=["--import", str(mine), "--tasks", "glasses", f"--import={mine}"])
    assert config.tasks == ("glasses",)
    assert mine.with_name("ran").read_text() == "x"


def test_a_run_that_needs_a_file_names_it_and_runs_nothing(run, mine):
    with pytest.raises(UserError, match=r"run needs mine\.py \(SHA-256 [0-9a-f]{12}\.\.\.\), .* add --import mine\.py"):
        read_config(run)
    assert not mine.with_name("ran").exists()


def test_with_its_file_named_or_in_a_trusted_folder_it_opens(run, mine):
    imports.take_imports(["--trust", str(mine.parent)])
    assert not mine.with_name("ran").exists()  # trusted is not asked for
    assert read_config(run).tasks == ("glasses",)
    assert mine.with_name("ran").read_text() == "x"


def test_another_file_in_a_trusted_folder_is_not_run_and_one_that_is_named_is_said_to_differ(run, mine, capsys):
    mine.write_text(MINE + "# changed\n")
    imports.take_imports(["--trust", str(mine.parent)])
    with pytest.raises(UserError, match="needs mine"):
        read_config(run)
    assert not mine.with_name("ran").exists()
    imports.take_imports(["--import", str(mine)])
    assert read_config(run).tasks == ("glasses",)
    assert "was made with another mine.py" in capsys.readouterr().err


def test_a_configuration_that_registers_something_counts_as_such_a_file(tmp_path):
    text = "from jaxface.runs.config import Config\nfrom jaxface.data.tasks import Task, register_task\n"
    (tmp_path / "plain.py").write_text(text + "config = Config()\n")
    (tmp_path / "own.py").write_text(text + 'register_task(Task("hat", ("no", "yes")))\nconfig = Config(tasks=("hat",))\n')
    assert read_command_line(["--config", str(tmp_path / "plain.py")]).imports == {}
    assert read_command_line(["--config", str(tmp_path / "own.py")]).imports.keys() == {"own.py"}


@pytest.mark.parametrize(
    ("words", "message"), [(["--import"], "needs a file"), (["--import", "no.py"], "no such file"), (["--trust=no"], "no such folder")]
)
def test_what_cannot_be_imported_is_one_line(words, message):
    with pytest.raises(UserError, match=message):
        imports.take_imports(words)


def test_the_mistake_in_a_file_is_told_with_its_name(mine):
    mine.write_text("1 / 0")
    with pytest.raises(UserError, match=r"mine\.py: ZeroDivisionError"):
        imports.take_imports(["--import", str(mine)])


def test_a_kernel_that_a_configuration_names_as_a_file_is_not_imported(run, mine):
    path = run / "config.json"
    value = json.loads(path.read_text())
    value |= {"imports": {}, "tasks": ["age"], "encoder": value["encoder"] | {"attention": f"{mine}:attend"}}
    path.write_text(json.dumps(value))
    from jaxface.kernels.attention import require_kernel

    with pytest.raises(UserError, match="no attention kernel"):
        require_kernel(read_config(run).encoder.attention)
    assert not mine.with_name("ran").exists()


def test_python_classes_that_a_prepared_folder_names_are_not_imported(tmp_path, monkeypatch):
    from faces import write_manifest

    from jaxface.data.preparation import prepare

    prepare("manifest", write_manifest(tmp_path / "m", 12), tmp_path / "faces")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tensor: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "faces/features.json"
    names = path.read_text().replace("tensorflow_datasets.core.features.tensor_feature.Tensor", "evil.Tensor")
    path.write_text(names)
    shutil.rmtree(tmp_path / "m")
    (tmp_path / "faces/digests.json").unlink()
    assert open_records(tmp_path / "faces", "train")[0]["image"]
    assert not (tmp_path / "ran").exists()
    assert "evil" not in sys.modules
