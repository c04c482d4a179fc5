"""A stand-in for Google Cloud Storage: objects in a flat folder, behind both of the doors by which a run reaches them.

`etils.epath` comes through its own fsspec back end, where `Bucket` takes the place of gcsfs; TensorStore, which writes
Orbax's arrays, through its own driver, to a server that speaks as much of the JSON protocol as that driver asks for.
"""

import contextlib
import functools
import http.server
import io
import json
import os
import pathlib
import sys
import threading
import types
import urllib.parse

import fsspec

FORBIDDEN = "403: does not have storage.objects.create access"


class Bucket(fsspec.AbstractFileSystem):
    """Objects have names and no folders; one appears whole when its upload is closed, and is never renamed."""

    cachable = False
    folder = pathlib.Path()
    forbidden = False

    @classmethod
    def _strip_protocol(cls, path):
        return os.fspath(path).removeprefix("gs://").removeprefix("gcs://").strip("/")

    @classmethod
    def names(cls):
        return sorted(urllib.parse.unquote(file.name) for file in cls.folder.iterdir())

    @classmethod
    def file(cls, name):
        return cls.folder / urllib.parse.quote(name, safe="")

    @classmethod
    def put(cls, name, content):
        if cls.forbidden:
            raise PermissionError(FORBIDDEN)
        part = cls.folder.with_name(f"{threading.get_ident()}.part")
        part.write_bytes(content)
        part.replace(cls.file(name))

    def ls(self, path, detail=True, **options):
        path = self._strip_protocol(path)
        names = (
            [path] if self.file(path).is_file() else [n for n in self.names() if not path or n.startswith(f"{path}/")]
        )
        if not names:
            raise FileNotFoundError(path)
        found = {}
        for name in names:
            child = name if name == path else "/".join(name.split("/")[: path.count("/") + 2 if path else 1])
            file = self.file(child).is_file()
            about = self.file(child).stat() if file else None
            facts = {"size": about.st_size, "mtime": about.st_mtime} if about else {"size": 0}
            found[child] = {"name": child, "type": "file" if file else "directory", **facts}
        return list(found.values()) if detail else list(found)

    def _open(self, path, mode="rb", **options):
        name = self._strip_protocol(path)
        if mode == "rb":
            if not self.file(name).is_file():
                raise FileNotFoundError(name)
            return io.BytesIO(self.file(name).read_bytes())
        return Upload(functools.partial(self.put, name))

    def rm(self, path, recursive=False, maxdepth=None):
        path = self._strip_protocol(path)
        names = [n for n in self.names() if n == path or (recursive and n.startswith(f"{path}/"))]
        if not names:
            raise FileNotFoundError(path)
        for name in names:
            self.file(name).unlink()

    def makedirs(self, path, exist_ok=False):
        """There are none to make."""

    mkdir = makedirs


class Upload(io.BytesIO):
    """What is written becomes the object on closing."""

    def __init__(self, put):
        super().__init__()
        self.put = put

    def close(self):
        if not self.closed:
            content = self.getvalue()
            super().close()
            self.put(content)


class Protocol(http.server.BaseHTTPRequestHandler):
    """Reading, writing, listing and deleting of objects, on condition of their generation."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *told):
        """Nothing."""

    def handle_one(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        bucket, _, name = url.path.partition("/b/")[2].partition("/o")
        if not name and self.command == "GET":
            found = (n.removeprefix(f"{bucket}/") for n in Bucket.names() if n.startswith(f"{bucket}/"))
            low, high = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
            items = [n for n in found if n.startswith(query.get("prefix", "")) and low <= n < high]
            return self.answer(200, json.dumps({"items": [self.about(bucket, name) for name in items]}))
        name = query.get("name") or urllib.parse.unquote(name.strip("/"))
        file = Bucket.file(f"{bucket}/{name}")
        here = str(file.stat().st_mtime_ns) if file.is_file() else "0"
        if query.get("ifGenerationMatch", here) != here:
            return self.answer(412)
        if query.get("ifGenerationNotMatch") == here:
            return self.answer(304)
        if self.command == "POST":
            if Bucket.forbidden:
                return self.answer(403, json.dumps({"error": {"message": FORBIDDEN}}))
            Bucket.put(f"{bucket}/{name}", content)
            return self.answer(200, json.dumps(self.about(bucket, name)))
        if here == "0":
            return self.answer(404)
        if self.command == "DELETE":
            file.unlink()
            return self.answer(204)
        if query.get("alt") != "media":
            return self.answer(200, json.dumps(self.about(bucket, name)))
        return self.answer(200, file.read_bytes(), here)

    do_GET = do_POST = do_DELETE = handle_one

    def about(self, bucket, name):
        """What the protocol says of an object."""
        facts = Bucket.file(f"{bucket}/{name}").stat()
        return {"name": name, "size": str(facts.st_size), "generation": str(facts.st_mtime_ns)}

    def answer(self, status, content=b"", generation="0"):
        content = content.encode() if isinstance(content, str) else content
        total, within = len(content), self.headers.get("Range") if status == 200 and self.command == "GET" else None
        if within:
            first, last = (int(n or total - 1) for n in within.removeprefix("bytes=").split("-"))
            content, status = content[first : last + 1], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{total}")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("x-goog-generation", generation)
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def standing_in(folder):
    """gs:// is this folder, for this process; TensorStore asks for its server once, so that one has to serve all."""
    Bucket.folder, Bucket.forbidden = pathlib.Path(folder, "objects"), False
    Bucket.folder.mkdir(exist_ok=True)
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    if "google.cloud.storage" not in sys.modules:
        # Orbax asks by it whether the bucket has folders of its own
        storage = types.SimpleNamespace(Client=lambda: types.SimpleNamespace(get_bucket=lambda name: object()))
        sys.modules["google.cloud"] = types.SimpleNamespace(storage=storage)
        server()
    try:
        yield Bucket
    finally:
        Bucket.forbidden = False


@functools.cache
def server():
    """Begin to serve."""
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Protocol)
    serving.daemon_threads = True
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = f"http://127.0.0.1:{serving.server_port}"
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "anyone"
