"""Vendors' queues for requests that may wait for up to a day, at half price: OpenAI's Batch API, Anthropic's Message Batches, Gemini's
Batch Mode.

Requests are put into the vendor's words by pydantic-ai, exactly as they would be sent live, and their results are read by it; the calls in
between go through the vendors' SDKs, because pydantic-ai can neither name a batch nor list those there are. A batch is made by exactly one
call, never tried again by the SDK. Where the vendor takes a name for it (OpenAI: metadata, Gemini: display name), that tells later whether
it arrived; Anthropic takes none, but tells of an ended batch the names of its requests, which begin with the batch's own.

Of an error only cause, code and status are kept. Durations of single requests are unknown and said to be 0.
"""

from __future__ import annotations

import json
import tempfile
from abc import abstractmethod
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, ClassVar, cast

from pydantic_ai.exceptions import UserError
from pydantic_ai.models.batch import BatchRequest, BatchResult, EncodedBatchRequest

from guerdon import pricing
from guerdon.errors import ProviderError, ResultsGone, WriteFailed
from guerdon.interfaces import BatchDraft, Batches, BatchStatus
from guerdon.providers._settings import short_code, told_cause
from guerdon.records import Failure, Quote, Reply, Request, Usage

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types.beta.messages import BetaMessageBatch
    from google.genai import Client
    from google.genai.types import BatchJob
    from openai import AsyncOpenAI
    from openai.types import Batch as OpenAIBatch
    from pydantic_ai.models import Model
    from pydantic_ai.settings import ModelSettings

    from guerdon.providers.chat import Chat

_MARKER = "guerdon"
"""Key of a batch's name in OpenAI's metadata."""
_CLOCK_SKEW = 30 * 3600.0
"""Seconds by which a vendor's clock may differ from ours: also where somebody has set the clock to another time zone's."""
_NOT_RUN = Usage(0, 0, 0.0)
"""What a request cost that the vendor says it has not run."""
EXPIRED = Failure("timeout", final=False, code="batch_expired", usage=_NOT_RUN)
CANCELLED = Failure("timeout", final=False, code="batch_cancelled", usage=_NOT_RUN)


def of(chat: Chat) -> Batches | None:
    """The queue behind a chat rater; None if its vendor has none that is known here."""
    model = chat.model
    if model.batch_max_requests is None:
        return None
    found = {kind.model: kind for kind in (_OpenAI, _Anthropic, _Google)}.get(type(model).__name__)
    return None if found is None else found(chat)


class _Draft(BatchDraft):
    """Lines of a vendor's batch file in a temporary file."""

    def __init__(self, batches: _ChatBatches, largest: int) -> None:
        self.size, self.bytes, self.group = 0, 0, ""
        self._batches, self._largest = batches, largest
        self.file: IO[bytes] = tempfile.TemporaryFile(prefix="guerdon-batch-")  # noqa: SIM115  # closed by `close`

    async def add(self, name: str, request: Request, repeat: int) -> bool | Failure:
        encoded = await self._batches.encode(name, request, repeat)
        if isinstance(encoded, Failure):
            return encoded
        line = self._batches.line(encoded)
        if len(line) > self._batches.largest_bytes:
            return Failure("bad_request", final=True, code="too_large_for_a_batch")
        if self.size and (
            self.size >= self._largest or self.bytes + len(line) > self._batches.largest_bytes or self.group != encoded.group
        ):
            return False
        try:
            self.file.write(line)
        except OSError as error:
            cure = "Free some space there (or name another folder in TMPDIR), then run the same command again."
            raise WriteFailed("a batch could not be written", where=tempfile.gettempdir(), cure=cure) from error
        self.size, self.bytes, self.group = self.size + 1, self.bytes + len(line), encoded.group
        return True

    def close(self) -> None:
        self.file.close()


