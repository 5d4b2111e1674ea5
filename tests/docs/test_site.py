"""The site of the documentation: it builds without a warning, and its HTML is looked at. make check-docs runs this."""

import shutil

import pytest
import yaml

from tests.docs.site import ROOT, build, problems

pytest.importorskip("mkdocstrings", reason="the extra dev has it")
pytestmark = pytest.mark.docs


class _Loader(yaml.SafeLoader):
    """YAML of MkDocs."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stderr
    return folder


def small(folder, text):
    """Build a site of one page with the project's own settings; the finished process."""
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=_Loader)
    settings |= {"docs_dir": str(folder / "docs"), "nav": [{"Start": "index.md"}], "plugins": ["search"]}
    settings |= {"extra_css": [], "extra_javascript": []}
    (folder / "docs").mkdir(parents=True)
    (folder / "docs" / "index.md").write_text(f"# Start\n\n{text}\n")
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    return build(folder / "mkdocs.yml", folder / "site")


def test_no_page_has_a_broken_fence_or_a_dead_link(site) -> None:
    assert problems(site) == []
    assert (site / "methods" / "FedOTP" / "index.html").is_file()


def test_the_api_page_has_every_public_name(site) -> None:
    import pfedst

    text = (site / "api" / "index.html").read_text()
    for name in pfedst.__all__:
        if name != "__version__":
            assert f".{name}" in text, name
    assert "Raises:" in text


def test_titled_fences_are_rendered(site) -> None:
    text = (site / "add-a-method" / "index.html").read_text()
    assert text.count("<pre") == 6
    assert "fedmine.py" in text


def test_a_good_page_passes(tmp_path) -> None:
    text = '[here](#part)\n\n## Part\n\n```python title="a.py"\nx = 1\n```\n'
    assert small(tmp_path, text).returncode == 0
    assert problems(tmp_path / "site") == []


@pytest.mark.parametrize("text", ["[x](nowhere.md)", "[x](#nowhere)", "![x](none.png)"])
def test_a_broken_link_fails_the_build(tmp_path, text) -> None:
    built = small(tmp_path, text)
    assert built.returncode != 0
    assert "WARNING" in built.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<a href="nowhere.html">x</a>', "index.html: nowhere.html leads nowhere"),
        ("a\n\n```python\nx = 1\n", "index.html: a fence was not rendered"),
        ("a ```\n", "index.html: a fence was not rendered"),
    ],
)
def test_what_a_build_lets_pass_is_found_in_its_html(tmp_path, text, words) -> None:
    assert small(tmp_path, text).returncode == 0
    assert words in problems(tmp_path / "site")


def test_an_identifier_that_is_gone_is_found(tmp_path) -> None:
    assert small(tmp_path, "x").returncode == 0
    page = tmp_path / "site" / "index.html"
    page.write_text(page.read_text().replace("<p>x</p>", '<p><a href="#gone">x</a></p>'))
    assert problems(tmp_path / "site") == ["index.html: #gone names no place of that page"]
    shutil.rmtree(tmp_path / "site")
