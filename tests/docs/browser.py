"""A browser without a window, driven through chromedriver: WebDriver needs no package, as it is JSON over HTTP."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
# the direct opener: a proxy of the environment must not be asked for this machine
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def missing() -> str:
    """What must be installed before a page can be checked; empty if everything is there."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        return "chromium and chromedriver are not installed (Debian: apt-get install chromium chromium-driver)"
    if axe_file() is None:
        return f"axe-core is not installed (npm install --no-save --prefix {sys.prefix} axe-core)"
    return ""


def axe_file() -> Path | None:
    """The script of axe-core: in this environment, where make check-docs puts it, or in NODE_PATH."""
    folders = [Path(sys.prefix) / "node_modules", *map(Path, filter(None, os.environ.get("NODE_PATH", "").split(":")))]
    return next((file for folder in folders if (file := folder / "axe-core" / "axe.min.js").is_file()), None)


class Browser:
    """One window of a browser."""

    def __init__(self, port: int, profile: Path) -> None:
        self.address = f"http://127.0.0.1:{port}"
        chrome = {"args": [*OPTIONS, f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": chrome}}}
        self.address += f"/session/{self._send('/session', wanted)['sessionId']}"

    def _send(self, path: str, body: dict[str, Any], method: str = "POST") -> Any:
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method=method
        )
        with DIRECT.open(request, timeout=300) as reply:
            return json.load(reply)["value"]

    def _devtools(self, command: str, **parameters: Any) -> None:
        self._send("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, page: Path, width: int, scheme: str) -> None:
        """Open a file in a window of this width, `light` or `dark`."""
        self._devtools("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._send("/url", {"url": page.as_uri()})

    def result(self, script: str) -> Any:
        """Return what an expression of JavaScript gives; a promise is awaited."""
        awaited = f"const done = arguments[0]; Promise.resolve({script}).then(done, (why) => done(String(why)));"
        return self._send("/execute/async", {"script": awaited, "args": []})

    def violations(self) -> list[str]:
        """Return the rules of axe-core that the page breaks, each with the first elements that break it."""
        file = axe_file()
        assert file is not None
        self._send("/execute/sync", {"script": file.read_text(encoding="utf-8"), "args": []})
        found = self.result("axe.run(document, {resultTypes: ['violations']}).then((found) => found.violations)")
        return [
            f"{broken['id']}: {broken['help']}: {[node['html'][:150] for node in broken['nodes'][:3]]}"
            for broken in found
        ]

    def close(self) -> None:
        """End the browser."""
        self._send("", {}, "DELETE")


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start chromedriver and a browser with a new profile; end both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port)
        opened = Browser(port, profile)
        yield opened
        opened.close()
    finally:
        driver.terminate()
        driver.wait()


def _wait(port: int) -> None:
    for _ in range(100):
        try:
            with DIRECT.open(f"http://127.0.0.1:{port}/status", timeout=10):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("chromedriver does not answer")
