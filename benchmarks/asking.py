"""What asking costs besides the rater's own time: requests per second, processor time, pictures, durable replies, memory.

    python benchmarks/asking.py [--quick] [--peers PYTHON] [--only clients pictures store memory]

- clients: 64 requests in flight, each with a picture of 60 kB, to a server in a process of its own on this machine that answers after
  200 ms, so that 320 requests/s are ideal. Every client asks for the same JSON and reads it. Ours are `openai-compatible`, three vendors
  of `chat`, and `openai-compatible` end to end, through `asking.scheduler.ask` with a store on disk. Beside them the openai SDK,
  pydantic-ai's Agent, litellm and instructor. The last two need an environment of their own, because they ask for another version of
  the openai SDK: `python -m venv P && P/bin/pip install litellm instructor`, then `--peers P/bin/python`.
- pictures: mosaics of 9 frames drawn and encoded, per second and core.
- store: replies on disk per second, 64 writers at once.
- memory: most memory in use while 100,000 windows go through `ask`.

Each number is the median of 3 runs (of 1 with --quick) in a process of its own with one thread. Processor time is that of the whole client.
"Others" is what everything else on the machine used meanwhile, in cores: where it is much, rates say little.
Takes less than 4 minutes; with --quick less than one.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

IN_FLIGHT, LATENCY, PICTURE_BYTES = 64, 0.2, 60_000
IDEAL = IN_FLIGHT / LATENCY
WARM_UP = 1.0
"""Seconds before the first run of a client."""
SCORES = {"scores": [3, 9, 1, 10, 3, 3, 9, 9]}
PICTURE = b"\xff\xd8\xff" + bytes(number * 7919 % 251 for number in range(PICTURE_BYTES))
PROMPT = "Score each of the 8 actions by how far it serves the instruction. " * 8
OURS = ("openai-compatible", "end to end", "chat openai", "chat anthropic", "chat google")
BESIDE = ("openai SDK", "pydantic-ai Agent")
PEERS = ("litellm", "instructor")
PACKAGES = {"openai SDK": "openai", "pydantic-ai Agent": "pydantic-ai-slim", "litellm": "litellm", "instructor": "instructor"}
MOST_MEMORY = 1024
"""MiB that asking about any number of windows must stay below."""


# --- the server ---------------------------------------------------------------------------------------------------------------------


def _bodies() -> dict[bytes, bytes]:
    """Part of the path -> answer of that API."""
    text = json.dumps(SCORES)
    usage = {"prompt_tokens": 900, "completion_tokens": 30, "total_tokens": 930}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    chat = {"id": "c", "object": "chat.completion", "created": 1, "model": "served", "choices": [choice], "usage": usage}
    output = {"id": "m", "type": "message", "role": "assistant", "status": "completed"}
    output |= {"content": [{"type": "output_text", "text": text, "annotations": []}]}
    details = {"input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    response = {
        "id": "r", "object": "response", "created_at": 1, "model": "gpt-4.1", "status": "completed", "output": [output],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "usage": {"input_tokens": 900, "output_tokens": 30, "total_tokens": 930, **details},
    }  # fmt: skip
    message = {
        "id": "m", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6", "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 900, "output_tokens": 30},
    }  # fmt: skip
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP", "index": 0}
    counts = {"promptTokenCount": 900, "candidatesTokenCount": 30, "totalTokenCount": 930}
    google = {"candidates": [candidate], "usageMetadata": counts, "modelVersion": "gemini-2.5-flash", "responseId": "g"}
    bodies = {b"/chat/completions": chat, b"/responses": response, b"/messages": message, b":generateContent": google}
    return {path: json.dumps(body).encode() for path, body in bodies.items()}


class Answering(asyncio.Protocol):
    """As little of an HTTP server as will do: reads a POST, waits, answers."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.received, self.missing = transport, bytearray(), 0

    def data_received(self, data: bytes) -> None:
        if self.missing:
            self.missing -= len(data)
        else:
            self.received += data
            head, separator, rest = self.received.partition(b"\r\n\r\n")
            if not separator:
                return
            lowered = head.lower()
            length = int(lowered.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            self.answer = next(answer for path, answer in _ANSWERS.items() if path in head.split(b"\r\n", 1)[0])
            self.missing = length - len(rest)
            self.received.clear()
        if self.missing <= 0:
            self.missing = 0
            asyncio.get_running_loop().call_later(LATENCY, self.transport.write, self.answer)


_ANSWERS = {
    path: b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    for path, body in _bodies().items()
}


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def served() -> Iterator[tuple[str, int]]:
    """Address and process of a server."""
    process = subprocess.Popen([sys.executable, __file__, "--part", "serve"], stdout=subprocess.PIPE, text=True, env=environment(""))
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}", process.pid
    finally:
        process.kill()
        process.wait()