class _ChatBatches(Batches):
    """What the vendors' queues have in common."""

    model: ClassVar[str]
    """Name of pydantic-ai's class."""
    largest_bytes: int
    """The most bytes of lines in one batch."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._where = chat.rater.name

    def quote(self, request: Request) -> Quote | None:
        chat = self._chat
        return pricing.quote(
            request,
            provider=chat.rater.provider,
            model=chat.rater.model,
            max_output_tokens=chat.config.max_output_tokens,
            form=chat.config.picture_format,
            price=chat.price,
            batch=True,
        )

    def draft(self, largest: int | None = None) -> BatchDraft:
        return _Draft(self, self.largest if largest is None else min(largest, self.largest))

    async def encode(self, name: str, request: Request, repeat: int) -> EncodedBatchRequest | Failure:
        """A request in the vendor's words."""
        query = BatchRequest(
            custom_id=name,
            messages=await self._chat.conversation(request),
            model_settings=self._settings(repeat),
            model_request_parameters=self._chat.parameters(request),
        )
        try:
            return await self._model.batch_encode(query)
        except UserError:
            return Failure("unsupported", final=True, code="no_batch")

    @staticmethod
    @abstractmethod
    def line(encoded: EncodedBatchRequest) -> bytes:
        """A request as a line of the draft's file."""

    async def create(self, marker: str, draft: BatchDraft) -> str | Failure | None:
        lines = cast(_Draft, draft)
        lines.file.flush()
        lines.file.seek(0)
        return await self._create(marker, lines)

    @abstractmethod
    async def _create(self, marker: str, draft: _Draft) -> str | Failure | None: ...

    @property
    def _model(self) -> Model[Any]:
        return self._chat.model

    @abstractmethod
    def _mapped(self) -> AbstractContextManager[None]:
        """Turns what the SDK raises into what pydantic-ai would raise of a live request."""

    def _failure(self, error: Exception) -> Failure:
        from guerdon.providers.chat import failure

        return failure(error)

    @contextmanager
    def _or_unavailable(self, what: str) -> Iterator[None]:
        """Says of an error that `what` did not work."""
        try:
            with self._mapped():
                yield
        except ProviderError:
            raise
        except Exception as error:
            trouble = self._failure(error)
            status = f", HTTP {trouble.status}" if trouble.status else ""
            if trouble.status in (404, 410):
                raise ResultsGone(f"{what} ({trouble.cause}{status})", where=self._where) from None
            cure = "It is still there: run the same command again in a while."
            raise ProviderError(f"{what} ({trouble.cause}{status})", where=self._where, cure=cure) from None

    def _settings(self, repeat: int) -> ModelSettings:
        settings = self._chat.settings(repeat)
        for name in ("timeout", "request_timeout"):
            settings.pop(name, None)  # type: ignore[misc]  # nobody waits for a batched request
        return settings

    def _decoded(self, result: BatchResult, request: Request, repeat: int) -> Reply | Failure:
        if result.status in ("expired", "canceled"):
            return EXPIRED if result.status == "expired" else CANCELLED
        parameters = self._chat.parameters(request)
        query = BatchRequest(
            custom_id=result.custom_id, messages=[], model_settings=self._settings(repeat), model_request_parameters=parameters
        )
        try:
            response = self._model.batch_decode(result, query)
        except Exception as error:
            # As with a live request: whatever is wrong with one answer is that request's failure.
            return self._failure(error)
        return self._chat.outcome(response, batch=True)


def _refused(failure: Failure) -> bool:
    """Whether the vendor has said no: nothing came into being. After a server error or a cut connection, nobody knows."""
    said_no = failure.status is not None and 400 <= failure.status < 500
    return said_no and failure.cause not in ("timeout", "network", "overload")


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a file with one on each line. Only a line feed ends a line: a text may hold other separators as they are."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if (record := _record(line)) is not None:
                yield record
    if (record := _record(rest)) is not None:
        yield record


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None  # an empty or damaged line: its request has no result
    return record if isinstance(record, dict) else None


def _json(text: str) -> bytes:
    return json.dumps(text).encode()


# --- OpenAI -------------------------------------------------------------------------------------------------------------------------

_BUSY_CODES = {"token_limit_exceeded", "rate_limit_exceeded"}


