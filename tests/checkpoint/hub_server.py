"""A stand-in for the Hugging Face Hub on this machine: the few answers that huggingface_hub wants, from a folder."""

import contextlib
import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789" * 4


class Hub:
    """Repositories in FOLDER/ORG/NAME, one commit each.

    Attributes:
        folder: that holds them.
        asked: paths that were asked for, in order, with their method.
        gated: repositories whose files want a login.
    """

    def __init__(self, folder):
        self.folder, self.asked, self.gated = folder, [], set()

    def files(self, repo):
        return sorted(path for path in (self.folder / repo).rglob("*") if path.is_file())

    def downloads(self):
        """Names of the files that were fetched."""
        got = [path for method, path in self.asked if method == "GET" and "/resolve/" in path]
        return [path.split("/resolve/")[1].partition("/")[2] for path in got]

    def answer(self, path):
        """(status, headers, body) for a path."""
        part = path.strip("/").split("/")
        repo = "/".join(part[2:4] if part[0] == "api" else part[:2])
        if not (self.folder / repo).is_dir():
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        rest = part[4:] if part[0] == "api" else part[2:]
        if part[0] == "api":
            if len(rest) > 1 and rest[1] not in ("main", "v1", COMMIT):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            return 200, {}, json.dumps(self._tree(repo) if rest[:1] == ["tree"] else self._info(repo)).encode()
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        body = (self.folder / repo / "/".join(rest[2:])).read_bytes()
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}, body

    def _info(self, repo):
        counts = {"downloads": 0, "likes": 0}
        return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": [], "private": False, "tags": [], **counts}

    def _tree(self, repo):
        root = self.folder / repo
        return [
            {
                "type": "file", "path": path.relative_to(root).as_posix(), "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in self.files(repo)
        ]  # fmt: skip


@contextlib.contextmanager
def serving(folder):
    """(`Hub`, its address) while the block lasts."""
    hub = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = urllib.parse.unquote(self.path.partition("?")[0])
            hub.asked.append((self.command, path))
            status, headers, body = hub.answer(path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": len(body)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