def environment(url: str) -> dict[str, str]:
    """One thread, no proxies, keys that nobody takes, and the vendors' addresses on this machine."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    keys = dict.fromkeys(("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY"), "benchmark")
    addresses = {"OPENAI_BASE_URL": f"{url}/v1", "ANTHROPIC_BASE_URL": url, "GOOGLE_GEMINI_BASE_URL": url}
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | one_thread | keys | addresses | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}


# --- clients ------------------------------------------------------------------------------------------------------------------------

Ask = Callable[[int], Awaitable[Any]]


def _ours(spec: str) -> Ask:
    from guerdon.answers import Scores
    from guerdon.recipes.raters import build
    from guerdon.records import Evidence, Message, Reply, Request, Subject

    provider, prepared, evidence = build(spec), prepared_pictures(), Evidence("go", ("left",) * 8, ())

    async def ask(number: int) -> None:
        turn = Message("user", PROMPT, (prepared(number),))
        request = Request(evidence, (turn,), Scores(8), "score", Subject(number, 0, 8))
        reply = await provider.ask(request)
        assert isinstance(reply, Reply), reply
        request.answer.read(reply.text)

    return ask


def prepared_pictures() -> Callable[[int], Any]:
    """Makes pictures, each another one, whose file is there already: what drawing and encoding cost is measured apart."""
    import numpy as np

    from guerdon.records import Picture, PictureFormat

    class Prepared(Picture):
        def encoded(self, form: PictureFormat) -> bytes:  # noqa: ARG002
            return PICTURE

    pixels = np.zeros((1, 1, 3), np.uint8)
    return lambda number: Prepared(f"s256:{number}", pixels)


def _data_url() -> str:
    return "data:image/jpeg;base64," + base64.b64encode(PICTURE).decode()


def _messages() -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": _data_url()}}, {"type": "text", "text": PROMPT}]
    return [{"role": "user", "content": parts}]


_SCHEMA = {
    "type": "object", "required": ["scores"], "additionalProperties": False,
    "properties": {"scores": {"type": "array", "items": {"type": "integer"}}},
}  # fmt: skip
_FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": _SCHEMA}}


def _answer_model() -> Any:
    from pydantic import create_model

    return create_model("Answer", scores=(list[int], ...))


def _openai_sdk(url: str) -> Ask:
    from openai import AsyncOpenAI

    client, answer = AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0), _answer_model()

    async def ask(_number: int) -> None:
        completion: Any = await client.chat.completions.create(model="served", messages=_messages(), response_format=_FORMAT)  # type: ignore[call-overload]
        answer.model_validate_json(completion.choices[0].message.content)

    return ask


def _agent(url: str) -> Ask:
    from pydantic_ai import Agent, BinaryContent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel("gpt-4.1", provider=OpenAIProvider(base_url=f"{url}/v1", api_key="x"))
    agent: Any = Agent(model, output_type=NativeOutput(_answer_model()))

    async def ask(_number: int) -> None:
        await agent.run([BinaryContent(PICTURE, media_type="image/jpeg"), PROMPT])

    return ask


def _litellm(url: str) -> Ask:
    import litellm

    answer = _answer_model()

    async def ask(_number: int) -> None:
        given = {"model": "openai/served", "api_base": f"{url}/v1", "api_key": "x", "num_retries": 0, "max_retries": 0}
        completion = await litellm.acompletion(**given, messages=_messages(), response_format=_FORMAT)
        answer.model_validate_json(completion.choices[0].message.content)

    return ask


def _instructor(url: str) -> Ask:
    import instructor
    from openai import AsyncOpenAI

    client = instructor.from_openai(AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0), mode=instructor.Mode.JSON_SCHEMA)
    answer = _answer_model()

    async def ask(_number: int) -> None:
        await client.chat.completions.create(model="served", response_model=answer, messages=_messages(), max_retries=1)

    return ask


def client(name: str, url: str) -> Ask:
    if name == "openai-compatible":
        return _ours(f"openai-compatible:served@{url}/v1")
    if name.startswith("chat "):
        models = {"openai": "openai:gpt-4.1", "anthropic": "anthropic:claude-sonnet-4-6", "google": "google:gemini-2.5-flash"}
        return _ours(models[name.removeprefix("chat ")])
    made = {"openai SDK": _openai_sdk, "pydantic-ai Agent": _agent, "litellm": _litellm, "instructor": _instructor}
    return made[name](url)


async def _ask_all(ask: Ask, numbers: Iterator[int], done: Callable[[], None] = lambda: None) -> None:
    async def worker() -> None:
        for number in numbers:
            await ask(number)
            done()

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))


class Meter:
    """Counts what is finished while requests keep coming: the beginning, which opens connections, and the end are left out."""

    def __init__(self, seconds: float, runs: int) -> None:
        began = time.perf_counter()
        self._marks = [began + WARM_UP + run * seconds for run in range(runs + 1)]
        self._passed: list[tuple[float, float, int]] = []
        self._count = 0

    def numbers(self) -> Iterator[int]:
        """Counts up until the last run is over."""
        for number in itertools.count():
            if len(self._passed) == len(self._marks):
                return
            yield number

    def done(self) -> None:
        self._count += 1
        now = time.perf_counter()
        if len(self._passed) < len(self._marks) and now >= self._marks[len(self._passed)]:
            self._passed.append((now, time.process_time(), self._count))

    def runs(self) -> list[dict[str, float]]:
        return [_figures(c - c0, t - t0, cpu - cpu0) for (t0, cpu0, c0), (t, cpu, c) in itertools.pairwise(self._passed)]


def part_client(name: str, url: str, seconds: float, runs: int) -> list[dict[str, float]]:
    """Requests a second and processor milliseconds a request, for each run."""
    if name == "end to end":
        return end_to_end(url, seconds, runs)

    async def measure() -> list[dict[str, float]]:
        ask, meter = client(name, url), Meter(seconds, runs)
        await _ask_all(ask, meter.numbers(), meter.done)
        return meter.runs()

    return asyncio.run(measure())


def _figures(count: int, seconds: float, cpu: float) -> dict[str, float]:
    return {"rate": count / seconds, "cpu": 1000 * cpu / count, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def end_to_end(url: str, seconds: float, runs: int) -> list[dict[str, float]]:
    """The same through the scheduler, every reply on disk before its window counts as done."""
    from guerdon.recipes.raters import build

    provider, meter = build(f"openai-compatible:served@{url}/v1"), Meter(seconds, runs)
    with tempfile.TemporaryDirectory() as folder:
        windows_through_ask(provider, Path(folder) / "store.sqlite", meter.numbers(), prepared_pictures(), meter.done)
    return meter.runs()


def windows_through_ask(
    provider: Any, path: Path, numbers: Iterator[int], picture: Callable[[int], Any], done: Callable[[], None], in_flight: int = IN_FLIGHT
) -> None:
    """Asks one question about each window."""
    from guerdon.answers import Scores
    from guerdon.asking.scheduler import ask
    from guerdon.asking.store import Store
    from guerdon.interfaces import Method
    from guerdon.records import Evidence, Label, Message, Reply, Request, Sample, Segment

    class OneQuestion(Method):
        name, version, scale = "one-question", "1", (0.0, 10.0)

        def next(self, sample: Any, exchanges: Any) -> Any:
            if exchanges:
                return None
            turn = Message("user", f"{PROMPT} Window {sample.segment.episode}.", (picture(sample.segment.episode),))
            return Request(Evidence("go", sample.actions, ()), (turn,), Scores(8), "score", sample.subject)

        def read(self, transcript: Any) -> list[Label]:  # noqa: ARG002
            return []

    samples = (Sample(Segment(number, 0, 8, ("full",)), "go", ("left",) * 8) for number in numbers)

    async def run() -> None:
        async for transcript in ask(samples, OneQuestion(), [provider], store, run="benchmark", concurrency=in_flight):
            assert isinstance(transcript.exchanges[-1].outcome, Reply), transcript.exchanges[-1].outcome
            done()
        await provider.close()

    with Store.open(path) as store:
        asyncio.run(run())


# --- pictures, store, memory --------------------------------------------------------------------------------------------------------


def part_pictures(repeats: int) -> list[tuple[str, float, float]]:
    """(what, a second, kB) for one core."""
    import numpy as np

    from guerdon.frames import mosaic
    from guerdon.records import PictureFormat

    def each(work: Callable[[], Any], times: int) -> float:
        work()
        began = time.process_time()
        for _ in range(times):
            work()
        return times / (time.process_time() - began)

    random = np.random.default_rng(0)
    found: list[tuple[str, float, float]] = []
    tiles = np.repeat(np.repeat(random.integers(0, 256, (9, 6, 11, 3), dtype=np.uint8), 8, axis=1), 8, axis=2)
    smooth = np.add.outer(np.arange(240), np.arange(320))[..., None] // np.array([2, 3, 4])
    camera = np.stack([(smooth + 20 * number + random.integers(0, 12, (240, 320, 3))) % 256 for number in range(9)]).astype(np.uint8)
    for name, frames in (("tiles 48x88", tiles), ("camera 240x320", camera)):
        picture = mosaic(frames)
        found.append((f"{name}, drawn", each(lambda frames=frames: mosaic(frames), repeats), 0.0))
        for form in (PictureFormat("png"), PictureFormat("jpeg", 90)):
            rate = each(lambda picture=picture, form=form: picture.encoded(form), max(1, repeats // 2))
            found.append((f"{name}, {form.text}", rate, len(picture.encoded(form)) / 1000))
    return found


def part_store(count: int) -> dict[str, float]:
    """Replies a second that are on disk, and processor milliseconds for each."""
    from guerdon.answers import Scores
    from guerdon.asking.store import Store
    from guerdon.records import Evidence, Message, Rater, Reply, Request, Subject, Usage

    rater, usage = Rater("benchmark", "model"), Usage(900, 30, 0.001)
    requests = [
        Request(Evidence("go", ("left",) * 8, ()), (Message("user", f"{PROMPT} {number}"),), Scores(8), "score", Subject(number, 0, 8))
        for number in range(count)
    ]

    async def record(store: Any) -> None:
        async def write(number: int) -> None:
            await store.record(requests[number], rater, 0, Reply(json.dumps(SCORES), "model", usage, 0.2), run="benchmark")

        await _ask_all(write, iter(range(count)))

    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "store.sqlite") as store:
        began, cpu = time.perf_counter(), time.process_time()
        asyncio.run(record(store))
        return _figures(count, time.perf_counter() - began, time.process_time() - cpu)


def part_memory(windows: int) -> dict[str, float]:
    """Windows a second with a rater that answers at once, and the most memory in use, in MiB."""
    import numpy as np

    from guerdon.frames import frame_picture
    from guerdon.providers.scripted import Scripted

    def picture(number: int) -> Any:
        return frame_picture(np.full((64, 64, 3), number % 256, np.uint8))

    provider = Scripted.build("perfect", truth=lambda subject: np.ones(subject.stop - subject.start))
    with tempfile.TemporaryDirectory() as folder:
        began, cpu = time.perf_counter(), time.process_time()
        windows_through_ask(provider, Path(folder) / "store.sqlite", iter(range(windows)), picture, lambda: None, in_flight=512)
        return _figures(windows, time.perf_counter() - began, time.process_time() - cpu)


# --- tables -------------------------------------------------------------------------------------------------------------------------


def part_label(windows: int) -> dict[str, float]:
    """The whole of `guerdon.label` over so many windows of eight: pictures, two turns, votes, a label set on disk."""
    import numpy as np

    import guerdon
    from guerdon.recipes import label as recipe

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.memory import MemoryDataset, MemoryEpisode

    class WithTruth(MemoryDataset):
        def privileged(self, index: int) -> Mapping[str, Any]:  # noqa: ARG002
            return {"contribution": np.tile([1.0, 0.0], 400).astype(np.float32)}

    recipe.open_data = lambda _path, _options: WithTruth([MemoryEpisode(800, f"go to ball {n}") for n in range(-(-windows // 100))])
    began, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labelled = guerdon.label(dataset=folder, run=folder / "run", store=str(folder / "s.sqlite"), concurrency=64, quiet=True)
        assert labelled.labels.coverage > 0.9
    figures = _figures(windows, time.perf_counter() - began, time.process_time() - cpu)
    return figures | {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def in_own_process(*arguments: str, python: str = sys.executable, url: str = "") -> Any:
    """What a part of this script prints, as JSON; None if it fails, which is said."""
    done = subprocess.run([python, __file__, "--part", *arguments], capture_output=True, text=True, env=environment(url), check=False)
    if done.returncode:
        print(f"  FAILED {' '.join(arguments)}: {(done.stderr.strip().splitlines() or ['no word'])[-1][:200]}", flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def median(runs: list[dict[str, float]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def clients(peers: str, seconds: float, runs: int) -> None:
    print(f"\n{IN_FLIGHT} requests in flight, {PICTURE_BYTES // 1000} kB pictures, {1000 * LATENCY:.0f} ms (ideal: {IDEAL:.0f} requests/s)")
    print(f"{'client':<30} {'requests/s':>10} {'of ideal':>9} {'CPU ms/request':>15} {'MiB':>6} {'others':>7}")
    with served() as (url, server):
        for name in (*OURS, *BESIDE, *PEERS):
            if name in PEERS and not peers:
                print(f"{name:<30} SKIPPED: give --peers PYTHON of an environment with litellm and instructor")
                continue
            began, before = time.monotonic(), others(server)
            found = in_own_process("client", name, url, str(seconds), str(runs), python=peers if name in PEERS else sys.executable, url=url)
            if found:
                rate = median(found, "rate")
                meanwhile = (others(server) - before) / (time.monotonic() - began)
                row = f"{rate:>10.0f} {rate / IDEAL:>9.0%} {median(found, 'cpu'):>15.2f} {median(found, 'memory'):>6.0f} {meanwhile:>7.1f}"
                print(f"{_with_version(name, peers):<30} {row}", flush=True)
    print("goal for openai-compatible: at least 90% of ideal with at most 3 ms of CPU")


def _with_version(name: str, peers: str) -> str:
    package = PACKAGES.get(name)
    if package is None:
        return name
    if name in PEERS:
        code = f"from importlib.metadata import version; print(version({package!r}))"
        return f"{name} {subprocess.run([peers, '-c', code], capture_output=True, text=True, check=False).stdout.strip()}"
    return f"{name} {version(package)}"


def pictures(repeats: int, runs: int) -> None:
    print(f"\n{'mosaics of 9 frames':<30} {'a second and core':>18} {'kB':>8}")
    found = [in_own_process("pictures", str(repeats)) for _ in range(runs)]
    for rows in zip(*[run for run in found if run], strict=True):
        print(f"{rows[0][0]:<30} {statistics.median(row[1] for row in rows):>18.1f} {rows[0][2]:>8.0f}")


def store(count: int, runs: int) -> None:
    found = [run for run in (in_own_process("store", str(count)) for _ in range(runs)) if run]
    if found:
        print(f"\nreplies on disk, {IN_FLIGHT} writers: {median(found, 'rate'):.0f} a second, {median(found, 'cpu'):.2f} CPU ms each")


def memory(windows: int, part: str = "memory", what: str = "ask") -> None:
    found = in_own_process(part, str(windows))
    if found:
        verdict = "below" if found["memory"] < MOST_MEMORY else "NOT BELOW"
        rate = f"{found['rate']:.0f} windows/s, {found['cpu']:.2f} CPU ms each"
        print(f"\n{windows:,} windows through {what}: {found['memory']:.0f} MiB at most ({verdict} {MOST_MEMORY}), {rate}")


def others(server: int) -> float:
    """Seconds of processor time that everything but this script, its clients and the server has used; 0 where nobody counts them."""
    try:
        all_of_it = sum(int(Path("/proc/stat").read_text(encoding="utf-8").split()[field]) for field in (1, 2, 3, 6, 7, 8))
        of_server = sum(int(value) for value in Path(f"/proc/{server}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13])
    except OSError:
        return 0.0
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return (all_of_it - of_server) / os.sysconf("SC_CLK_TCK") - own


def machine() -> str:
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    try:
        own = version("guerdon")
    except PackageNotFoundError:
        own = "not installed"
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{os.cpu_count()} cores of {model}, {platform.system()}, Python {platform.python_version()}, guerdon {own}, {load} before"


def part(arguments: list[str]) -> None:
    kind, *rest = arguments
    if kind == "serve":
        asyncio.run(serve())
    parts: dict[str, Callable[..., Any]] = {
        "client": lambda name, url, seconds, runs: part_client(name, url, float(seconds), int(runs)),
        "pictures": lambda repeats: part_pictures(int(repeats)),
        "store": lambda count: part_store(int(count)),
        "memory": lambda windows: part_memory(int(windows)),
        "label": lambda windows: part_label(int(windows)),
    }
    print(json.dumps(parts[kind](*rest)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run each, fewer requests")
    parser.add_argument("--peers", default="", metavar="PYTHON", help="interpreter of an environment with litellm and instructor")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=("clients", "pictures", "store", "memory", "label"),
        default=None,
        help="label takes minutes and is left out unless named",
    )
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part(arguments.part)
        return
    runs, quick, began = 1 if arguments.quick else 3, arguments.quick, time.monotonic()
    print(f"{machine()}; median of {runs} run{'s' if runs > 1 else ''}")
    tables: dict[str, Callable[[], None]] = {
        "clients": lambda: clients(arguments.peers, 2.0 if quick else 3.0, runs),
        "pictures": lambda: pictures(6 if quick else 12, runs),
        "store": lambda: store(1_000 if quick else 10_000, runs),
        "memory": lambda: memory(3_000 if quick else 100_000),
        "label": lambda: memory(3_000 if quick else 100_000, "label", "the whole of `label` (scripted rater)"),
    }
    for name in arguments.only or [name for name in tables if name != "label"]:
        tables[name]()
    print(f"\n{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