class _OpenAI(_ChatBatches):
    """OpenAI's Batch API over its Responses API. https://developers.openai.com/api/docs/guides/batch"""

    model = "OpenAIResponsesModel"
    largest = 50_000
    largest_bytes = 190_000_000  # of 200 MB

    @property
    def _client(self) -> AsyncOpenAI:
        # Who polls asks again anyway; and what makes a batch must be sent once.
        return cast("AsyncOpenAI", self._model.client).with_options(max_retries=0)  # type: ignore[attr-defined]

    def _mapped(self) -> AbstractContextManager[None]:
        from pydantic_ai.models.openai._errors import map_api_errors

        return map_api_errors(self._model.model_name, self._chat.rater.provider)

    @staticmethod
    def line(encoded: EncodedBatchRequest) -> bytes:
        head = b'{"custom_id":' + _json(encoded.custom_id) + b',"method":"POST","url":"/v1/responses"'
        return head + b',"body":' + encoded.body.encode() + b"}\n"

    async def _create(self, marker: str, draft: _Draft) -> str | Failure | None:
        client = self._client
        try:
            with self._mapped():
                file = await client.files.create(file=(f"{marker}.jsonl", draft.file), purpose="batch")
        except Exception as error:
            return self._failure(error)
        try:
            with self._mapped():
                made = await client.batches.create(
                    input_file_id=file.id, endpoint="/v1/responses", completion_window="24h", metadata={_MARKER: marker}
                )
        except Exception as error:
            failure = self._failure(error)
            if not _refused(failure):
                return None
            await self._delete(file.id)
            return failure
        return made.id

    async def find(self, marker: str, *, since: float, size: int, others: Collection[str] = ()) -> str | Failure | None:
        del size, others
        try:
            with self._mapped():
                async for batch in self._client.batches.list(limit=100):
                    if (batch.metadata or {}).get(_MARKER) == marker:
                        return batch.id
                    if batch.created_at < since - _CLOCK_SKEW:
                        return None
        except Exception as error:
            return self._failure(error)
        return None

    async def status(self, batch: str) -> BatchStatus | Failure:
        try:
            with self._mapped():
                seen = await self._client.batches.retrieve(batch)
        except Exception as error:
            return self._failure(error)
        counts = seen.request_counts
        finished = counts.completed + counts.failed if counts else 0
        if seen.status == "failed":
            return BatchStatus("failed", finished, _validation_failure(seen))
        if seen.status in ("completed", "expired", "cancelled"):
            return BatchStatus("ended", finished, {"expired": EXPIRED, "cancelled": CANCELLED}.get(seen.status))
        return BatchStatus("running", finished)

    async def results(self, batch: str, requests: Mapping[str, tuple[Request, int]]) -> AsyncIterator[tuple[str, Reply | Failure]]:
        with self._or_unavailable("the results of a batch could not be fetched"):
            seen = await self._client.batches.retrieve(batch)
        for file in filter(None, (seen.output_file_id, seen.error_file_id)):
            with self._or_unavailable("the results of a batch could not be fetched"):
                async with self._client.files.with_streaming_response.content(file) as response:
                    async for record in _lines(response.iter_bytes()):
                        result = _openai_result(record)
                        if result is not None and (asked := requests.get(result.custom_id)):
                            yield result.custom_id, self._decoded(result, *asked)

    async def cancel(self, batch: str) -> None:
        with self._or_unavailable("a batch could not be cancelled"):
            await self._client.batches.cancel(batch)

    async def forget(self, marker: str, batch: str) -> None:
        with suppress(Exception):
            seen = await self._client.batches.retrieve(batch)
            if (seen.metadata or {}).get(_MARKER) == marker:
                await self._delete(seen.input_file_id)

    async def _delete(self, file: str) -> None:
        with suppress(Exception):  # it expires anyway
            await self._client.files.delete(file)


def _openai_result(record: Mapping[str, Any]) -> BatchResult | None:
    name, response, error = record.get("custom_id"), record.get("response"), record.get("error")
    if not isinstance(name, str):
        return None
    if isinstance(response, dict) and isinstance(status := response.get("status_code"), int):
        body = response.get("body")
        if 200 <= status < 300:
            return BatchResult(custom_id=name, status="succeeded", body=json.dumps(body))
        return BatchResult(custom_id=name, status="errored", body=json.dumps({"status_code": status, "body": body}))
    error = error if isinstance(error, dict) else {}
    if error.get("code") == "batch_expired":
        return BatchResult(custom_id=name, status="expired")
    if error.get("code") == "batch_cancelled":
        return BatchResult(custom_id=name, status="canceled")
    return BatchResult(custom_id=name, status="errored", body=json.dumps({"status_code": 500, "body": {"error": error}}))


def _validation_failure(batch: OpenAIBatch) -> Failure:
    """Why OpenAI refused a whole batch: too much in the queue, no money left, or lines it cannot read."""
    codes = [error.code for error in (batch.errors and batch.errors.data) or [] if error.code]
    code = short_code(codes, "batch_failed")
    if told_cause(*codes) == ("quota", False):
        return Failure("quota", final=False, code=code, usage=_NOT_RUN)
    if _BUSY_CODES & set(codes):
        return Failure("rate_limit", final=False, code=code, usage=_NOT_RUN)
    return Failure("bad_request", final=True, code=code, usage=_NOT_RUN)


# --- Anthropic ----------------------------------------------------------------------------------------------------------------------


