"""A small Hugging Face Hub on this machine, for the real client: the HTTP API as `huggingface_hub` uses it, and faults.

Repositories, commits, branches and pull requests live in memory. Large files (`_LARGE`) go through the Git LFS batch
API (basic transfer) and are served, as on the real Hub, from another host than the API: `localhost` in place of
`127.0.0.1`, so that a client which sent its token there would be caught. Xet is not spoken: `HF_HUB_DISABLE_XET=1`.
"""

from __future__ import annotations

import _thread
import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNER_TOKEN = "hf_OwnerOfTheOrganisationAbcdefghi"
EXPIRED_TOKEN = "hf_ExpiredTokenAbcdefghijklmnopqrs"
STRANGER_TOKEN = "hf_StrangerWithAValidTokenAbcdefgh"
_USERS = {OWNER_TOKEN: "owner", STRANGER_TOKEN: "stranger"}

_LARGE = (".safetensors", ".parquet", ".png", ".bin")
_PAGE = 4  # entries of a page of a tree: few, so that clients have to turn pages


@dataclass
class Fault:
    """What goes wrong with the requests of one kind.

    Attributes:
        method: "GET", "HEAD", "PUT" or "POST".
        path: Pattern of their path.
        action: A status to answer with; "cut" (half of the answer, or of the upload, then the line is dead); "corrupt"
            (bytes of the right number, other content); "stall" (no answer within the client's patience); "echo"
            (refused, the token in the message); "interrupt" (Ctrl-C, where the server runs in the client's process).
        times: How many requests it hits; None hits all.
    """

    method: str
    path: str
    action: int | str
    times: int | None = 1


@dataclass
class Repository:
    """One repository: commits by id, each a tree from path to ("lfs" or "git", id of the content)."""

    private: bool
    commits: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def commit(self, ref: str, tree: dict[str, tuple[str, str]], title: str) -> str:
        """Add a commit to a branch and return its id."""
        sha = hashlib.sha1(f"{ref} {len(self.commits)} {title} {sorted(tree.items())}".encode()).hexdigest()
        self.commits[sha], self.titles[sha], self.refs[ref] = tree, title, sha
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return the content of every file of a revision."""
        tree = self.commits[self.refs.get(revision, revision)]
        return {path: self.blobs[oid] for path, (_, oid) in sorted(tree.items())}


class Hub:
    """The server: `with Hub() as hub`, then point clients at `hub.endpoint`."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.leaks: list[str] = []
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        port = self._server.server_address[1]
        self.endpoint, self.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def create(self, kind: str, name: str, private: bool = False) -> Repository:
        """Create a repository, with the one file that the real Hub begins with."""
        repository = self.repositories[kind, name] = Repository(private)
        content = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LARGE).encode()
        oid = git_id(content)
        repository.blobs[oid] = content
        repository.commit("main", {".gitattributes": ("git", oid)}, "initial commit")
        return repository

    def fail(self, method: str, path: str, action: int | str, times: int | None = 1) -> None:
        """Arrange for a fault."""
        self.faults.append(Fault(method, path, action, times))

    def fault(self, method: str, path: str) -> int | str | None:
        """Return what goes wrong with a request, and count it."""
        with self.lock:
            for fault in self.faults:
                if fault.method == method and fault.times != 0 and re.search(fault.path, path):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault.action
        return None

    def count(self, method: str, path: str) -> int:
        """Return how many requests of a kind came so far."""
        return sum(was == method and re.search(path, at) is not None for was, at in self.requests)


