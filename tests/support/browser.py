"""A headless Chromium for tests, driven through chromedriver by the standard library alone.

Nothing it does leaves this machine: it opens what the tests serve on loopback.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 60
AXE = Path(__file__).parents[1] / "agents/node_modules/axe-core/axe.min.js"  # where npm put it
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for a reference to one
VISIBLE = """
const node = document.querySelector(arguments[0]);
const text = node?.checkVisibility() ? node.innerText : ""
"""
# Collects what the policy forbids, from before the page's own script runs.
WATCH = """
window.forbidden = [];
addEventListener("securitypolicyviolation", event => {
  forbidden.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`);
});
"""


def programs() -> tuple[str, str]:
    """Paths of chromium and chromedriver; skips the test, or fails it under CI=true."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        reason = "chromium and chromedriver are not both installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return browser, driver


class Browser:
    """One browser with one tab. folder: for its profile, which must be new."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 900) -> None:
        browser, driver = programs()
        self._driver = subprocess.Popen(
            [driver, "--port=0"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._session = ""
        try:
            for line in self._driver.stdout:
                if found := re.search(r"started successfully on port (\d+)", line):
                    break
            else:
                raise AssertionError(f"chromedriver ended with code {self._driver.wait()}")
            self._root = f"http://127.0.0.1:{found[1]}/session"
            options = {
                "binary": browser,
                "args": [*FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}"],
            }
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            made = self._ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/{made['sessionId']}"
            self.devtools("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Closes the browser, then its driver."""
        try:
            if self._session:
                self._ask("DELETE", "", timeout=10)
        except (OSError, AssertionError):
            pass  # it is gone, or will be with its driver
        self._driver.terminate()
        self._driver.wait(10)
        self._driver.stdout.close()

    def _ask(self, method: str, path: str, body: Any = None, timeout: float = DEADLINE_S) -> Any:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self._root + self._session + path, data, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=timeout) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {json.load(error)['value']['message']}") from None

    # Its windows, which share what the browser keeps; what is below is of one at a time.

    def window(self) -> str:
        """The window that is looked at."""
        return self._ask("GET", "/window")

    def windows(self) -> list[str]:
        return self._ask("GET", "/window/handles")

    def new_window(self) -> str:
        """Another one, empty, which is looked at from now on."""
        self.look_at(self._ask("POST", "/window/new", {"type": "window"})["handle"])
        self.devtools("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        return self.window()

    def look_at(self, window: str) -> None:
        self._ask("POST", "/window", {"handle": window})

    def close_others(self, window: str) -> None:
        """All windows but this one."""
        for other in self.windows():
            if other != window:
                self.look_at(other)
                self._ask("DELETE", "/window")
        self.look_at(window)

    # The page.

    def back(self) -> None:
        self._ask("POST", "/back", {})

    def forward(self) -> None:
        self._ask("POST", "/forward", {})

    def open(self, url: str) -> None:
        """Returns when the page is loaded."""
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the body of a JavaScript function returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def text(self, css: str = "body") -> str:
        """The text of the first element that matches; none if it cannot be seen."""
        return self.run(f"{VISIBLE}; return text", css)

    def click(self, css: str) -> None:
        """As with a mouse: the element must be visible, and nothing may lie over it."""
        self._ask("POST", f"/element/{self._find(css)}/click", {})

    def type(self, css: str, text: str, clear: bool = True) -> None:
        """Types text into a field. Keys: see the protocol's table, such as \\ue007 for Enter."""
        element = self._find(css)
        if clear:
            self._ask("POST", f"/element/{element}/clear", {})
        self._ask("POST", f"/element/{element}/value", {"text": text})

    def _find(self, css: str) -> str:
        found = self._ask("POST", "/element", {"using": "css selector", "value": css})
        return found[ELEMENT]

    def wait(self, script: str, *arguments: Any, seconds: float = DEADLINE_S) -> Any:
        """What the script returns, once that is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script, *arguments)):
            if time.monotonic() > end:
                raise AssertionError(f"not reached in {seconds:g} s: {script}\n{self.text()}")
            time.sleep(0.05)
        return value

    def wait_text(self, css: str, text: str, seconds: float = DEADLINE_S) -> str:
        """The text of the element, once it holds this one."""
        return self.wait(
            f"{VISIBLE}; return text.includes(arguments[1]) && text", css, text, seconds=seconds
        )

    def violations(self, css: str = "html") -> list[Any]:
        """What axe finds wrong with what is seen of it; skips the test where there is no axe."""
        if not AXE.exists():
            pytest.skip("axe-core is not installed (tests/agents)")
        if not self.run("return Boolean(window.axe)"):
            self.run(AXE.read_text("utf-8") + ";window.axe = axe")
        return self.run(
            "return axe.run(arguments[0]).then(r => r.violations.map(v => [v.id,"
            " v.nodes.slice(0, 3).map(n => n.html + n.failureSummary)]))", css,
        )  # fmt: skip

    def colours(self, scheme: str = "") -> None:
        """What the page takes its user to prefer, light or dark; empty: what the browser has."""
        media = [{"name": "prefers-color-scheme", "value": scheme}] if scheme else []
        self.devtools("Emulation.setEmulatedMedia", features=media)

    def screen(self, width: int, height: int, phone: bool = False) -> None:
        """The size of the screen in CSS pixels."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=phone,
        )  # fmt: skip

    def screenshot(self, whole: bool = False) -> bytes:
        """A PNG of what is on the screen, or of the whole page."""
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])

    def complaints(self, network: bool = False) -> list[str]:
        """Errors of the console since the last call, and what the policy forbade. network: also
        requests that failed, which a browser tells by itself."""
        entries = self._ask("POST", "/se/log", {"type": "browser"})
        return [
            entry["message"]
            for entry in entries
            if entry["level"] in ("SEVERE", "WARNING")
            and (network or entry.get("source") != "network")
        ] + self.run("return window.forbidden ?? []")
