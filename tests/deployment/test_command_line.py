"""Options of centre and hospital that cannot work end with one clear error, before anything is sent."""

import importlib.metadata
import os
import re
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from pfedst.cli import main
from pfedst.deployment.requirement import check_flower
from pfedst.errors import ConfigurationError
from pfedst.methods.registry import registered_methods
from pfedst.testing.hospitals import STUDY, Loopback

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"
FLOWER = ["--coordinator.transport", "flower"]


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY.format(model="vit-nano", rounds=1))
    for name in ("ca.crt", "secret", "key"):
        (tmp_path / name).write_text("")
    return "study.yaml"


def said(capsys, *arguments) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_without_flower_there_is_a_remedy(monkeypatch) -> None:
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    if sys.version_info >= (3, 11):
        with pytest.raises(ConfigurationError, match=r"pip install 'pfedst\[flower\]'"):
            check_flower()
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.420.0")
        with pytest.raises(ConfigurationError, match=r"need flwr 1.42, and 1.420.0 is installed"):
            check_flower()
    old = namedtuple("version", "major minor micro")(3, 10, 14)
    monkeypatch.setattr(sys, "version_info", old)
    with pytest.raises(ConfigurationError, match=r"need Python 3.11 or newer, for flwr 1.42; this is Python 3.10"):
        check_flower()


def test_options_of_flower_need_its_transport(study, capsys) -> None:
    text = said(capsys, "fit", "--config", study, "--data", "SyntheticSites", "--flower.sites", "[a]")
    assert "--flower.sites: add --coordinator.transport flower" in text


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Flower needs Python 3.11")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name the hospitals with --flower.sites"),
        (["--flower.sites", "[a]"], "--flower.root_certificates None"),
        (["--flower.sites", "[a,a]"], "each hospital once"),
        (["--data", "SyntheticSites"], "name the hospitals"),
        (["--data.cache", "auto"], "--data.init_args.cache: the centre has no images"),
        (["--data.only_sites", "[a]"], "--data.init_args.only_sites: the centre has no images"),
        (["--dry_run"], "--dry_run: not with --coordinator.transport flower"),
        (["--init", "runs/x"], "--init: not with --coordinator.transport flower"),
        (["--coordinator.workers", "2"], "--coordinator.workers 2"),
    ],
)
def test_the_centre_refuses(study, capsys, arguments, words) -> None:
    pytest.importorskip("flwr")
    assert words in said(capsys, "fit", "--config", study, *FLOWER, *arguments)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Flower needs Python 3.11")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --site, --superlink, --root-certificates, --key, --state"),
        (["--name", "x"], "pfedst site --name: it has no such option"),
        (
            ["--site", "a", "--superlink", "h:1", "--root-certificates", "no.crt", "--key", "key", "--state", "s"],
            "no.crt",
        ),
    ],
)
def test_a_hospital_refuses(study, capsys, arguments, words) -> None:
    pytest.importorskip("flwr")
    given = ["site", "--config", study, "--data", "SyntheticSites", *arguments]
    assert words in said(capsys, *given)


def test_the_page_has_a_row_for_every_method() -> None:
    rows = dict(re.findall(r"^\| (\w+) \| (runs|refused: .*?) \|$", PAGE.read_text(), re.MULTILINE))
    assert rows == {
        name: "refused: it trains on the images of all sites in one place" if method.pooled else "runs"
        for name, method in registered_methods().items()
        if method.__module__.startswith(("pfedst.", "pfedst_baselines."))
    }


def test_the_page_has_the_options_of_the_demonstration(tmp_path) -> None:
    lines = []
    made = Loopback(tmp_path)
    made.do = lambda line, **_: lines.append(line)
    made.start = lambda name, line: lines.append(line)
    made.wait_for = lambda *_: None
    made.make_certificates(["site_a"])
    made.start_superlink()
    made.register("site_a")
    lines += [made.site_command("site_a"), made.fit_command("first")]
    page = PAGE.read_text()
    for line in lines:
        for option in re.findall(r"(?<= )--?[a-zA-Z][\w.-]*", line):
            assert option in page or option == "-m", (option, line)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "not signed by --root-certificates"),
        ("SuperExec authentication is experimental\n[code: 2004] Failed to activate SuperNode.", "KEY.pub"),
        ("SuperExec authentication is experimental\nkilled", "has ended"),
    ],
)
def test_the_end_of_a_supernode_has_a_reason(tmp_path, log, words) -> None:
    runner = pytest.importorskip("pfedst.deployment.runner")
    (tmp_path / "supernode.log").write_text(log)
    assert words in str(runner._reason(tmp_path / "supernode.log"))


def test_the_folder_of_a_hospital_is_for_one_process_of_this_user(tmp_path) -> None:
    runner = pytest.importorskip("pfedst.deployment.runner")
    before = os.umask(0o022)
    os.umask(before)
    with runner.own_folder(tmp_path / "state") as folder:
        (folder / "a").mkdir()
        assert [path.stat().st_mode & 0o777 for path in (folder, folder / "a")] == [0o700, 0o700]
        with pytest.raises(ConfigurationError, match="another pfedst site has it"), runner.own_folder(folder):
            pass
    assert os.umask(before) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"), runner.own_folder(tmp_path / "file"):
        pass
