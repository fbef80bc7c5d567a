"""Vendors' batch queues on this machine: HTTP servers that take, run and hand out batches as the vendors' SDKs expect, and bill for it.

Each serves its live endpoint, too, and answers the same question in the same way there. What it is told to do wrong is in `Switches`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from anthropic.types.beta.messages import BetaMessageBatch, BetaMessageBatchIndividualResponse
from openai.types import Batch, FileObject
from openai.types import batch_create_params as openai_params
from pydantic import TypeAdapter

from guerdon.providers.chat import Chat
from tests.vendors import VENDORS, Call, texts

Fate = Literal["ok", "twice", "server error", "bad request", "expired", "cancelled", "missing", "damaged"]
"""What becomes of one line: an answer, the same on two lines, a failure, an end without being run, no result at all, a broken line."""
Ending = Literal["completed", "expired", "cancelled", "failed"]


@dataclass(frozen=True)
class Line:
    """One request of a batch."""

    job: int
    """Number of the batch, from 0."""
    position: int
    name: str
    body: Mapping[str, Any]


@dataclass
class Switches:
    """What a server does wrong."""

    polls: int = 1
    """How often a batch says that it is still running."""
    cut: int = 0
    """So many creations are carried out, but the connection breaks before the answer."""
    lost: int = 0
    """So many creations are not carried out, and the connection breaks."""
    refused: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """Creations that get this status and body instead; nothing comes into being."""
    fate: Callable[[Line], Fate] = lambda _line: "ok"
    ending: Callable[[int], Ending] = lambda _job: "completed"
    """How batch number N ends."""
    error_code: str = "token_limit_exceeded"
    """Code of a batch that failed as a whole (OpenAI)."""
    gone: bool = False
    """The results of ended batches have been deleted (Anthropic)."""


@dataclass
class Job:
    """A batch that the vendor has taken."""

    id: str
    number: int
    display_name: str
    lines: list[Line]
    created: float
    polls_left: int
    ending: Ending
    fates: list[Fate]
    input_file: str = ""
    cancelled: bool = False

    @property
    def ended(self) -> bool:
        return self.polls_left <= 0

    def looked_at(self) -> Job:
        self.polls_left -= 1
        return self


@dataclass(frozen=True)
class Out:
    """An HTTP answer."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


class NotFound(Exception):
    """No such thing."""


class Cut(Exception):
    """Close the connection without an answer."""


def out(body: Mapping[str, Any], status: int = 200, **headers: str) -> Out:
    """A JSON answer."""
    return Out(json.dumps(body).encode(), status, headers)


def jsonl(records: list[Any]) -> bytes:
    """Records on lines; a text is a line as it is."""
    return b"".join((record if isinstance(record, str) else json.dumps(record, ensure_ascii=False)).encode() + b"\n" for record in records)


def answer_text(body: Mapping[str, Any], actions: int) -> str:
    """What a rater says: depends on the texts of the conversation only. The first turn is analysed, a later one scored."""
    state = hashlib.sha256(json.dumps(sorted(texts(body))).encode()).digest()
    if _is_later_turn(body):
        return json.dumps({"scores": [byte % 11 for byte in state[:actions]]})
    return "\n".join(f"{number}: change\u2028number {state[number]}" for number in range(actions))


def _is_later_turn(body: Mapping[str, Any]) -> bool:
    return re.search(r'"role": "(assistant|model)"', json.dumps(body)) is not None


_CHECKED: set[str] = set()
"""Kinds of requests that have been compared with the vendors' own types."""


