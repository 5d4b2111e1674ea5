"""Three hospitals on this machine: SYNTHETIC images in three folders, one process each, over Flower on loopback.

`python -m pfedst.testing.hospitals FOLDER` (`make demo-hospitals`) runs the commands of `docs/deployment.md` one after
another and prints each. Every wait is bounded, and every process that is started is ended.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from pfedst.data import SyntheticSites
from pfedst.deployment.requirement import check_flower
from pfedst.errors import ConfigurationError

SITES = ("site_a", "site_b", "site_c")
CLASSES = ("nevus", "melanoma", "keratosis")
BIN = Path(sys.executable).parent
PFEDST = f"{sys.executable} -m pfedst"
STUDY = """\
# the same file at the centre and at every hospital; RANDOM encoder weights, so that no file is needed
seed_everything: 0
method: PFedST
model:
  encoder:
    model: {model}
    weights: random
    logit_scale: 40
  anchors: prototypes
  optimizer:
    class_path: AdamW
    init_args:
      lr: 3.0e-3
data:
  class_path: RemoteSites
  init_args:
    class_names: [nevus, melanoma, keratosis]
    batch_size: 16
coordinator:
  rounds: {rounds}
  evaluate_every: {rounds}
  threads: 1
trainer:
  max_epochs: 1
  accelerator: cpu
"""
START_SECONDS = 120.0
STOP_SECONDS = 15.0


def write_images(folder: Path, train: Sequence[int], test: int, image_size: int) -> None:
    """Write `SITE/SITE/{train,test}/CLASS/*.png` for three hospitals: one folder each, with a folder of its name.

    Args:
        folder: of all.
        train: number of training images of each hospital.
        test: number of test images of each.
        image_size: side of the images in pixels.
    """
    data = SyntheticSites(
        sites=3, classes=3, samples_per_site=list(train), test_samples_per_site=[test] * 3, image_size=image_size
    )
    found = data.read()
    for site, split, part in found.parts():
        for index, label in enumerate(part.labels):
            file = folder / site / site / split / found.class_names[label] / f"{split}{index:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            part.source.load(index).save(file)


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


class Loopback:
    """A centre and hospitals on loopback; a context that ends every process it started.

    Args:
        folder: for everything; made if it does not exist.
        tells: print each command.
    """

    def __init__(self, folder: Path, tells: bool = False) -> None:
        self.folder = folder.resolve()
        self.tells = tells
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {
            "FLWR_HOME": str(self.folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def __enter__(self) -> Loopback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for name in reversed(list(self.processes)):
            self.stop(name)

    # -- the centre --------------------------------------------------------------------------------------------

    def make_certificates(self, sites: Iterable[str] = SITES) -> None:
        """Make an authority, a certificate of the centre for localhost, a secret, and a key for each hospital."""
        (self.folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        for line in (
            'openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/CN=authority" -keyout ca.key -out ca.crt',
            'openssl req -newkey rsa:2048 -nodes -subj "/CN=localhost" -keyout server.key -out server.csr',
            "openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -extfile names "
            "-out server.pem",
            *(f'ssh-keygen -q -t ecdsa -b 384 -N "" -f {site}.key' for site in sites),
        ):
            self.do(line)
        secret = self.folder / "secret"
        secret.write_bytes(secrets.token_bytes(32))
        secret.chmod(0o600)

    def start_superlink(self) -> None:
        """Start the SuperLink, and wait until it listens."""
        self.start(
            "superlink",
            f"flower-superlink --host 127.0.0.1 --port {self.port} --ssl-ca-certfile ca.crt --ssl-certfile server.pem "
            f"--ssl-keyfile server.key --enable-supernode-auth --database superlink.db --isolation process "
            f"--superexec-auth-secret-file secret --disable-runtime-dependency-installation",
        )
        self.wait_for("superlink", "Uvicorn running")
        home = self.folder / "flwr"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "centre"\n\n[superlink.centre]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{self.folder}/ca.crt"\n'
        )

    def register(self, site: str) -> None:
        """Register the key of a hospital under its name."""
        self.do(f"flwr supernode register {site}.key.pub centre --name {site}")

    def fit_command(self, name: str, *options: str, sites: Sequence[str] = SITES) -> str:
        """Return the command of the centre."""
        return " ".join(
            (
                f"{PFEDST} fit --config study.yaml --coordinator.transport flower --name {name}",
                f"--flower.superlink 127.0.0.1:{self.port} --flower.root_certificates ca.crt --flower.secret secret",
                f"--flower.sites [{','.join(sites)}] --flower.wait_seconds {START_SECONDS:g}",
                *options,
            )
        )

    # -- a hospital --------------------------------------------------------------------------------------------

    def site_command(
        self, site: str, *options: str, key: str | None = None, authority: str = "ca.crt", port: int | None = None
    ) -> str:
        """Return the command of a hospital, whose images are in `images/SITE`; `port`: of a proxy."""
        return " ".join(
            (
                f"{PFEDST} site --config study.yaml --data FolderSites --data.root images/{site} --site {site}",
                f"--superlink 127.0.0.1:{port or self.port} --root-certificates {authority} --key {key or site}.key",
                f"--state hospitals/{site}",
                *options,
            )
        )

    # -- processes ---------------------------------------------------------------------------------------------

    def do(self, line: str, seconds: float = START_SECONDS, may_fail: bool = False) -> str:
        """Run a command to its end; return its output.

        Raises:
            RuntimeError: it failed.
        """
        self._tell(line)
        done = subprocess.run(
            shlex.split(line), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=seconds
        )
        if done.returncode and not may_fail:
            raise RuntimeError(f"{line}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def start(self, name: str, line: str) -> None:
        """Start a command that goes on; its output is `NAME.log`."""
        self._tell(f"{line} &")
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                shlex.split(line),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, name: str) -> str:
        """Return what a command has printed so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait_for(self, name: str, text: str, seconds: float = START_SECONDS, times: int = 1) -> None:
        """Wait until a command has printed a text so many times.

        Raises:
            RuntimeError: it has ended, or the time is over.
        """
        end = time.monotonic() + seconds
        while self.log(name).count(text) < times:
            if time.monotonic() > end or self.processes[name].poll() is not None:
                raise RuntimeError(f"{name} does not say {text!r}:\n{self.log(name)[-3000:]}")
            time.sleep(0.2)

    def ended(self, name: str, seconds: float = START_SECONDS) -> int:
        """Wait until a command has ended; return its exit code."""
        return self.processes[name].wait(seconds)

    def kill(self, name: str) -> None:
        """Kill a command as a loss of power would."""
        self.processes.pop(name).kill()

    def stop(self, name: str) -> None:
        """End a command and what it has started."""
        process = self.processes.pop(name)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
                return

    def _tell(self, line: str) -> None:
        if self.tells:
            print(f"$ {line.replace(PFEDST, 'pfedst')}", flush=True)


