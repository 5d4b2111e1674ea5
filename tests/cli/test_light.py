"""What a command imports: without data to train on, none needs torch; each runs in an interpreter of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.prepare.test_init import tree
from tests.reporting.fake_runs import write_run

HEAVY = (
    "torch",
    "torchvision",
    "torchmetrics",
    "lightning",
    "transformers",
    "open_clip",
    "timm",
    "scipy",
    "matplotlib",
)
PROGRAM = f"""
import sys
import pfedst
code = 0
if sys.argv[1:]:
    from pfedst.cli import main
    code = main(sys.argv[1:])
print(code, *(name for name in {HEAVY} if name in sys.modules))
"""
COMMANDS = [
    ("", 0, ""),  # import pfedst
    ("--help", 0, ""),
    ("compare --help", 0, ""),
    ("explain --help", 0, ""),
    ("explain runs/NAME picture.png --out maps", 2, ""),
    ("compare", 2, ""),
    ("compare --config none.yaml", 2, ""),
    ("compare --config plan.yaml", 2, ""),
    ("compare --config DEMO --seed_everything=1", 2, ""),
    ("report --help", 0, ""),
    ("report none", 2, ""),
    ("report run --metric none", 2, ""),
    ("report run", 0, "matplotlib"),
    ("calibrate --help", 0, ""),
    ("calibrate none --site a", 2, ""),
    ("calibrate run --site b", 2, ""),
    ("site --help", 0, ""),
    ("data --help", 0, ""),
    ("data prepare --help", 0, ""),
    ("data prepare fed_drg", 0, ""),
    ("data init --help", 0, ""),
    ("data init pool", 0, ""),
    ("data audit --help", 0, ""),
    ("data audit none", 3, ""),
    ("data preprocess --help", 0, ""),
    ("data partition --help", 0, ""),
    ("cache --help", 0, ""),
    ("cache build --help", 0, ""),
    ("cache info --help", 0, ""),
    ("cache clear --help", 0, ""),
    ("predict --help", 0, ""),
    ("predict none x.png --out p.txt", 2, ""),
    ("export --help", 0, ""),
    ("push --help", 0, ""),
    ("methods --help", 0, ""),
    ("card none", 2, ""),
    ("card run", 0, ""),
    ("configs list", 0, ""),
    ("env", 0, ""),
]
"""Arguments, exit code, heavy modules."""
DEMO = Path(__file__).parents[2] / "configs" / "compare" / "demo.yaml"


@pytest.mark.parametrize(("command", "code", "heavy"), COMMANDS)
def test_a_command_imports_what_it_needs(tmp_path, command, code, heavy) -> None:
    (tmp_path / "plan.yaml").write_text("row: {}\n")
    write_run(tmp_path / "run", {"a": 0.5})
    tree(tmp_path / "pool", "{a,b}/{x,y}/{1,2,3,4}.png")  # no folder of a split, so that init draws one
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command.replace("DEMO", str(DEMO)).split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    assert ended.stdout.splitlines()[-1].split() == [str(code), *heavy.split()], ended.stderr