def git_id(content: bytes) -> str:
    """Return the id that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str | None = None, message: str = "", body: Any = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.body = status, code, message, body


_KIND = r"(?P<kind>models|datasets)"
_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for the client's acknowledgement of its headers

    def log_message(self, *_: object) -> None:
        """Say nothing on standard error."""

    # ------------------------------------------------------------------------------------------------------- answering

    def _answer(self) -> None:
        """Find who answers a request, after the fault that may hit it."""
        method = self.command
        parts = urlsplit(self.path)
        path, self.query = parts.path, parse_qs(parts.query)
        with self.hub.lock:
            self.hub.requests.append((method, path))
        self.action = self.hub.fault(method, path)
        length = int(self.headers.get("Content-Length") or 0)
        if self.action == "cut" and method in ("PUT", "POST"):
            self.rfile.read(length // 2)
            self._hang_up()
            return
        self.body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        if self.action in ("stall", "interrupt"):
            if self.action == "interrupt":
                _thread.interrupt_main()
            threading.Event().wait(3)  # not time.sleep, which a session may have shortened
            self._hang_up()
            return
        try:
            if isinstance(self.action, int):
                message = "Invalid credentials in Authorization header" if self.action == 401 else "made to fail"
                raise _Refused(self.action, message=message)
            if self.action == "echo":
                raise _Refused(400, message=f"I was told {self.headers['Authorization']}")
            for wanted, pattern, answer in _ROUTES:
                found = re.fullmatch(pattern, unquote(path)) if wanted in (method, "GET/HEAD") else None
                if found and (wanted == method or method in ("GET", "HEAD")):
                    answer(self, **found.groupdict())
                    return
            raise _Refused(404, message=f"no such address: {path}")
        except _Refused as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            body = refused.body if refused.body is not None else {"error": refused.message}
            self._send(json.dumps(body).encode(), refused.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _chunks(self) -> bytes:
        """Read a body that comes in chunks."""
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send an answer."""
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.action == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self._hang_up()
            return
        self.wfile.write(content)

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), headers=headers)

    # ------------------------------------------------------------------------------------------------ who may see what

    def _user(self) -> str | None:
        """Return who asks, None where nobody says; an unknown token is refused."""
        authorization = self.headers.get("Authorization")
        if authorization is None:
            return None
        token = authorization.removeprefix("Bearer ")
        if token not in _USERS:
            raise _Refused(401, message="Invalid credentials in Authorization header")
        return _USERS[token]

    def _repository(self, kind: str, name: str, writes: bool = False) -> Repository:
        """Return a repository; what may not be seen is not there."""
        user = self._user()
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and user != "owner"):
            # As on the Hub: nobody in particular learns nothing, and someone is told that there is nothing.
            if user is None:
                raise _Refused(401, "RepoNotFound", "Invalid username or password.")
            raise _Refused(404, "RepoNotFound", "Repository not found")
        if writes and user is None:
            raise _Refused(401, message="Invalid username or password.")
        if writes and user != "owner":
            raise _Refused(403, message="You don't have the required permissions")
        return repository

    def _commit_id(self, repository: Repository, revision: str) -> str:
        sha = repository.refs.get(revision, revision)
        if sha not in repository.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    # --------------------------------------------------------------------------------------------------------- answers

    def whoami(self) -> None:
        user = self._user()
        if user is None:
            raise _Refused(401, message="Invalid username or password.")
        self._json({"type": "user", "name": user, "orgs": [{"name": "org"}], "auth": {"type": "access_token"}})

    def create(self) -> None:
        request = json.loads(self.body)
        kind, name = f"{request.get('type') or 'model'}s", f"{request['organization'] or 'owner'}/{request['name']}"
        user = self._user()
        if user is None:
            raise _Refused(401, message="Invalid username or password.")
        if user != "owner":
            raise _Refused(403, message=f'You don\'t have the rights to create a {kind[:-1]} under "{name}"')
        url = f"{self.hub.endpoint}/{'' if kind == 'models' else 'datasets/'}{name}"
        if (kind, name) in self.hub.repositories:
            raise _Refused(409, message="You already created this repo", body={"error": "exists", "url": url})
        self.hub.create(kind, name, request.get("visibility") == "private")
        self._json({"url": url, "name": name, "id": "1"})

    def validate(self) -> None:
        """Check the metadata of a card, as far as the Hub refuses any."""
        content = json.loads(self.body)["content"]
        found = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        warnings, errors = [], []
        if found is None:
            warnings.append({"message": "empty or missing yaml metadata in repo card"})
        else:
            try:
                data = yaml.safe_load(found[1])
                errors += [{"message": f'"{key}" must be text'} for key in ("license",) if not _is_text(data, key)]
            except yaml.YAMLError as error:
                errors.append({"message": str(error)})
        if errors:
            raise _Refused(400, message="bad metadata", body={"errors": errors, "warnings": warnings})
        self._json({"errors": errors, "warnings": warnings})

    def info(self, kind: str, name: str, revision: str = "main") -> None:
        repository = self._repository(kind, name)
        sha = self._commit_id(repository, revision)
        files = [{"rfilename": path} for path in repository.commits[sha]]
        facts = {"id": name, "sha": sha, "private": repository.private, "siblings": files, "tags": [], "gated": False}
        self._json({**facts, "downloads": 0, "likes": 0, "disabled": False, "author": name.split("/")[0]})

    def branch(self, kind: str, name: str, revision: str) -> None:
        repository = self._repository(kind, name, writes=True)
        if revision in repository.refs:
            raise _Refused(409, message="Reference already exists")
        repository.refs[revision] = self._commit_id(repository, json.loads(self.body).get("startingPoint", "main"))
        self._json({})

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> None:
        repository = self._repository(kind, name)
        sha = self._commit_id(repository, revision)
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = self._entries(repository, sha, folder or "", recursive)
        if folder and not entries:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        start = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if start + _PAGE < len(entries):
            rest = f"recursive={recursive}&cursor={start + _PAGE}"
            headers["Link"] = f'<{self.hub.endpoint}{urlsplit(self.path).path}?{rest}>; rel="next"'
        self._json(entries[start : start + _PAGE], headers)

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        repository = self._repository(kind, name)
        sha = self._commit_id(repository, revision)
        paths = parse_qs(self.body.decode()).get("paths", [])
        everything = self._entries(repository, sha, "", True)
        self._json([entry for entry in everything if entry["path"] in paths])

    def _entries(self, repository: Repository, sha: str, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """Return what a folder holds, as the tree API tells it."""
        entries: dict[str, dict[str, Any]] = {}
        for path, (mode, oid) in sorted(repository.commits[sha].items()):
            if folder and not path.startswith(f"{folder}/"):
                continue
            inner = path[len(folder) + 1 :] if folder else path
            parents = inner.split("/")[:-1]
            for depth in range(1, len(parents) + 1) if recursive else (1,) if parents else ():
                whole = "/".join(([folder] if folder else []) + parents[:depth])
                oid_of = hashlib.sha1(whole.encode()).hexdigest()
                entries[whole] = {"type": "directory", "path": whole, "oid": oid_of, "size": 0}
            if parents and not recursive:
                continue
            size = len(repository.blobs[oid])
            # Git itself holds a pointer to a large file, which has an id of its own.
            facts = (
                {"oid": oid}
                if mode == "git"
                else {"oid": git_id(oid.encode()), "lfs": {"oid": oid, "size": size, "pointerSize": 134}}
            )
            entries[path] = {"type": "file", "path": path, "size": size, **facts}
        return list(entries.values())

    def preupload(self, kind: str, name: str, revision: str) -> None:
        repository = self._repository(kind, name, writes="create_pr" not in self.query)
        tree = repository.commits[self._commit_id(repository, revision)]
        files = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith(_LARGE) else "regular"
            facts = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            files.append(facts | ({"oid": tree[file["path"]][1]} if file["path"] in tree else {}))
        self._json({"files": files, "commitOid": self._commit_id(repository, revision)})

    def lfs_batch(self, name: str, kind: str | None = None) -> None:
        repository = self._repository(kind or "models", name, writes=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            told = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in repository.blobs:
                where = f"{kind or 'models'}/{name}/{asked['oid']}"
                told["actions"] = {
                    "upload": {"href": f"{self.hub.cdn}/lfs/{where}", "header": {}},
                    "verify": {"href": f"{self.hub.endpoint}/lfs-verify/{where}", "header": {}},
                }
            objects.append(told)
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, kind: str, name: str, oid: str) -> None:
        self._see_no_token()
        if self.action == "corrupt":
            self.body = self.body[:-1] + bytes([self.body[-1] ^ 0xFF])
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, message="the content does not match its hash")
        self.hub.repositories[kind, name].blobs[oid] = self.body
        self._send(b"")

    def lfs_verify(self, kind: str, name: str, oid: str) -> None:
        repository = self._repository(kind, name, writes=True)
        if len(repository.blobs.get(oid, b"")) != json.loads(self.body)["size"]:
            raise _Refused(400, message="the upload is not complete")
        self._json({})

    def commit(self, kind: str, name: str, revision: str) -> None:
        is_request = "create_pr" in self.query
        repository = self._repository(kind, name, writes=not is_request)
        parent = self._commit_id(repository, revision)
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = lines[0]["value"]
        if header.get("parentCommit", parent) != parent:
            raise _Refused(412, message="A commit has happened since. Please refresh and try again.")
        tree = dict(repository.commits[parent])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                repository.blobs[git_id(content)] = content
                tree[value["path"]] = ("git", git_id(content))
            elif line["key"] == "lfsFile":
                if value["oid"] not in repository.blobs:
                    raise _Refused(400, message=f"{value['path']}: its content was not uploaded")
                tree[value["path"]] = ("lfs", value["oid"])
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
        with self.hub.lock:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
            sha = repository.commit(f"refs/pr/{number}" if is_request else revision, tree, header["summary"])
        base = f"{self.hub.endpoint}/{'' if kind == 'models' else 'datasets/'}{name}"
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{base}/commit/{sha}"}
        self._json(answer | ({"pullRequestUrl": f"{base}/discussions/{number}"} if is_request else {}))

    def resolve(self, name: str, revision: str, path: str, kind: str | None = None) -> None:
        """Serve a small file, and send who asks for a large one to the other host."""
        repository = self._repository(kind or "models", name)
        sha = self._commit_id(repository, revision)
        headers = {"X-Repo-Commit": sha}
        if path not in repository.commits[sha]:
            refused = {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self._send(b'{"error": "Entry not found"}', 404, refused)
            return
        mode, oid = repository.commits[sha][path]
        content = repository.blobs[oid]
        if mode == "lfs":
            where = f"{self.hub.cdn}/cdn/{kind or 'models'}/{name}/{oid}"
            headers |= {"Location": where, "X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            self._send(b"", 302, headers)
        else:
            self._content(content, oid, headers)

    def cdn(self, kind: str, name: str, oid: str) -> None:
        self._see_no_token()
        self._content(self.hub.repositories[kind, name].blobs[oid], oid, {})

    def _content(self, content: bytes, oid: str, headers: dict[str, str]) -> None:
        """Send a file, or the range of it that is asked for."""
        if self.action == "corrupt":
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
        headers |= {"ETag": f'"{oid}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._send(content, 200, headers)
            return
        start = int(asked[1]) if asked[1] else len(content) - int(asked[2])
        stop = min(int(asked[2]) + 1, len(content)) if asked[1] and asked[2] else len(content)
        if start >= len(content):
            headers["Content-Range"] = f"bytes */{len(content)}"
            self._send(b"", 416, headers)
            return
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._send(content[start:stop], 206, headers)

    def _see_no_token(self) -> None:
        """Note down where a token was sent that nobody asked for."""
        if "Authorization" in self.headers:
            self.hub.leaks.append(self.path)


def _is_text(data: Any, key: str) -> bool:
    """Return whether a field of the metadata is text, or is not there."""
    return not isinstance(data, dict) or isinstance(data.get(key, ""), str)


_REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"
_OBJECT = rf"{_KIND}/{_NAME}/(?P<oid>[0-9a-f]+)"

_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("GET/HEAD", rf"/api/{_KIND}/{_NAME}", _Handler.info),
    ("GET", rf"/api/{_KIND}/{_NAME}/revision/{_REVISION}", _Handler.info),
    ("POST", rf"/api/{_KIND}/{_NAME}/branch/{_REVISION}", _Handler.branch),
    ("GET", rf"/api/{_KIND}/{_NAME}/tree/{_REVISION}(?:/(?P<folder>.+))?", _Handler.tree),
    ("POST", rf"/api/{_KIND}/{_NAME}/paths-info/{_REVISION}", _Handler.paths_info),
    ("POST", rf"/api/{_KIND}/{_NAME}/preupload/{_REVISION}", _Handler.preupload),
    ("POST", rf"/api/{_KIND}/{_NAME}/commit/{_REVISION}", _Handler.commit),
    ("POST", rf"(?:/(?P<kind>datasets))?/{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", rf"/lfs/{_OBJECT}", _Handler.lfs_put),
    ("POST", rf"/lfs-verify/{_OBJECT}", _Handler.lfs_verify),
    ("GET/HEAD", rf"/cdn/{_OBJECT}", _Handler.cdn),
    ("GET/HEAD", rf"(?:/(?P<kind>datasets))?/{_NAME}/resolve/{_REVISION}/(?P<path>.+)", _Handler.resolve),
]
