"""A W&B server in this process, as far as reading runs and artifacts goes: the real `wandb.Api` speaks to it over HTTP.

It answers the GraphQL queries by their names with what `Run` and `Artifact` below say. Queries it doesn't know are
answered with nothing and kept in `unknown`. It keeps what the client asked in `asked`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAGE = 2
"""Runs of one answer: a client that reads the first page only finds two."""


@dataclass
class Artifact:
    """One version of an artifact."""

    name: str
    files: dict[str, bytes]
    version: int = 0
    type: str = "run-record"
    state: str = "COMMITTED"


@dataclass
class Run:
    """One run of the project."""

    name: str
    artifacts: Sequence[Artifact] = ()
    summary: dict[str, Any] = field(default_factory=dict)
    state: str = "finished"


class StandIn:
    """The project `entity/project` with its runs, served at `url`."""

    def __init__(self, runs: Sequence[Run], entity: str = "people", project: str = "demo") -> None:
        self.runs, self.entity, self.project, self.url = list(runs), entity, project, ""
        self.asked: list[str] = []
        self.unknown: list[str] = []

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The `data` of a GraphQL answer."""
        found = re.search(r"query\s+(\w+)", query)
        name = found[1] if found else query
        self.asked.append(name)
        if name in ("Viewer", "GetDefaultEntity"):
            return {
                "viewer": {"id": "1", "entity": self.entity, "username": "me", "teams": {"edges": []}, "flags": "{}"}
            }
        if (
            variables.get("entity", self.entity) != self.entity
            or variables.get("project", self.project) != self.project
        ):
            return {"project": None}
        if name == "Runs":
            start = int(variables.get("cursor") or 0)
            page = self.runs[start : start + PAGE]
            edges = [{"node": self._run(run), "cursor": str(start + i + 1)} for i, run in enumerate(page)]
            more = {"endCursor": str(start + len(page)), "hasNextPage": start + PAGE < len(self.runs)}
            runs = {"edges": edges, "pageInfo": more}
            return {"project": {"internalId": "1", "runCount": len(self.runs), "readOnly": False, "runs": runs}}
        if name == "Run":
            return {"project": {"run": next((self._run(r) for r in self.runs if r.name == variables["name"]), None)}}
        if name == "RunOutputArtifacts":
            run = next(run for run in self.runs if run.name == variables["run"])
            edges = [{"node": self._artifact(run, place)} for place in range(len(run.artifacts))]
            page_info = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            found_all = {"totalCount": len(edges), "pageInfo": page_info, "edges": edges}
            return {"project": {"run": {"artifacts": found_all}}}
        if name == "FetchArtifactManifest":
            return {"artifact": {"currentManifest": {"file": {"directUrl": f"{self.url}/manifest/{variables['id']}"}}}}
        if name == "GetArtifactMembershipFileUrls":
            return {"project": {"artifactCollection": self._urls(variables["collection"], variables["alias"])}}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        self.unknown.append(name)
        return {}

    def _urls(self, collection: str, alias: str) -> dict[str, Any]:
        artifact = next(
            one for run in self.runs for one in run.artifacts if (one.name, f"v{one.version}") == (collection, alias)
        )
        edges = [
            {"node": {"__typename": "File", "name": name, "directUrl": f"{self.url}/file/{collection}/{alias}/{name}"}}
            for name in artifact.files
        ]
        page_info = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        files = {"pageInfo": page_info, "edges": edges}
        return {"__typename": "ArtifactSequence", "artifactMembership": {"files": files}}

    def _find(self, identity: str) -> Artifact:
        run, _, place = identity.partition(":")
        return next(one for one in self.runs if one.name == run).artifacts[int(place)]

    def get(self, path: str) -> bytes | None:
        """What a GET of `path` brings: a manifest, or a file of an artifact."""
        kind, _, rest = path.strip("/").partition("/")
        if kind == "manifest":
            return json.dumps(self._manifest(self._find(rest))).encode()
        if kind == "file":
            collection, alias, name = rest.split("/", 2)
            every = [artifact for run in self.runs for artifact in run.artifacts]
            return next(one for one in every if (one.name, f"v{one.version}") == (collection, alias)).files[name]
        return None

    def _manifest(self, artifact: Artifact) -> dict[str, Any]:
        contents = {name: {"digest": digest(data), "size": len(data)} for name, data in artifact.files.items()}
        config = {"storageLayout": "V2"}
        policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": config}
        return {"version": 1, **policy, "contents": contents}

    def _run(self, run: Run) -> dict[str, Any]:
        return {
            **dict.fromkeys(("sweepName", "group", "jobType", "commit", "description", "notes"), None),
            "id": f"id-{run.name}",
            "projectId": "1",
            "tags": [],
            "name": run.name,
            "displayName": f"shown {run.name}",
            "state": run.state,
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00Z",
            "heartbeatAt": "2026-01-01T00:00:00Z",
            "historyLineCount": 0,
            "user": {"name": "me", "username": "me"},
            "config": "{}",
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps(run.summary),
            "historyKeys": None,
        }

    def _artifact(self, run: Run, place: int) -> dict[str, Any]:
        artifact = run.artifacts[place]
        project = {"id": "1", "internalId": "1", "name": self.project, "entity": {"name": self.entity}}
        collection = {"__typename": "ArtifactSequence", "name": artifact.name, "project": project}
        return {
            "__typename": "Artifact",
            "id": f"{run.name}:{place}",
            "artifactSequence": collection,
            "versionIndex": artifact.version,
            "artifactType": {"name": artifact.type},
            "description": None,
            "metadata": "{}",
            "ttlDurationSeconds": -2,
            "ttlIsInherited": False,
            "tags": [],
            "historyStep": None,
            "state": artifact.state,
            "size": sum(map(len, artifact.files.values())),
            "digest": digest(b"".join(artifact.files.values())),
            "commitHash": None,
            "fileCount": len(artifact.files),
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": "2026-01-01T00:00:00Z",
            "aliases": [],
        }


def digest(data: bytes) -> str:
    """MD5 in base64, as W&B has it."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


@contextmanager
def serving(stand_in: StandIn) -> Iterator[StandIn]:
    """Serves it on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Silent."""

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"data": stand_in.answer(asked["query"], asked.get("variables") or {})}).encode()
            self._send(200, body)

        def do_GET(self) -> None:
            stand_in.asked.append(f"GET {self.path}")
            body = stand_in.get(self.path)
            self._send(404 if body is None else 200, body or b"")

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stand_in.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