class _Anthropic(_ChatBatches):
    """Anthropic's Message Batches. https://platform.claude.com/docs/en/build-with-claude/batch-processing"""

    model = "AnthropicModel"
    largest = 100_000
    largest_bytes = 64_000_000  # of 256 MB: the SDK takes the whole body at once, in memory and more than once

    @property
    def _client(self) -> AsyncAnthropic:
        return cast("AsyncAnthropic", self._model.client).with_options(max_retries=0)  # type: ignore[attr-defined]

    def _mapped(self) -> AbstractContextManager[None]:
        from pydantic_ai.models.anthropic._errors import map_api_errors

        return map_api_errors(self._model.model_name)

    @staticmethod
    def line(encoded: EncodedBatchRequest) -> bytes:
        return b'{"custom_id":' + _json(encoded.custom_id) + b',"params":' + encoded.body.encode() + b"}\n"

    async def _create(self, marker: str, draft: _Draft) -> str | Failure | None:
        del marker  # the requests' names begin with it
        requests = [json.loads(line) for line in draft.file]
        betas: Any = json.loads(draft.group)["betas"]
        given = {"betas": betas} if betas else {}
        try:
            with self._mapped():
                made = await self._client.beta.messages.batches.create(requests=requests, **given)
        except Exception as error:
            failure = self._failure(error)
            return failure if _refused(failure) else None
        return made.id

    async def find(self, marker: str, *, since: float, size: int, others: Collection[str] = ()) -> str | Failure | None:
        undecided: Failure | None = None
        lost = False
        try:
            with self._mapped():
                async for batch in self._client.beta.messages.batches.list(limit=100):
                    if batch.created_at.timestamp() < since - _CLOCK_SKEW:
                        break
                    if batch.id in others or _anthropic_size(batch) != size:
                        continue
                    if batch.processing_status != "ended":
                        # Nothing but its results says whose it is.
                        undecided = Failure("overload", final=False, code="batch_still_running")
                    elif batch.archived_at is not None or batch.results_url is None:
                        lost = True
                    elif (await self._first_name(batch.id)).startswith(f"{marker}-"):
                        return batch.id
        except Exception as error:
            return self._failure(error)
        return undecided or (Failure("empty", final=True, code="results_gone") if lost else None)

    async def _first_name(self, batch: str) -> str:
        results = await self._client.beta.messages.batches.results(batch)
        try:
            async for item in results:
                return item.custom_id
        finally:
            await results.close()
        return ""

    async def status(self, batch: str) -> BatchStatus | Failure:
        try:
            with self._mapped():
                seen = await self._client.beta.messages.batches.retrieve(batch)
        except Exception as error:
            return self._failure(error)
        if seen.processing_status != "ended":
            return BatchStatus("running")
        return BatchStatus("ended", _anthropic_size(seen))

    async def results(self, batch: str, requests: Mapping[str, tuple[Request, int]]) -> AsyncIterator[tuple[str, Reply | Failure]]:
        with self._or_unavailable("the results of a batch could not be fetched"):
            results = await self._client.beta.messages.batches.results(batch)
            try:
                async for item in results:
                    if (asked := requests.get(item.custom_id)) is None:
                        continue
                    body = item.result.model_dump_json() if item.result.type in ("succeeded", "errored") else None
                    result = BatchResult(custom_id=item.custom_id, status=item.result.type, body=body)
                    yield item.custom_id, self._decoded(result, *asked)
            finally:
                await results.close()

    async def cancel(self, batch: str) -> None:
        with self._or_unavailable("a batch could not be cancelled"):
            await self._client.beta.messages.batches.cancel(batch)

    async def forget(self, marker: str, batch: str) -> None:
        del marker, batch  # Anthropic keeps a batch's requests and results together, for 29 days; the results are worth more


def _anthropic_size(batch: BetaMessageBatch) -> int:
    counts = batch.request_counts
    return counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired


# --- Google -------------------------------------------------------------------------------------------------------------------------

_GOOGLE_RUNNING = {"UNSPECIFIED", "QUEUED", "PENDING", "RUNNING", "PAUSED", "UPDATING", "CANCELLING"}


