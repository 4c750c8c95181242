"""A local Kaggle that the real `kaggle` client talks to, unpatched, in a process of its own.

It models what the client's source and people's threads say about Kaggle, and proves nothing about Kaggle's own server.
The client is told by its environment to use http://localhost, and reaches this server as a proxy, whatever its port;
https goes to the same proxy, which refuses and notes it, so nothing leaves the machine.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.support.kaggle.kaggle_routes import ROUTES
from tests.support.kaggle.kaggle_state import Body, Files, KaggleState, Redirect, Refused

KEY = "0123456789abcdef"
TOKEN = "KGAT_0123456789abcdef"
API = "/api/v1/"
OLDEST_S = 1_790_000_000


class Asked(NamedTuple):
    """One request: the method's name ("SaveKernel"), PUT or GET, and what came with it."""

    route: str
    body: Body


class KaggleServer(KaggleState):
    """A Kaggle for `with`; its `environment` makes any `python -m kaggle` a client of it."""

    def __init__(self, user: str = "ann", competitions: Mapping[str, Files] | None = None) -> None:
        super().__init__(user, competitions)
        self.requests: list[Asked] = []
        self.connects: list[str] = []
        self._ages_s: dict[bytes, int] = {}
        self._listener = _Listener(("127.0.0.1", 0), _Handler)
        self._listener.kaggle = self
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}"
        self._thread = threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> KaggleServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    def environment(self, scratch: Path, with_token: bool = False) -> dict[str, str]:
        """All that a client needs to find this server and nothing of the user's own."""
        folders = {"HOME": scratch / "home", "KAGGLE_CONFIG_DIR": scratch / "config", "TMPDIR": scratch / "tmp"}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        proxies = {name: self.url for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
        return {
            **{name: str(folder) for name, folder in folders.items()},
            **proxies,
            "no_proxy": "",
            "NO_PROXY": "",
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_USERNAME": "" if with_token else self.user,
            "KAGGLE_KEY": "" if with_token else KEY,
            "KAGGLE_API_TOKEN": TOKEN if with_token else "",
        }

    def asked(self, route: str) -> list[Body]:
        """The bodies of all requests of this name, in order."""
        return [one.body for one in self.requests if one.route == route]

    def modified(self, content: bytes) -> str:
        """When this content first came up: the client keeps a file that is not older than this."""
        return formatdate(OLDEST_S + self._ages_s.setdefault(content, len(self._ages_s)), usegmt=True)

    def knows(self, authorization: str) -> bool:
        pair = base64.b64encode(f"{self.user}:{KEY}".encode()).decode()
        return not self.faults.unauthorised and authorization in (f"Basic {pair}", f"Bearer {TOKEN}")

    def answer(self, route: str, body: Body, authorization: str) -> Body | Redirect:
        """What Kaggle answers.  Raises Refused."""
        if route not in ROUTES:
            raise Refused(404, f"This test server has no route {route}")
        if not self.knows(authorization):
            raise Refused(401, "Unauthenticated")
        if self.faults.rate_limited:
            self.faults.rate_limited -= 1
            raise Refused(429, "Too many requests")
        if self.faults.server_errors:
            self.faults.server_errors -= 1
            raise Refused(503, "The service is unavailable")
        return ROUTES[route](self, body)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    kaggle: KaggleServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.server.kaggle.connects.append(self.path)
        self._stop(403)

    def do_POST(self) -> None:
        body = json.loads(self._read() or b"{}")
        path = self._path()
        if path is None:
            return
        kaggle, route = self.server.kaggle, path.removeprefix(API)
        name = route.rpartition("/")[2]
        with kaggle.lock:
            if self._is_lost("lose_request", name):
                return
            kaggle.requests.append(Asked(name, body))
            try:
                answer = kaggle.answer(route, body, self.headers.get("Authorization", ""))
            except Refused as refused:
                code = {} if kaggle.faults.errors_without_code else {"code": refused.status}
                headers = {"Retry-After": "0"} if refused.status == 429 else {}
                self._send_json(refused.status, {**code, "message": str(refused)}, headers)
                return
            if self._is_lost("lose_answer", name):
                return
        if isinstance(answer, Redirect):
            self._send(302, b"", {"Location": answer.url})
        else:
            self._send_json(200, answer, {})

    def _is_lost(self, fault: str, name: str) -> bool:
        """Whether the line breaks here, once: the connection is closed without a word."""
        faults = self.server.kaggle.faults
        if getattr(faults, fault) != name:
            return False
        setattr(faults, fault, "")
        self.close_connection = True
        return True

    def do_PUT(self) -> None:
        content, path = self._read(), self._path()
        if path is None:
            return
        kaggle, span = self.server.kaggle, self.headers.get("Content-Range", "")
        with kaggle.lock:
            status, here = kaggle.receive(path.rpartition("/")[2], content, span)
            kaggle.requests.append(Asked("PUT", {"range": span, "bytes": len(content), "status": status}))
        self._send(status, b"", {"Range": f"bytes=0-{here - 1}"} if status == 308 and here else {})

    def do_GET(self) -> None:
        path = self._path()
        if path is None:
            return
        kaggle = self.server.kaggle
        with kaggle.lock:
            content = kaggle.blobs.get(path)
            span = self.headers.get("Range", "")
            kaggle.requests.append(Asked("GET", {"path": path, "range": span}))
        if content is None:
            self._send(404, b"", {})
            return
        mark = f'"{hashlib.md5(content).hexdigest()}"'
        headers = {"ETag": mark, "Accept-Ranges": "bytes", "Last-Modified": kaggle.modified(content)}
        start = re.fullmatch(r"bytes=(\d+)-", span)
        if start is None or self.headers.get("If-Range", mark) != mark:
            self._send(200, content, headers)
        elif int(start.group(1)) >= len(content):
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        else:
            first = int(start.group(1))
            span = f"bytes {first}-{len(content) - 1}/{len(content)}"
            self._send(206, content[first:], {**headers, "Content-Range": span})

    def _path(self) -> str | None:
        """The path that is asked for, or None where it is another host's, which is noted and refused."""
        asked = urlsplit(self.path)
        if asked.netloc in ("", "localhost", urlsplit(self.server.kaggle.url).netloc):
            return asked.path
        self.server.kaggle.connects.append(self.path)
        self._stop(403)
        return None

    def _read(self) -> bytes:
        """The body, which the client sends in chunks where it does not know its length."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size_bytes := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size_bytes))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send_json(self, status: int, answer: Body, headers: Mapping[str, str]) -> None:
        self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json", **headers})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        faults = self.server.kaggle.faults
        cut = faults.cut_download_after if self.command == "GET" else None
        if cut is not None and len(content) > cut:
            faults.cut_download_after = None
            content, self.close_connection = content[:cut], True
        self.wfile.write(content)

    def _stop(self, status: int) -> None:
        self.close_connection = True
        self._send(status, b"", {"Connection": "close"})
