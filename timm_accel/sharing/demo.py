"""A local page to try a model: an image is dropped, and the predictions appear.

gradio 6.31 needs Pillow below 13 and 17 more packages, so the page is a plain file, and the server is Python's.
"""

import json
import secrets
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from timm_accel.predict import Classifier, load_classifier

HOST = "127.0.0.1"
MAX_BYTES = 32 * 2**20
TOP_K = 5
_PAGE = Path(__file__).parent / "templates" / "demo.html"
_SECONDS = 30  # for a request to arrive


def create_demo(source: str | Path, *, port: int = 0) -> "DemoServer":
    """Open a model, and return the server of its page; ``serve_forever()`` starts it.

    The page is for this machine only. The server reads no file for it, keeps no image, and takes images of at most
    32 MiB.

    Args:
        source: What `load_classifier` takes: a run, a folder of weights, a state or an exported file.
        port: The port; 0 for any free one. ``server.url`` has the address.

    Raises:
        FileNotFoundError: The model does not exist.
        OSError: Another program uses the port.
        ValueError: The port is no number from 0 to 65,535.
    """
    if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65535:
        raise ValueError(f"Expected port to be from 0 to 65535, but got {port!r}. 0 is any free port.")
    return DemoServer(load_classifier(source), Path(source).resolve().name, port)


class DemoServer(ThreadingHTTPServer):
    """The server of the page.

    Args:
        classifier: The model.
        title: The name that the page shows.
        port: The port; 0 for any free one.
    """

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, classifier: Classifier, title: str, port: int) -> None:
        self.classifier, self.title, self.lock = classifier, title, Lock()
        self.nonce = secrets.token_urlsafe(16)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise OSError(
                f"Expected port to be free, but got {port} ({error.strerror}). End the other program, or pass 0."
            ) from error

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def page(self) -> bytes:
        """Return the page."""
        text = _PAGE.read_text(encoding="utf-8").replace("NONCE", self.nonce)
        return text.replace("ABOUT", _for_script({"title": self.title, "max_bytes": MAX_BYTES})).encode()

    def predict(self, content: bytes) -> dict[str, Any]:
        """Return the predictions of an encoded image, or an error, as the page reads them."""
        with self.lock:
            [found] = self.classifier.predict(content, TOP_K)
        if found.error is not None:
            return {"error": found.error}
        return {"predictions": [list(pair) for pair in zip(found.labels, found.scores, strict=True)]}


def _for_script(value: Any) -> str:
    """Return a value as JSON that no HTML parser takes for a tag."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class _Handler(BaseHTTPRequestHandler):
    """Answers ``GET /`` with the page, ``POST /predict`` with predictions, and anything else with an error."""

    server: DemoServer
    timeout = _SECONDS
    server_version, sys_version = "timm_accel", ""

    def do_GET(self) -> None:
        if self._is_own() and self._is_at("/"):
            self._answer(200, "text/html; charset=utf-8", self.server.page())

    def do_POST(self) -> None:
        if self._is_own() and self._is_at("/predict") and (size := self._size()) is not None:
            content = self.rfile.read(size)
            answer = self.server.predict(content) if len(content) == size else {"error": "the image is incomplete"}
            self._json(200, answer)

    def _is_own(self) -> bool:
        """Whether the request is from the page or from this machine: another site may send one through a browser."""
        hosts = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in hosts and (origin is None or origin.removeprefix("http://") in hosts):
            return True
        return self._refuse(403, "only the page itself may ask")

    def _is_at(self, path: str) -> bool:
        return self.path == path or self._refuse(404, "there is nothing here")

    def _size(self) -> int | None:
        text = self.headers.get("Content-Length", "")
        if not text.isdecimal():
            self._refuse(411, "the size of the image is missing")
        elif int(text[:20]) > MAX_BYTES:
            self._refuse(413, f"the image is larger than {MAX_BYTES / 2**20:.0f} MiB")
        else:
            return int(text)
        return None

    def _refuse(self, code: int, why: str) -> bool:
        self.close_connection = True
        self._json(code, {"error": why})
        return False

    def _json(self, code: int, value: dict[str, Any]) -> None:
        self._answer(code, "application/json", json.dumps(value).encode())

    def _answer(self, code: int, kind: str, content: bytes) -> None:
        own = f"'nonce-{self.server.nonce}'"
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header(
            "Content-Security-Policy",
            f"default-src 'none'; script-src {own}; style-src {own}; img-src blob: data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        pass  # requests are no news
