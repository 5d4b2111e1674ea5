"""Shipped configurations are found by name, of this clone here and of a wheel in tests/test_packaging.py."""

from pathlib import Path

import pytest

from pfedst.configuration import shipped
from pfedst.configuration.shipped import COMPARE, configuration_file, with_files
from pfedst.errors import ConfigurationError

CONFIGS = Path(__file__).parents[2] / "configs"


def test_every_file_of_the_folder_has_a_name() -> None:
    names = {path.relative_to(CONFIGS).as_posix().removesuffix(".yaml") for path in CONFIGS.rglob("*.yaml")}
    assert set(shipped.shipped()) == names
    assert {"demo", "compare/demo", "sweeps/demo"} <= names


def test_a_wheel_has_them_within_the_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shipped, "HERE", tmp_path / "pfedst")
    (tmp_path / "configs").mkdir(parents=True)
    assert shipped.folder() == tmp_path / "configs"
    (tmp_path / "pfedst" / "configs").mkdir(parents=True)
    assert shipped.folder() == tmp_path / "pfedst" / "configs"


def test_a_name_is_a_file_of_the_command_and_a_file_here_comes_first(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert configuration_file("demo") == CONFIGS / "demo.yaml"
    assert configuration_file("demo", COMPARE) == CONFIGS / "compare" / "demo.yaml"
    (tmp_path / "demo").write_text("method: PFedST\n")
    assert configuration_file("demo") == Path("demo")
    for path in ("none.yaml", "some/demo"):  # whoever reads them reports that there is no such file
        assert configuration_file(path) == Path(path)


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r'--config dmeo: neither .* Did you mean "demo"\? Shipped are: demo'):
        configuration_file("dmeo")
    with pytest.raises(ConfigurationError, match="pfedst_ham4"):
        configuration_file("folder", COMPARE)


def test_arguments_name_files() -> None:
    demo = str(CONFIGS / "demo.yaml")
    given = ["fit", "--config", "demo", "--config=demo", "-c", "demo", "--name", "demo", "--config=a.yaml"]
    found = ["fit", "--config", demo, f"--config={demo}", "-c", demo, "--name", "demo", "--config=a.yaml"]
    assert with_files(given) == found
    assert with_files(["fit", "--config"]) == ["fit", "--config"]
    assert with_files(["--config=method: PFedST\n"]) == ["--config=method: PFedST\n"]  # the YAML itself