class _Google(_ChatBatches):
    """Gemini's Batch Mode. https://ai.google.dev/gemini-api/docs/batch-api"""

    model = "GoogleModel"
    largest = 100_000
    largest_bytes = 1_900_000_000  # of 2 GB

    @property
    def _client(self) -> Client:
        return cast("Client", self._model.client)  # type: ignore[attr-defined]

    def _mapped(self) -> AbstractContextManager[None]:
        from pydantic_ai.models.google import _map_api_errors

        return _map_api_errors(self._model.model_name, self._chat.rater.provider)

    @staticmethod
    def line(encoded: EncodedBatchRequest) -> bytes:
        return b'{"key":' + _json(encoded.custom_id) + b',"request":' + encoded.body.encode() + b"}\n"

    async def _create(self, marker: str, draft: _Draft) -> str | Failure | None:
        from google.genai.types import CreateBatchJobConfigDict, HttpOptionsDict, UploadFileConfigDict

        client = self._client.aio
        try:
            with self._mapped():
                upload = UploadFileConfigDict(name=_google_file(marker), mime_type="application/jsonl", display_name=marker)
                file = await client.files.upload(file=cast("Any", draft.file), config=upload)
        except Exception as error:
            return self._failure(error)
        once = HttpOptionsDict(retry_options={"attempts": 1})
        try:
            with self._mapped():
                job = await client.batches.create(
                    model=self._model.model_name,
                    src=file.name or _google_file(marker),
                    config=CreateBatchJobConfigDict(display_name=marker, http_options=once),
                )
        except Exception as error:
            failure = self._failure(error)
            if not _refused(failure):
                return None
            await self.forget(marker, "")
            return failure
        return job.name

    async def find(self, marker: str, *, since: float, size: int, others: Collection[str] = ()) -> str | Failure | None:
        del size, others
        try:
            with self._mapped():
                async for job in await self._client.aio.batches.list(config={"page_size": 100}):
                    if job.display_name == marker and job.name:
                        return job.name
                    if job.create_time is not None and job.create_time.timestamp() < since - _CLOCK_SKEW:
                        return None
        except Exception as error:
            return self._failure(error)
        return None

    async def status(self, batch: str) -> BatchStatus | Failure:
        try:
            with self._mapped():
                job = await self._client.aio.batches.get(name=batch)
        except Exception as error:
            return self._failure(error)
        state = _google_state(job)
        if state in _GOOGLE_RUNNING:
            return BatchStatus("running")
        if state in ("SUCCEEDED", "PARTIALLY_SUCCEEDED") or (job.dest is not None and job.dest.file_name is not None):
            return BatchStatus("ended", rest={"EXPIRED": EXPIRED, "CANCELLED": CANCELLED}.get(state))
        if state == "EXPIRED":
            return BatchStatus("failed", rest=EXPIRED)
        if state == "CANCELLED":
            return BatchStatus("failed", rest=CANCELLED)
        return BatchStatus("failed", rest=_google_failure(job) if state == "FAILED" else None)

    async def results(self, batch: str, requests: Mapping[str, tuple[Request, int]]) -> AsyncIterator[tuple[str, Reply | Failure]]:
        with self._or_unavailable("the results of a batch could not be fetched"), tempfile.TemporaryFile() as file:
            job = await self._client.aio.batches.get(name=batch)
            if job.dest is None or job.dest.file_name is None:
                return
            await self._client.aio.files.download(file=job.dest.file_name, destination=cast("Any", file))
            file.seek(0)
            for line in file:
                result = _google_result(_record(line) or {})
                if result is not None and (asked := requests.get(result.custom_id)):
                    yield result.custom_id, self._decoded(result, *asked)

    async def cancel(self, batch: str) -> None:
        with self._or_unavailable("a batch could not be cancelled"):
            await self._client.aio.batches.cancel(name=batch)

    async def forget(self, marker: str, batch: str) -> None:
        del batch
        with suppress(Exception):
            await self._client.aio.files.delete(name=_google_file(marker))


def _google_file(marker: str) -> str:
    return f"files/{marker}"


def _google_state(job: BatchJob) -> str:
    return job.state.value.removeprefix("JOB_STATE_") if job.state is not None else "UNSPECIFIED"


def _google_result(record: Mapping[str, Any]) -> BatchResult | None:
    name = record.get("key")
    if not isinstance(name, str):
        return None
    if isinstance(response := record.get("response"), dict):
        return BatchResult(custom_id=name, status="succeeded", body=json.dumps(response))
    return BatchResult(custom_id=name, status="errored", body=json.dumps(record.get("error")))


def _google_failure(job: BatchJob) -> Failure:
    """Why Gemini did nothing of a batch, by google.rpc.Code where the SDK passes it on."""
    code = job.error.code if job.error is not None else None
    if code == 8:
        return Failure("rate_limit", final=False, code="RESOURCE_EXHAUSTED", usage=_NOT_RUN)
    if code in (3, 9, 11):
        return Failure("bad_request", final=True, code="INVALID_ARGUMENT", usage=_NOT_RUN)
    return Failure("overload", final=False, code="batch_failed", usage=_NOT_RUN)
