# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""A Hub on localhost, in memory: what `huggingface_hub` asks for to push models and to load them.

Model repositories with branches, pull requests, access by token and large files (LFS), in which safetensors are.
"""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


TOKEN = "hf_test"


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[oid], self.messages[oid], self.refs[ref] = files, message, oid
        return oid

    def oid(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


class HubServer(ThreadingHTTPServer):
    """Runs in a thread while it is a context manager.

    Attributes:
        repositories: by their names, `owner/name`.
        log: of requests, as `"POST /api/repos/create"`.
        broken: a part of paths; the connection breaks in the middle of such a request, and nothing comes of it. A
            client sets it by `PUT /broken`.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.log: list[str] = []
        self.broken: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Variables for a process of a user with this Hub, and with a home of its own at `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            # Empty is none, also where the machine has one.
            "HF_TOKEN": token or "",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def handle_request(self):
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.server.log.append(f"{self.command} {url.path}")
        if self.server.broken is not None and self.server.broken in url.path:
            self.rfile.read(1)
            self.connection.close()
            self.close_connection = True
            return
        body = self.body()
        match [unquote(part) for part in url.path.strip("/").split("/")]:
            case ["api", "validate-yaml"]:
                self.answer({"errors": [], "warnings": []})
            case ["api", "whoami-v2"] if self.is_known():
                self.answer({"type": "user", "name": "me", "orgs": []})
            case ["broken"]:
                self.server.broken = body.decode() or None
                self.answer({})
            case ["large-files", oid]:
                self.server.large_files[oid] = body
                self.answer({})
            case ["api", "repos", "create"] if self.is_known():
                wanted = json.loads(body)
                name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
                exists = name in self.server.repositories
                if not exists:
                    # Older clients say "private".
                    private = wanted.get("visibility") == "private" or wanted.get("private") is True
                    repository = self.server.repositories[name] = Repository(private)
                    repository.commit("main", {".gitattributes": b""}, "initial commit")
                self.answer({"url": f"{self.server.url}/{name}", "name": name}, 409 if exists else 200)
            case ["api", "models", owner, name, *rest] if self.may(f"{owner}/{name}"):
                self.api(f"{owner}/{name}", self.server.repositories[f"{owner}/{name}"], rest, body)
            case [owner, name, "info", "lfs", "objects", "batch"] if self.may(f"{owner}/{name.removesuffix('.git')}"):
                objects = [
                    each | {"actions": {"upload": {"href": f"{self.server.url}/large-files/{each['oid']}"}}}
                    for each in json.loads(body)["objects"]
                ]
                self.answer({"transfer": "basic", "objects": objects})
            case [owner, name, "resolve", revision, *path] if self.may(f"{owner}/{name}"):
                self.file(self.server.repositories[f"{owner}/{name}"], revision, "/".join(path))
            case _:
                self.answer({"error": "Repository not found"}, 404 if self.is_known() else 401, "RepoNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def api(self, name: str, repository: Repository, rest: list[str], body: bytes):
        """Paths below `/api/models/owner/name`."""
        revision = rest[1] if len(rest) > 1 else "main"
        oid = repository.oid(revision)
        if rest[:1] == ["branch"]:
            if oid is None:
                repository.refs[revision] = repository.oid(json.loads(body).get("startingPoint", "main"))
            return self.answer({}, 200 if oid is None else 409)
        if oid is None:
            return self.answer({"error": f"Invalid rev id: {revision}"}, 404, "RevisionNotFound")
        files = repository.commits[oid]
        match rest:
            case [] | ["revision", _]:
                siblings = [{"rfilename": path} for path in sorted(files)]
                self.answer({"id": name, "sha": oid, "private": repository.private, "siblings": siblings})
            case ["tree", _, *folder]:
                below = "".join(f"{part}/" for part in folder)
                paths = [path for path in sorted(files) if path.startswith(below)]
                tree = [{"type": "file", "path": p, "size": len(files[p]), "oid": blob_id(p, files[p])} for p in paths]
                self.answer(tree if paths else {"error": "no such folder"}, *(() if paths else (404, "EntryNotFound")))
            case ["preupload", _]:
                paths = [each["path"] for each in json.loads(body)["files"]]
                same = {path: {"oid": blob_id(path, files[path])} for path in paths if path in files}
                modes = [{"path": p, "uploadMode": mode(p), "shouldIgnore": False, **same.get(p, {})} for p in paths]
                self.answer({"files": modes})
            case ["commit", _]:
                self.answer(self.commit(name, repository, revision, [json.loads(line) for line in body.splitlines()]))

    def commit(self, name: str, repository: Repository, revision: str, lines: list[dict]) -> dict:
        files = dict(repository.commits[repository.oid(revision)])
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.large_files[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        number = sum(ref.startswith("refs/pr/") for ref in repository.refs) + 1
        is_request = "create_pr" in self.query
        oid = repository.commit(f"refs/pr/{number}" if is_request else revision, files, lines[0]["value"]["summary"])
        request = {"pullRequestUrl": f"{self.server.url}/{name}/discussions/{number}"} if is_request else {}
        return {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid, **request}

    def file(self, repository: Repository, revision: str, path: str):
        oid = repository.oid(revision)
        content = repository.commits.get(oid, {}).get(path)
        if content is None:
            code = "RevisionNotFound" if oid is None else "EntryNotFound"
            headers = {} if oid is None else {"X-Repo-Commit": oid}
            return self.answer({"error": code}, 404, code, headers)
        self.answer(content, headers={"X-Repo-Commit": oid, "ETag": f'"{blob_id(path, content)}"'})

    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def may(self, name: str) -> bool:
        repository = self.server.repositories.get(name)
        reads = self.command in ("GET", "HEAD")
        return repository is not None and (self.is_known() or (reads and not repository.private))

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, content, status: int = 200, error: str | None = None, headers: dict[str, str] | None = None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), **({"X-Error-Code": error} if error else {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


def blob_id(path: str, content: bytes) -> str:
    """SHA-256 of large files, git's hash of others."""
    if mode(path) == "lfs":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