class BatchServer(ABC):
    """One vendor."""

    vendor: str
    actions = 2
    """Scores in an answer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.switches = Switches()
        self.jobs: dict[str, Job] = {}
        self.files: dict[str, bytes] = {}
        self.creations = 0
        """Calls that were meant to make a batch."""
        self.live = 0
        """Questions asked live."""
        self.billed: Counter[str] = Counter()
        """Digest of a question -> how often it was run."""

    # --- the same for all ---

    def provider(self, monkeypatch: Any, config: Any = None) -> Chat:
        """A rater that asks this server."""
        vendor = VENDORS[self.vendor]
        for name, value in vendor.environment.items():
            monkeypatch.setenv(name, value.format(url=self.url))
        return Chat(vendor.spec(self.url), config)

    def reply(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body of an ordinary answer."""
        shape = f"{self.vendor} {sorted(body)} {_is_later_turn(body)}"
        if shape not in _CHECKED:  # checking takes a while
            VENDORS[self.vendor].check(Call(self.live_path, {}, dict(body)))
            _CHECKED.add(shape)
        self.billed[hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()] += 1
        return VENDORS[self.vendor].reply(answer_text(body, self.actions))

    def begin(self, display_name: str, requests: list[tuple[str, Mapping[str, Any]]], input_file: str = "") -> Job:
        """Takes a batch and runs it at once; or not, if so told."""
        self.creations += 1
        if self.switches.refused:
            raise Refused(*self.switches.refused.pop(0))
        if self.switches.lost:
            self.switches.lost -= 1
            raise Cut
        names = [name for name, _ in requests]
        assert len(set(names)) == len(names) > 0
        assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in names)
        number = len(self.jobs)
        lines = [Line(number, position, name, body) for position, (name, body) in enumerate(requests)]
        ending = self.switches.ending(number)
        fates: list[Fate] = ["missing" if ending == "failed" else self.switches.fate(line) for line in lines]
        job = Job(self.id_of(number), number, display_name, lines, time.time(), self.switches.polls, ending, fates, input_file)
        self.run(job)
        self.jobs[job.id] = job
        if self.switches.cut:
            self.switches.cut -= 1
            raise Cut
        return job

    def job(self, name: str) -> Job:
        if name not in self.jobs:
            raise NotFound
        return self.jobs[name]

    @property
    @abstractmethod
    def live_path(self) -> str:
        """Path of the live endpoint."""

    @abstractmethod
    def id_of(self, number: int) -> str:
        """The vendor's name of batch `number`."""

    @abstractmethod
    def run(self, job: Job) -> None:
        """Does the work of a batch and files its results."""

    @abstractmethod
    def serve(self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Out:
        """Answers a request."""


class Refused(Exception):
    """An HTTP error."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        self.status, self.body = status, body


_ORDER = TypeAdapter(openai_params.BatchCreateParams)


class OpenAIServer(BatchServer):
    """OpenAI's Files and Batch API over Responses."""

    vendor = "openai"
    live_path = "/v1/responses"

    def id_of(self, number: int) -> str:
        return f"batch_{number}"

    def run(self, job: Job) -> None:
        output: list[Any] = []
        errors: list[Any] = []
        for line, fate in zip(job.lines, job.fates, strict=True):
            common = {"id": f"batch_req_{line.position}", "custom_id": line.name}
            if fate in ("ok", "twice"):
                answer = {**common, "response": {"status_code": 200, "request_id": "r", "body": self.reply(line.body)}, "error": None}
                output += [answer] * (2 if fate == "twice" else 1)
            elif fate in ("server error", "bad request"):
                kind, status = ("server_error", 500) if fate == "server error" else ("invalid_request_error", 400)
                error = {"error": {"message": "no", "type": kind, "param": None, "code": None}}
                errors.append({**common, "response": {"status_code": status, "request_id": "r", "body": error}, "error": None})
            elif fate in ("expired", "cancelled"):
                errors.append({**common, "response": None, "error": {"code": f"batch_{fate}", "message": "not run"}})
            elif fate == "damaged":
                output.append(f'{{"custom_id": "{line.name}", "resp')
        self.files[f"output-{job.number}"] = jsonl(output[::-1])
        self.files[f"errors-{job.number}"] = jsonl(errors)

    def describe(self, job: Job) -> dict[str, Any]:
        """The batch as the API shows it."""
        state = job.ending if job.ended else "in_progress"
        done = sum(fate in ("ok", "twice") for fate in job.fates) if job.ended else 0
        body: dict[str, Any] = {
            "id": job.id, "object": "batch", "endpoint": "/v1/responses", "completion_window": "24h", "status": state,
            "created_at": int(job.created), "input_file_id": job.input_file, "metadata": {"guerdon": job.display_name},
            "request_counts": {"total": len(job.lines), "completed": done, "failed": len(job.lines) - done if job.ended else 0},
        }  # fmt: skip
        if job.ended and job.ending == "failed":
            error = {"code": self.switches.error_code, "message": "no", "line": None, "param": None}
            body["errors"] = {"object": "list", "data": [error]}
        elif job.ended:
            body |= {"output_file_id": f"output-{job.number}", "error_file_id": f"errors-{job.number}"}
        return Batch.model_validate(body).model_dump(mode="json")

    def serve(self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Out:
        parts = path.removeprefix("/v1/").split("/")
        match method, parts:
            case "POST", ["responses"]:
                self.live += 1
                return out(self.reply(json.loads(body)))
            case "POST", ["files"]:
                return out(self._upload(headers, body))
            case "DELETE", ["files", name]:
                if self.files.pop(name, None) is None:
                    raise NotFound
                return out({"id": name, "object": "file", "deleted": True})
            case "GET", ["files", name, "content"]:
                if name not in self.files:
                    raise NotFound
                return Out(self.files[name], content_type="application/octet-stream")
            case "POST", ["batches"]:
                return out(self.describe(self._create(json.loads(body))))
            case "GET", ["batches"]:
                return out(self._list(query))
            case "GET", ["batches", name]:
                return out(self.describe(self.job(name).looked_at()))
            case "POST", ["batches", name, "cancel"]:
                self.job(name).cancelled = True
                return out(self.describe(self.job(name)))
        raise NotFound

    def _upload(self, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        form = BytesParser().parsebytes(b"Content-Type: " + headers["content-type"].encode() + b"\r\n\r\n" + body)
        fields: dict[Any, bytes] = {}
        for part in form.get_payload():  # type: ignore[union-attr]
            fields[part.get_param("name", header="content-disposition")] = part.get_payload(decode=True)  # type: ignore[union-attr, assignment]
        assert fields["purpose"] == b"batch"
        name = f"file-{len(self.files)}"
        self.files[name] = fields["file"]
        record = {
            "id": name, "object": "file", "bytes": len(fields["file"]), "created_at": int(time.time()), "filename": "batch.jsonl",
            "purpose": "batch", "status": "processed",
        }  # fmt: skip
        return FileObject.model_validate(record).model_dump(mode="json")

    def _create(self, order: dict[str, Any]) -> Job:
        _ORDER.validate_python(order)
        assert order["endpoint"] == "/v1/responses"
        requests = []
        for text in self.files[order["input_file_id"]].splitlines():
            line = json.loads(text)
            assert set(line) == {"custom_id", "method", "url", "body"}
            assert (line["method"], line["url"]) == ("POST", "/v1/responses")
            requests.append((line["custom_id"], line["body"]))
        return self.begin(order["metadata"]["guerdon"], requests, order["input_file_id"])

    def _list(self, query: Mapping[str, str]) -> dict[str, Any]:
        jobs = list(self.jobs.values())[::-1]
        after = next((i + 1 for i, job in enumerate(jobs) if job.id == query.get("after")), 0)
        page = jobs[after : after + 2]  # small pages, so that a client must turn them
        data = [self.describe(job) for job in page]
        ends = {"first_id": page[0].id, "last_id": page[-1].id} if page else {}
        return {"object": "list", "data": data, "has_more": after + 2 < len(jobs), **ends}


class AnthropicServer(BatchServer):
    """Anthropic's Message Batches."""

    vendor = "anthropic"
    live_path = "/v1/messages"

    def id_of(self, number: int) -> str:
        return f"msgbatch_{number}"

    def run(self, job: Job) -> None:
        records: list[Any] = []
        for line, fate in zip(job.lines, job.fates, strict=True):
            result: dict[str, Any]
            if fate in ("ok", "twice"):
                result = {"type": "succeeded", "message": self.reply(line.body)}
            elif fate in ("server error", "bad request"):
                kind = "api_error" if fate == "server error" else "invalid_request_error"
                result = {"type": "errored", "error": {"type": "error", "request_id": "r", "error": {"type": kind, "message": "no"}}}
            elif fate in ("expired", "cancelled"):
                result = {"type": "canceled" if fate == "cancelled" else fate}
            elif fate == "damaged":
                continue  # the SDK reads the lines
            else:
                continue
            record = {"custom_id": line.name, "result": result}
            BetaMessageBatchIndividualResponse.model_validate(record)
            records += [record] * (2 if fate == "twice" else 1)
        self.files[job.id] = jsonl(records)

    def describe(self, job: Job) -> dict[str, Any]:
        """The batch as the API shows it."""
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        names = {"ok": "succeeded", "twice": "succeeded", "expired": "expired", "cancelled": "canceled"}
        for fate in job.fates:
            counts[names.get(fate, "errored") if job.ended else "processing"] += 1
        created = datetime.fromtimestamp(job.created, UTC).isoformat()
        body = {
            "id": job.id, "type": "message_batch", "processing_status": "ended" if job.ended else "in_progress", "request_counts": counts,
            "created_at": created, "expires_at": created, "ended_at": created if job.ended else None, "cancel_initiated_at": None,
            "archived_at": created if self.switches.gone else None,
            "results_url": f"{self.url}/v1/messages/batches/{job.id}/results" if job.ended and not self.switches.gone else None,
        }  # fmt: skip
        return BetaMessageBatch.model_validate(body).model_dump(mode="json")

    def serve(self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Out:
        match method, path.removeprefix("/v1/messages").strip("/").split("/"):
            case "POST", [""]:
                self.live += 1
                return out(self.reply(json.loads(body)))
            case "POST", ["batches"]:
                order = json.loads(body)
                assert set(order) == {"requests"}
                assert all(set(request) == {"custom_id", "params"} for request in order["requests"])
                return out(self.describe(self.begin("", [(request["custom_id"], request["params"]) for request in order["requests"]])))
            case "GET", ["batches"]:
                jobs = list(self.jobs.values())[::-1]
                after = next((i + 1 for i, job in enumerate(jobs) if job.id == query.get("after_id")), 0)
                page = jobs[after : after + 2]
                ends = {"first_id": page[0].id, "last_id": page[-1].id} if page else {"first_id": None, "last_id": None}
                return out({"data": [self.describe(job.looked_at()) for job in page], "has_more": after + 2 < len(jobs), **ends})
            case "GET", ["batches", name]:
                return out(self.describe(self.job(name).looked_at()))
            case "GET", ["batches", name, "results"]:
                return Out(self.files[self.job(name).id], content_type="application/binary")
            case "POST", ["batches", name, "cancel"]:
                self.job(name).cancelled = True
                return out(self.describe(self.job(name)))
        raise NotFound


class GoogleServer(BatchServer):
    """Gemini's Files and Batch Mode."""

    vendor = "google"
    live_path = "/v1beta/models/gemini-2.5-flash:generateContent"

    def id_of(self, number: int) -> str:
        return f"batches/{number}"

    def run(self, job: Job) -> None:
        records: list[Any] = []
        for line, fate in zip(job.lines, job.fates, strict=True):
            if fate in ("ok", "twice"):
                records += [{"key": line.name, "response": self.reply(line.body)}] * (2 if fate == "twice" else 1)
            elif fate in ("server error", "bad request"):
                code = 13 if fate == "server error" else 3
                records.append({"key": line.name, "error": {"code": code, "message": "no"}})
            elif fate == "damaged":
                records.append(f'{{"key": "{line.name}", "resp')
        self.files[f"files/output-{job.number}"] = jsonl(records)

    def describe(self, job: Job) -> dict[str, Any]:
        """The batch as the API shows it: an operation."""
        states = {"completed": "SUCCEEDED", "failed": "FAILED", "expired": "EXPIRED", "cancelled": "CANCELLED"}
        state = states[job.ending] if job.ended else "RUNNING"
        metadata: dict[str, Any] = {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch", "name": job.id,
            "model": "models/gemini-2.5-flash", "displayName": job.display_name, "state": f"BATCH_STATE_{state}",
            "createTime": datetime.fromtimestamp(job.created, UTC).isoformat().replace("+00:00", "Z"),
        }  # fmt: skip
        if job.ended and job.ending != "failed" and (job.ending == "completed" or any(fate == "ok" for fate in job.fates)):
            metadata["output"] = {"responsesFile": f"files/output-{job.number}"}
        return {"name": job.id, "metadata": metadata, "done": job.ended}

    def serve(self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Out:
        if method == "POST" and path == "/upload/v1beta/files":
            assert headers["x-goog-upload-protocol"] == "resumable"
            name = json.loads(body)["file"]["name"]
            assert re.fullmatch(r"files/[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", name), name
            return out({}, **{"X-Goog-Upload-URL": f"{self.url}/upload/{name}", "X-Goog-Upload-Status": "active"})
        if method == "POST" and path.startswith("/upload/files/"):
            name = path.removeprefix("/upload/")
            self.files[name] = self.files.get(name, b"") + body
            final = "finalize" in headers["x-goog-upload-command"]
            record = {"file": {"name": name, "uri": f"{self.url}/v1beta/{name}", "mimeType": "application/jsonl", "state": "ACTIVE"}}
            return out(record if final else {}, **{"X-Goog-Upload-Status": "final" if final else "active"})
        name = path.removeprefix("/v1beta/")
        match method, name.rpartition(":")[::2] if ":" in name else (name, ""):
            case "POST", (_, "generateContent"):
                self.live += 1
                return out(self.reply(json.loads(body)))
            case "POST", ("models/gemini-2.5-flash", "batchGenerateContent"):
                order = json.loads(body)["batch"]
                assert set(order) == {"displayName", "inputConfig"}
                lines = [json.loads(text) for text in self.files[order["inputConfig"]["fileName"]].splitlines()]
                assert all(set(line) == {"key", "request"} for line in lines)
                return out(self.describe(self.begin(order["displayName"], [(line["key"], line["request"]) for line in lines])))
            case "GET", ("batches", ""):
                jobs = list(self.jobs.values())[::-1]
                after = int(query.get("pageToken") or 0)
                more = {"nextPageToken": str(after + 2)} if after + 2 < len(jobs) else {}
                return out({"operations": [self.describe(job) for job in jobs[after : after + 2]], **more})
            case "GET", (batch, "") if batch.startswith("batches/"):
                return out(self.describe(self.job(batch).looked_at()))
            case "POST", (batch, "cancel"):
                self.job(batch).cancelled = True
                return out({})
            case "GET", (file, "download"):
                return Out(self.files[file], content_type="application/octet-stream")
            case "DELETE", (file, ""):
                if self.files.pop(file, None) is None:
                    raise NotFound
                return out({})
        raise NotFound


SERVERS: dict[str, type[BatchServer]] = {kind.vendor: kind for kind in (OpenAIServer, AnthropicServer, GoogleServer)}


@contextmanager
def serve(vendor: str) -> Iterator[BatchServer]:
    """A vendor's server on a free port of this machine. What went wrong inside it is raised at the end."""
    trouble: list[BaseException] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if "chunked" not in self.headers.get(
                "Transfer-Encoding", "") else self._chunks()  # fmt: skip
            target = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(target.query).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                with server.lock:
                    found = server.serve(self.command, target.path, query, headers, body)
            except NotFound:
                found = out({"error": {"message": f"no {self.path}", "type": "not_found_error", "code": 404}}, 404)
            except Refused as refused:
                found = out(refused.body, refused.status)
            except Cut:
                self.close_connection = True
                return
            except BaseException as error:
                trouble.append(error)
                found = out({"error": {"message": repr(error)}}, 500)
            self.send_response(found.status)
            for name, value in {"Content-Type": found.content_type, "Content-Length": str(len(found.body)), **found.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(found.body)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815

        def _chunks(self) -> bytes:
            body = b""
            while length := int(self.rfile.readline(), 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, format: str, *args: object) -> None:
            return

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            return  # a client that gave up waiting

    http = Quiet(("127.0.0.1", 0), Handler)
    server = SERVERS[vendor](f"http://127.0.0.1:{http.server_address[1]}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
    if trouble:
        raise trouble[0]
