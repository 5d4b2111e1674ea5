"""The pages of documentation are what the software writes, and hang together."""

import re
from pathlib import Path

import pytest

from pfedst.cli import lightning_page, main
from pfedst.cli.method_pages import SECTIONS
from pfedst.methods.registry import registered_methods

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_the_pages_of_the_methods_are_up_to_date(tmp_path) -> None:
    assert main(["methods", f"--docs={tmp_path}"]) == 0
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in (DOCS / "methods").iterdir()}
    assert set(written) == set(kept) == {"README.md", *(f"{name}.md" for name in registered_methods())}
    for name, text in written.items():
        assert kept[name] == text, f"docs/methods/{name} is out of date: run `pfedst methods --docs docs/methods`"


def test_the_page_of_lightnings_options_is_up_to_date() -> None:
    assert (DOCS / "lightning.md").read_text() == lightning_page.page(), (
        "docs/lightning.md is out of date: run make docs"
    )


@pytest.mark.parametrize("name", registered_methods())
def test_every_method_says_why_how_and_when(name) -> None:
    page = (DOCS / "methods" / f"{name}.md").read_text()
    reference = name in ("Local", "ZeroShot", "Pooled")
    for section in SECTIONS[: 3 if reference else 4]:
        assert f"\n## {section}\n" in page, section
    assert re.search(r"\*.*(\d{4}|reference row).*\*", page), "no source"
    rows = re.findall(r"^\| `(\w+)` \| `.*` \| (.*) \|$", page, re.M)
    assert rows
    assert all(meaning for _, meaning in rows), f"an option without a meaning: {rows}"


def test_the_model_of_the_front_page_runs_without_an_encoder(tmp_path, monkeypatch, capsys) -> None:
    code = re.search(r"```python\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL).group(1)
    (tmp_path / "mymodels.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["fit", "--model.encoder=Pixels", "--model.encoder.image_size=32", "--model.adapter=mymodels.CNN"]
    arguments += ["--data=SyntheticSites", "--data.sites=2", "--data.samples_per_site=[12,10]"]
    arguments += ["--data.test_samples_per_site=[8,8]", "--coordinator.rounds=1", "--trainer.accelerator=cpu"]
    for method in ("FedBN", "FedPer"):
        assert main([*arguments, f"--method={method}", f"--runs_dir={tmp_path}", f"--name={method}"]) == 0
    printed = capsys.readouterr().out
    assert "anchors none" in printed
    assert "none (pixels), 32 px" in printed
    assert main([*arguments, "--method=FedAvg", "--model.adapter=SideNetwork", f"--runs_dir={tmp_path}"]) == 2
    assert (
        "SideNetwork needs taps of the encoder, and none (pixels), 32 px offers only images" in capsys.readouterr().err
    )


def test_links_lead_somewhere() -> None:
    for path in DOCS.rglob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
