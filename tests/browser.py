"""A page in headless Chromium, over the pipe of its DevTools protocol, which needs no package."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run")


class Page:
    """A page of a browser of its own, of a given size in pixels."""

    def __init__(self, folder, width=1500, height=1300):
        take, self._send = os.pipe()
        self._receive, give = os.pipe()
        flags = [*FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}"]
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        command = ["bash", "-c", f'exec "$@" 3<&{take} 4>&{give}', "bash", CHROMIUM, *flags, "about:blank"]
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(command, pass_fds=(take, give), stdout=null, stderr=null)
        os.close(take)
        os.close(give)
        self._rest, self._number, self._session = b"", 0, None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, url):
        self._call("Page.navigate", url=url)

    def run(self, script):
        """The value of a script; ``None`` while it fails."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return found["result"].get("value")

    def wait_for(self, script, seconds=60):
        """The value of a script as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)) and time.monotonic() < end:
            time.sleep(0.2)
        return value

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def close(self):
        with contextlib.suppress(OSError):
            self._call("Browser.close")
        self._process.wait(20)
        os.close(self._send)
        os.close(self._receive)

    def _call(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                data = os.read(self._receive, 1 << 20)
                if not data:
                    raise OSError("the browser has ended")
                self._rest += data
            answer, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(answer)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise ValueError(answer["error"]["message"])
                return answer["result"]