def main(folder: Path) -> int:
    """Run the demonstration; return the exit code of the run."""
    started = time.monotonic()
    try:
        check_flower()
        if folder.exists():
            raise ConfigurationError(f"{folder} exists; remove it, or name another folder")
    except ConfigurationError as error:
        print(f"pfedst: error: {error}", file=sys.stderr)
        return error.exit_code
    with Loopback(folder, tells=True) as machines:
        print("# three hospitals: SYNTHETIC images in images/site_a, images/site_b and images/site_c")
        write_images(machines.folder / "images", (64, 56, 48), 24, 64)
        (machines.folder / "study.yaml").write_text(STUDY.format(model="vit-demo", rounds=3))
        print("# at the centre")
        machines.make_certificates()
        machines.start_superlink()
        for site in SITES:
            machines.register(site)
        print("# at each hospital")
        for site in SITES:
            machines.start(site, machines.site_command(site))
        for site in SITES:
            machines.wait_for(site, "answers 127.0.0.1")
        print("\n" + machines.log(SITES[0]) + "\n# at the centre")
        line = machines.fit_command("first")
        machines._tell(line)
        code = subprocess.run(shlex.split(line), cwd=machines.folder, env=machines.environment, timeout=300).returncode
        sent = (machines.folder / "hospitals" / SITES[0] / "messages.jsonl").read_text().splitlines()
        print(f"\n# the last messages of {SITES[0]}, of {len(sent)} in hospitals/{SITES[0]}/messages.jsonl")
        print("\n".join(sent[-2:]))
    print(f"\n{time.monotonic() - started:.0f} s; everything is in {folder}")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/hospitals")))
