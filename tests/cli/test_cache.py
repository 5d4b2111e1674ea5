"""`pfedst cache`: build before a run, look, verify, clear."""

import pytest

from pfedst.cli import main
from tests.cli.test_main import SMALL


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PFEDST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_build_then_fit_computes_nothing_more(folder, tmp_path, capsys) -> None:
    options = [*SMALL, "--data.cache=auto"]
    assert main(["cache", "build", *options]) == 0
    captured = capsys.readouterr()
    assert "of taps in" in captured.err
    assert "38 images" in captured.out  # 12 + 10 of training and 8 + 8 of test, of which none is another's copy
    (store,) = folder.iterdir()
    before = (store / "index.txt").read_bytes()
    assert main(["fit", *options, f"--runs_dir={tmp_path / 'runs'}"]) == 0
    assert "of taps in" not in capsys.readouterr().err
    assert (store / "index.txt").read_bytes() == before


def test_info_verifies_and_clear_removes(folder, capsys) -> None:
    assert main(["cache", "info"]) == 0
    assert main(["cache", "build", *SMALL, "--data.cache=pooled", "--model.adapter=LinearHead", "--method=FedAvg"]) == 0
    (store,) = folder.iterdir()
    capsys.readouterr()
    assert main(["cache", "info", "--verify"]) == 0
    told = capsys.readouterr().out
    assert store.name in told
    assert "damaged rows" in told
    with (store / "pooled.bin").open("r+b") as file:
        file.write(b"x")
    assert main(["cache", "info"]) == 0  # reads no row
    assert main(["cache", "info", "--verify"]) == 3
    assert f"damaged: {store.name}" in capsys.readouterr().err
    assert main(["cache", "clear", store.name]) == 0
    assert not list(folder.iterdir())
    assert "removed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bild"], ['no command "bild"', 'Did you mean "build"']),
        (["build", *SMALL], ["--data.cache none", "--data.cache auto"]),
        (["build", *SMALL, "--data.cache=pooled"], ["--data.cache pooled", "needs taps", "use taps or images or auto"]),
        (
            ["build", *SMALL, "--data.cache=taps", "--data.cache_max_bytes=100"],
            ["--data.cache_max_bytes", "raise it to"],
        ),
        (
            ["build", *SMALL, "--data.cache=taps", "--data.augmentation=flips"],
            ["--data.views 4", "cached rows would never be used"],
        ),
        (["build", *SMALL, "--data.views=2"], ["--data.views 2", "--data.augmentation"]),
        (["build", *SMALL, "--model.encoder.token_grid=4"], ["--model.encoder.token_grid 4", "4x4 patches"]),
        (["clear"], ["give names, or --all"]),
        (["clear", "vit"], ['no store "vit"']),
    ],
)
def test_one_clear_error(folder, capsys, arguments, words) -> None:
    assert main(["cache", *arguments]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert not folder.exists() or not [path for path in folder.rglob("*.bin") if path.stat().st_size]


def test_clear_all_leaves_what_is_being_written(folder, capsys) -> None:
    from pfedst.data.cache.cache import stores_in

    assert main(["cache", "build", *SMALL, "--data.cache=taps"]) == 0
    (name,) = stores_in(folder)
    with stores_in(folder)[name].writing():
        assert main(["cache", "clear", "--all"]) == 2
    assert "being written by another process" in capsys.readouterr().err
    assert main(["cache", "info", "--verify"]) == 0
    assert main(["cache", "clear", "--all"]) == 0
    assert not stores_in(folder)


def test_help_and_a_damaged_manifest(folder, capsys) -> None:
    assert main(["cache"]) == 0
    assert "pfedst cache build" in capsys.readouterr().out
    for option in ("--help", "-h"):
        assert main(["cache", "build", *SMALL, option]) == 0
        assert "see pfedst fit --help" in capsys.readouterr().out
    (folder / "x").mkdir(parents=True)
    (folder / "x" / "manifest.json").write_text("{}")
    assert main(["cache", "info"]) == 3
    assert "remove" in capsys.readouterr().err
