"""A vision-language model on this machine, run by `transformers`: `hf:FOLDER`, or `hf:NAME` for one in the Hugging Face cache.

Nothing leaves this machine, and nothing is downloaded unless the user asks for it. Any model that AutoModelForImageTextToText can build
will do if its weights are safetensors and it has a chat template; code that comes with a model is never run. Requests that wait at the same
time go through the model together. Where an answer specification has a schema, the model is held to it token by token (`_grammar.py`): any
model gives the right number of scores in the right range, so what a small model writes is always readable. Whether it is right is another
question.

What a request is answered does not depend on the requests it shares a batch with, except for rounding: a batch is padded on the left and
masked, which changes the order of additions. On a tiny model that moved a logit by a hundred-thousandth of the logits' standard deviation
in float32, and by up to a twenty-fifth in bfloat16, so that a near tie between two tokens can fall otherwise. `--hf.batch-size 1` rules it
out. Random numbers come from (seed, question, repeat), for each request on its own. Device, batch size and versions of libraries are no
part of a rater's identity, because they change answers by rounding only; the weights' content, the data type and the sampling settings are.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import gc
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from guerdon import seeding
from guerdon.errors import GuerdonError, MissingExtra, ProviderError, RunError, UsageError, WriteFailed
from guerdon.interfaces import Provider
from guerdon.providers._grammar import Constraint, Vocabulary
from guerdon.providers._settings import sendable, without_thinking
from guerdon.records import Cause, Failure, Message, Price, Quote, Rater, Reply, Request, Usage, digest
from guerdon.runs import read_json, user_data_folder, write_json

if TYPE_CHECKING:
    import torch

GATHERING = 0.03
"""Seconds without a new request after which a batch that is not full sets off."""
REMEMBERED_SIZE = 1 << 24
"""Bytes from which on a file's digest is remembered: reading weights takes seconds per gigabyte."""

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
"""What is read of a model's folder. Pickled weights could run code and are not."""


class Hf(Provider):
    """A model of the `transformers` library, run here."""

    remote = ""
    price = Price(0.0, 0.0)

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of local models.

        Raises:
            UsageError: if a setting is out of its range.
        """

        device: str = "auto"
        """Where the model runs: "cpu", "cuda", "cuda:N", "mps"; with "auto" on a GPU if there is one."""
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
        """Data type of the weights; with "auto" the one they were published in."""
        batch_size: int = 8
        """Most requests that go through the model together; halved as often as memory demands."""
        max_output_tokens: int = 2048
        """Most tokens of one answer, thinking included; a longer one is cut off and counts as failed (truncated). A quarter of what vendors
        are allowed by default: here every token of a model that rambles takes this machine's time."""
        temperature: float = 0.0
        """Randomness of the answers, 0 to 2; at 0 the likeliest token is taken every time."""
        seed: int = 0
        """Seed of the randomness; independent answers to one question get random numbers of their own."""
        download: bool = False
        """Fetch the model from the Hugging Face hub if it is not on this machine."""

        def __post_init__(self) -> None:
            if not _DEVICE.fullmatch(self.device):
                raise UsageError(f'device is "auto", "cpu", "cuda", "cuda:N" or "mps", got "{self.device}"', where="hf")
            if self.batch_size < 1 or self.max_output_tokens < 1:
                got = f"{self.batch_size} and {self.max_output_tokens}"
                raise UsageError(f"batch_size and max_output_tokens are positive, got {got}", where="hf")
            if not 0 <= self.temperature <= 2:
                raise UsageError(f"temperature is a number from 0 to 2, got {self.temperature}", where="hf")

    def __init__(self, folder: Path, config: Config | None = None, *, name: str = "") -> None:
        """Looks at all but the weights, which are read at the first question.

        Args:
            folder: what `save_pretrained` of a model and its processor wrote.
            config: settings.
            name: what results call the model; the folder's own name if not given.

        Raises:
            MissingExtra: if a package is missing.
            ProviderError: if the folder holds no model that can see and talk; the message says what is missing.
        """
        self.config = config or self.Config()
        self._checkpoint = _Checkpoint.open(folder, name or folder.resolve().name)
        self._device = _device(self.config.device)
        self._worker = _Worker(self._checkpoint, self.config, self._device)
        sampling = {"seed": self.config.seed} if self.config.temperature else {}
        self.rater = Rater(
            "hf",
            self._checkpoint.name,
            settings={
                "temperature": self.config.temperature,
                "max_tokens": self.config.max_output_tokens,
                "dtype": self._checkpoint.dtype if self.config.dtype == "auto" else self.config.dtype,
                "schema": "grammar",
                "weights": self._checkpoint.fingerprint,
                **sampling,
                **self._checkpoint.prompts.settings,
            },
        )

    @classmethod
    def build(cls, argument: str = "", *, config: Config | None = None) -> Hf:
        """The rater called `hf:ARGUMENT`. Raises UsageError without an argument, and as the constructor does."""
        if not argument:
            raise UsageError("names no model", where="hf", cure="Write hf:FOLDER, or hf:NAME for a model in the Hugging Face cache.")
        _transformers()
        folder = Path(argument).expanduser()
        if folder.is_dir():
            return cls(folder, config)
        return cls(_cached(argument, download=(config or cls.Config()).download), config, name=argument)

    async def ask(self, request: Request, *, repeat: int = 0) -> Reply | Failure:
        """Answers together with whatever else is asked at the moment.

        Raises:
            ProviderError: if the weights cannot be read, the memory is too small for one request, or the model computes no numbers.
        """
        if self._checkpoint.prompts.forges(request):
            return Failure("unsupported", final=True, code="control_token")
        job = _Job(request, repeat)
        self._worker.add(job)
        try:
            return await asyncio.wrap_future(job.done)
        except asyncio.CancelledError:
            job.abandoned = True
            raise

    def quote(self, request: Request) -> Quote:
        """Costs nothing; the tokens of the prompt are counted to within a few for each picture."""
        try:
            tokens = self._counting.tokens(request)
        except Exception:  # a model's own chat template may raise anything: asking says what, and the price is the same
            tokens = 0
        return Quote(tokens, self.config.max_output_tokens, 0.0)

    @cached_property
    def _counting(self) -> _Prompts:
        """For another thread than the worker's: a tokenizer serves one at a time."""
        return copy.deepcopy(self._checkpoint.prompts)

    async def close(self) -> None:
        """Ends the thread and frees the model, after the batch in hand."""
        await asyncio.to_thread(self._worker.close)


# --- what lies in the folder --------------------------------------------------------------------------------------------------------


def _transformers() -> Any:
    """The library. Importing it takes seconds, so nothing does before a model is asked for. Raises MissingExtra."""
    try:
        import llguidance  # noqa: F401
        import torch  # noqa: F401
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "transformers").split(".")[0], "local") from None
    return transformers


def _cached(name: str, *, download: bool) -> Path:
    """The folder of a model in the Hugging Face cache. Raises ProviderError if it is not there."""
    if not _REPOSITORY.fullmatch(name):
        raise ProviderError("there is no such folder", where=f"hf:{name}", cure="Name the folder that holds the model's config.json.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=not download, allow_patterns=list(_FILES)))
    except Exception as error:  # the hub's errors may quote a token
        if download:
            cure = "Check the name, the connection, and whether the model asks for an agreement (huggingface-cli login)."
            raise ProviderError(f"cannot be downloaded ({type(error).__name__})", where=f"hf:{name}", cure=cure) from None
        cure = "Name a folder, or fetch the model from the Hugging Face hub with --hf.download."
        raise ProviderError("there is no such folder, and no such model in the Hugging Face cache", where=f"hf:{name}", cure=cure) from None


@dataclass(frozen=True)
class _Checkpoint:
    """A model's folder: everything that is known before the weights are read."""

    folder: Path
    name: str
    fingerprint: str
    """Digest of the weights and of all settings beside them."""
    dtype: str
    """Data type that the weights were published in; "as stored" if the model does not say."""
    context: int | None
    """Most tokens that the model can look at, prompt and answer together; None if it does not say."""
    vocabulary_size: int
    """Number of logits."""
    ends: tuple[int, ...]
    """Tokens that end an answer."""
    prompts: _Prompts

    @classmethod
    def open(cls, folder: Path, name: str) -> _Checkpoint:
        """Raises MissingExtra, or ProviderError naming what is missing or cannot be used."""
        _transformers()
        where = str(folder)
        if not (folder / "config.json").is_file():
            raise ProviderError("holds no model: there is no config.json", where=where, cure="Name the folder that save_pretrained wrote.")
        weights = _weights(folder)
        config = _config(folder)
        prompts = _Prompts(_processor(folder), where)
        language = config.get_text_config()
        ends = _ends(folder, language, prompts.tokenizer)
        if not ends:
            raise ProviderError("names no token that ends an answer (eos_token)", where=where, cure="Use an instruction-tuned model.")
        if prompts.tokenizer.pad_token is None:
            prompts.tokenizer.pad_token = prompts.tokenizer.convert_ids_to_tokens(ends[0])  # masked, so any token will do
        others = {path for pattern in _FILES[:-1] for path in folder.glob(pattern)}
        return cls(
            folder=folder,
            name=name,
            fingerprint=_fingerprint([*sorted(others), *weights]),
            dtype="as stored" if config.dtype is None else str(config.dtype).removeprefix("torch."),
            context=getattr(language, "max_position_embeddings", None),
            vocabulary_size=language.vocab_size,
            ends=ends,
            prompts=prompts,
        )


def _weights(folder: Path) -> list[Path]:
    """The files that hold the weights. Raises ProviderError if they are not all there."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values())) if index.is_file() else [whole.name]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ProviderError("cannot be read", where=str(index), cure="Fetch the model again.") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        cure = "Fetch the whole model again (--hf.download for one on the Hugging Face hub). Other formats than safetensors are not read."
        raise ProviderError(f"the weights are not all there: {missing[0]} is missing", where=str(folder), cure=cure)
    return [folder / name for name in names]


def _config(folder: Path) -> Any:
    """The model's config. Raises ProviderError if it is none of a model that can look and write."""
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        cure = "A new model may need a newer library: pip install --upgrade transformers. Code that comes with a model is not run."
        raise ProviderError(f"transformers cannot use its config.json ({type(error).__name__})", where=str(folder), cure=cure) from None
    if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or config.is_encoder_decoder:
        cure = "Use a vision-language model that chats, such as LLaVA, Qwen-VL, SmolVLM or Idefics."
        raise ProviderError(f"a model of the type '{config.model_type}' does not chat about pictures", where=str(folder), cure=cure)
    return config


def _processor(folder: Path) -> Any:
    try:
        processor = _transformers().AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        cure = "Its files may be damaged or missing; some models also need torchvision: pip install torchvision"
        raise ProviderError(f"the processor cannot be built ({type(error).__name__})", where=str(folder), cure=cure) from None
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        cure = "Use a vision-language model with its processor's files."
        raise ProviderError("takes no pictures, or has no tokenizer", where=str(folder), cure=cure)
    return processor


def _ends(folder: Path, language: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end an answer. The model's config is not asked: where it says nothing, its class puts in a number of its own."""
    named = [tokenizer.eos_token_id]
    settings = folder / "generation_config.json"
    if settings.is_file():
        try:
            named.append(_transformers().GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id)
        except Exception as error:
            raise ProviderError(f"cannot be read ({type(error).__name__})", where=str(settings), cure="Fetch the model again.") from None
    ids = {number for entry in named if entry is not None for number in (entry if isinstance(entry, list) else [entry])}
    return tuple(sorted(number for number in ids if number < language.vocab_size))


def _fingerprint(paths: Iterable[Path]) -> str:
    """Digest of names and contents. That of a large file is remembered, and believed while path, size and time of change are the same."""
    memory = user_data_folder() / "weights.json"
    try:
        known: dict[str, Any] = read_json(memory) if memory.is_file() else {}
    except RunError:
        known = {}
    seen, parts = dict(known), []
    for path in paths:
        state = path.stat()
        stamp, key = [state.st_size, state.st_mtime_ns], str(path.resolve())
        remembered = known.get(key)
        if isinstance(remembered, list) and remembered[:2] == stamp:
            content = remembered[2]
        else:
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            if state.st_size >= REMEMBERED_SIZE:
                seen[key] = [*stamp, content]
        parts += [path.name, content]
    if seen != known:
        with contextlib.suppress(WriteFailed):  # then they are read again next time
            write_json(memory, seen)
    return digest("guerdon local model 1", *parts)


# --- prompts ------------------------------------------------------------------------------------------------------------------------

_PROBES = ("alpha-seven", "bravo-eight", "charlie-nine", "delta-ten")


class _Prompts:
    """From requests to what a model takes. Not for several threads at a time."""

    def __init__(self, processor: Any, where: str) -> None:
        """Tries the chat template out. Raises ProviderError if it is missing, or leaves out part of a conversation."""
        self._processor, self.tokenizer, self._where = processor, processor.tokenizer, where
        self.tokenizer.padding_side = "left"
        if not (getattr(processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)):
            cure = "Use an instruction-tuned model, or put its chat_template.jinja into the folder."
            raise ProviderError("has no chat template, so nobody knows how to talk to it", where=where, cure=cure)
        self._system_apart = True
        if self._left_out() is not None:
            self._system_apart = False  # not every model knows a system turn
            if (why := self._left_out()) is not None:
                cure = "Put a chat template into the folder that renders pictures, and turns of both sides."
                raise ProviderError(f"the chat template {why}", where=where, cure=cure)
        control = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special and token.content.strip()]
        self._control = re.compile("|".join(map(re.escape, control)) or r"(?!)")
        self._picture_tokens: dict[tuple[int, ...], int] = {}

    @property
    def settings(self) -> dict[str, str]:
        """What a rater's identity says about how it is talked to."""
        return {} if self._system_apart else {"system": "in the first turn"}

    def forges(self, request: Request) -> bool:
        """Whether a text in the request holds a token that only the template may write, such as the mark of a picture or of a turn."""
        return any(self._control.search(text) for text in (request.system, *(message.text for message in request.messages)))

    def encoded(self, requests: Sequence[Request]) -> Any:
        """Tensors by name, padded on the left; `input_ids` and `attention_mask` are (B, length of the longest prompt)."""
        return self._encoded([self._conversation(request.system, request.messages) for request in requests])

    def tokens(self, request: Request) -> int:
        """About how many tokens the prompt has, without working through its pictures."""
        bare = [replace(message, pictures=()) for message in request.messages]
        sizes = [picture.pixels.shape for message in request.messages for picture in message.pictures]
        return self._length([self._conversation(request.system, bare)]) + sum(map(self._tokens_of_picture, sizes))

    def _tokens_of_picture(self, shape: tuple[int, ...]) -> int:
        if shape not in self._picture_tokens:
            from PIL import Image

            blank = Image.new("RGB", (shape[1], shape[0]))
            word = {"type": "text", "text": _PROBES[0]}
            turns = [[{"role": "user", "content": content}] for content in ([word], [{"type": "image", "image": blank}, word])]
            without, with_picture = (self._length([turn]) for turn in turns)
            self._picture_tokens[shape] = with_picture - without + 4  # around a picture, white space may be cut into tokens otherwise
        return self._picture_tokens[shape]

    def _length(self, conversations: list[Any]) -> int:
        return int(self._encoded(conversations)["input_ids"].shape[1])

    def _encoded(self, conversations: list[Any]) -> Any:
        return self._processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def _conversation(self, system: str, messages: Sequence[Message]) -> list[dict[str, Any]]:
        from PIL import Image

        turns: list[dict[str, Any]] = []
        for message in messages:
            # Pictures come before the text, as with the vendors.
            pictures = [{"type": "image", "image": Image.fromarray(picture.pixels)} for picture in message.pictures]
            turns.append({"role": message.role, "content": [*pictures, {"type": "text", "text": sendable(message.text)}]})
        if system and self._system_apart:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": sendable(system)}]})
        elif system:
            words = turns[0]["content"][-1]
            words["text"] = f"{sendable(system)}\n\n{words['text']}"
        return turns

    def _left_out(self) -> str | None:
        """What is wrong with the template, if anything is: every part of a conversation must show up in the prompt."""
        system, *turns = _PROBES
        roles: tuple[Literal["user", "assistant"], ...] = ("user", "assistant", "user")
        bare = self._conversation(system, [Message(role, text) for role, text in zip(roles, turns, strict=True)])
        seeing = copy.deepcopy(bare)
        first_user = next(turn for turn in seeing if turn["role"] == "user")
        first_user["content"].insert(0, {"type": "image"})
        try:
            without, prompt = (
                self._processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) for turns in (bare, seeing)
            )
        except Exception as error:
            return f"cannot render a conversation with a picture ({type(error).__name__})"
        places = [prompt.find(text) for text in _PROBES]
        if -1 in places or places != sorted(places):
            return "leaves out part of a conversation"
        return "leaves out pictures" if without == prompt else None


# --- the model ----------------------------------------------------------------------------------------------------------------------


def _device(wanted: str) -> str:
    """Raises ProviderError if there is no such device."""
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    kind, _, number = wanted.partition(":")
    if not there[kind] or (number and int(number) >= torch.cuda.device_count()):
        cure = "Use --hf.device cpu, or install torch for your GPU." if not there[kind] else f"There are {torch.cuda.device_count()}."
        raise ProviderError(f"torch sees no device '{wanted}'", where="hf", cure=cure)
    return wanted


@dataclass(eq=False)
class _Job:
    """A request on its way through the model."""

    request: Request
    repeat: int
    done: concurrent.futures.Future[Reply | Failure] = field(default_factory=concurrent.futures.Future)
    began: float = field(default_factory=time.perf_counter)
    abandoned: bool = False
    """Nobody waits for the answer any more."""

    @property
    def kind(self) -> tuple[str, bool]:
        """What may share a batch: a long analysis would hold up short answers, and a processor wants pictures for all or for none."""
        return self.request.answer.kind, any(message.pictures for message in self.request.messages)

    def answer(self, outcome: Reply | Failure) -> None:
        self.done.set_result(replace(outcome, seconds=time.perf_counter() - self.began))

    def fail(self, error: BaseException) -> None:
        self.done.set_exception(error)


class _Model:
    """Weights in memory."""

    def __init__(self, checkpoint: _Checkpoint, config: Hf.Config, device: str) -> None:
        """Raises ProviderError if the weights cannot be read, are not whole, or do not fit into memory."""
        self._checkpoint, self._config, self._device = checkpoint, config, device
        self._prompts = checkpoint.prompts
        self._model = _load(checkpoint.folder, config.dtype, device)
        # What a model's authors recommend (sampling, penalties) would be at work unseen: only what the user sets counts.
        pad = self._prompts.tokenizer.pad_token_id
        self._model.generation_config = _transformers().GenerationConfig(eos_token_id=list(checkpoint.ends), pad_token_id=pad)
        self._vocabulary = Vocabulary(self._prompts.tokenizer, checkpoint.vocabulary_size, checkpoint.ends, name=f"hf:{checkpoint.name}")

    def encoded(self, jobs: Sequence[_Job]) -> Any:
        """The prompts of the jobs as tensors on the device."""
        return self._prompts.encoded([job.request for job in jobs]).to(self._device, dtype=self._model.dtype)

    def outcomes(self, jobs: Sequence[_Job], inputs: Any) -> list[Reply | Failure]:
        """One outcome per job, from one pass. Raises whatever torch raises, and ProviderError."""
        lengths = inputs["attention_mask"].sum(1).tolist()
        allowances = [self._allowance(length) for length in lengths]
        if min(allowances) < 1:
            fitting = [job for job, allowance in zip(jobs, allowances, strict=True) if allowance >= 1]
            answered = iter(self.outcomes(fitting, self.encoded(fitting)) if fitting else [])
            too_long = Failure("bad_request", final=True, code="prompt_too_long")
            return [next(answered) if allowance >= 1 else too_long for allowance in allowances]
        written = self._generate(jobs, inputs, max(allowances))
        rows = zip(jobs, written, lengths, allowances, strict=True)
        return [self._outcome(job, tokens[:allowance], length) for job, tokens, length, allowance in rows]

    def _allowance(self, prompt_length: int) -> int:
        context = self._checkpoint.context
        return self._config.max_output_tokens if context is None else min(self._config.max_output_tokens, context - prompt_length)

    def _generate(self, jobs: Sequence[_Job], inputs: Any, longest: int) -> list[list[int]]:
        """The tokens written for each job."""
        import torch

        transformers = _transformers()
        steering = _Steering(
            [self._vocabulary.constraint(job.request.answer) for job in jobs],
            [self._randomness(job) for job in jobs],
            self._config.temperature,
            torch.tensor(self._checkpoint.ends, device=self._device),
            f"hf:{self._checkpoint.name}",
        )

        def nobody_waits(tokens: torch.Tensor, _scores: Any, **_more: Any) -> torch.Tensor:
            return torch.full((tokens.shape[0],), all(job.abandoned for job in jobs), device=tokens.device)

        with torch.inference_mode():
            written: Any = self._model.generate(
                **inputs,
                max_new_tokens=longest,
                do_sample=False,
                logits_processor=transformers.LogitsProcessorList([steering]),
                stopping_criteria=transformers.StoppingCriteriaList([nobody_waits]),
            )
        prompts = inputs["input_ids"]
        if written.shape[1] >= prompts.shape[1] and torch.equal(written[:, : prompts.shape[1]], prompts):
            written = written[:, prompts.shape[1] :]  # most models give the prompt back as well
        rows: list[list[int]] = written.tolist()
        return rows

    def _randomness(self, job: _Job) -> torch.Generator | None:
        import torch

        if not self._config.temperature:
            return None
        return torch.Generator().manual_seed(seeding.stream_seed(self._config.seed, "hf", job.request.question, job.repeat))

    def _outcome(self, job: _Job, tokens: list[int], prompt_length: int) -> Reply | Failure:
        """What the tokens of one row mean: they count up to the first end."""
        end = next((place for place, token in enumerate(tokens) if token in self._checkpoint.ends), None)
        said = tokens[:end]
        usage = Usage(prompt_length, len(tokens) if end is None else end + 1, dollars=0.0)

        def failure(cause: Cause) -> Failure:
            return Failure(cause, final=True, code=cause, usage=usage)

        if end is None:
            return failure("truncated")
        if job.request.answer.schema() is None:
            text = without_thinking(self._prompts.tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        else:
            text = self._vocabulary.text(said)
        return Reply(text, model=self._checkpoint.name, usage=usage) if text.strip() else failure("empty")


class _Steering:
    """Says between two tokens which may come next (a logits processor of `transformers`). One for each batch.

    Sampling is done by adding Gumbel noise and taking the largest logit, which is the same as drawing from the softmax; so each row has
    random numbers of its own, whatever rows lie beside it.
    """

    def __init__(
        self,
        constraints: Sequence[Constraint | None],
        generators: Sequence[torch.Generator | None],
        temperature: float,
        ends: torch.Tensor,
        where: str,
    ) -> None:
        self._constraints, self._generators, self._temperature = constraints, generators, temperature
        self._ends, self._where = ends, where
        self._finished: torch.Tensor | None = None
        """Rows (B,) that have ended; None before the first token."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The logits (B, V) float32 to take the largest of."""
        import torch

        last: list[int] | None = None
        if self._finished is None:
            self._finished = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        else:
            last = input_ids[:, -1].tolist()
            self._finished = self._finished | torch.isin(input_ids[:, -1], self._ends)
        self._refuse_no_numbers(scores, self._finished)
        for row, finished in enumerate(self._finished.tolist()):
            if finished:
                continue
            if (constraint := self._constraints[row]) is not None:
                if last is not None:
                    constraint.advance(last[row])
                allowed = torch.from_numpy(constraint.allowed()).to(scores.device)
                scores[row].masked_fill_(~allowed[: scores.shape[1]], float("-inf"))
            if (generator := self._generators[row]) is not None:
                drawn = torch.empty(scores.shape[1]).exponential_(generator=generator)
                noise = -drawn.clamp_(min=torch.finfo(drawn.dtype).tiny).log()
                scores[row] = scores[row] / self._temperature + noise.to(scores.device)
        return scores

    def _refuse_no_numbers(self, scores: torch.Tensor, finished: torch.Tensor) -> None:
        """A logit that is no number would still lead to a token, and from there to a score that looks like any other."""
        import torch

        wrong = torch.isnan(scores).any(1) | torch.isposinf(scores).any(1) | torch.isneginf(scores).all(1)
        if bool((wrong & ~finished).any()):
            cure = "Use --hf.dtype float32, or bfloat16 for a model published in it; if that does not help, the weights are damaged."
            raise ProviderError("the model computes values that are no numbers", where=self._where, cure=cure)


def _load(folder: Path, dtype: str, device: str) -> Any:
    cure = "Fetch the model again: its files may be damaged."
    try:
        with _no_progress_bars():
            model, report = _transformers().AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        missing = sorted(report["missing_keys"])
        loaded: Any = None if missing else model.to(device).eval()
    except Exception as error:
        if _lacks_memory(error):
            cure = "Use a smaller model, --hf.dtype bfloat16, or another --hf.device."
            raise ProviderError(f"the model does not fit into the memory of {device}", where=str(folder), cure=cure) from None
        raise ProviderError(f"the weights cannot be read ({type(error).__name__})", where=str(folder), cure=cure) from None
    if missing:  # transformers would fill them with random numbers
        what = f"the weights are not whole: {missing[0]} and {len(missing) - 1} more are missing"
        raise ProviderError(what, where=str(folder), cure=cure)
    return loaded


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    logging = _transformers().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up. Only some of torch's devices have a class for it."""
    import torch

    words = str(error).lower() if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        phrase in words for phrase in ("out of memory", "can't allocate memory", "not enough memory")
    )


# --- batches ------------------------------------------------------------------------------------------------------------------------


class _Worker:
    """One thread that owns the model and answers what waits, many requests at a time."""

    def __init__(self, checkpoint: _Checkpoint, config: Hf.Config, device: str) -> None:
        self._checkpoint, self._config, self._device = checkpoint, config, device
        self._largest = config.batch_size
        self._waiting: list[_Job] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._model: _Model | None = None
        self._error: GuerdonError | None = None

    def add(self, job: _Job) -> None:
        """Raises ProviderError after `close`."""
        with self._changed:
            if self._closed:
                raise ProviderError("was closed and answers no more", where=f"hf:{self._checkpoint.name}")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="guerdon hf", daemon=True)
                self._thread.start()
            self._waiting.append(job)
            self._changed.notify_all()

    def close(self) -> None:
        """Waits for the batch in hand; what has not begun fails."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                self._answer(batch)
            except BaseException as error:  # whatever it is, nobody may wait for ever
                for job in batch:
                    if not job.done.done():
                        job.fail(error)
        for job in self._waiting:
            if job.done.set_running_or_notify_cancel():
                job.fail(ProviderError("was closed before it answered", where=f"hf:{self._checkpoint.name}"))
        self._waiting.clear()
        self._model = None
        _free_memory(thoroughly=False)

    def _next_batch(self) -> list[_Job]:
        """Requests of one kind, beginning with the one that waits longest; none after `close`."""
        with self._changed:
            while not self._closed:
                self._waiting = [job for job in self._waiting if not job.abandoned]
                batch = [job for job in self._waiting if job.kind == self._waiting[0].kind][: self._largest]
                more = not batch or (len(batch) < self._largest and self._changed.wait(GATHERING))
                if batch and not more:
                    self._waiting = [job for job in self._waiting if job not in batch]
                    return [job for job in batch if job.done.set_running_or_notify_cancel()] or self._next_batch()
                if not batch:
                    self._changed.wait()
            return []

    def _answer(self, jobs: list[_Job]) -> None:
        """Answers every job. A batch that fails is halved until it is known which request is to blame, or until memory suffices."""
        batches = [jobs]
        while batches:
            batch = [job for job in batches.pop(0) if not job.abandoned]
            if not batch:
                continue
            result = self._attempt(batch)
            if not isinstance(result, _Problem):
                for job, outcome in zip(batch, result, strict=True):
                    job.answer(outcome)
            elif len(batch) == 1 or result.hopeless:
                for job in batch:
                    job.fail(result.error)
            else:
                half = len(batch) // 2
                if result.memory:
                    _free_memory()
                    self._largest = max(1, half)
                batches[:0] = [batch[:half], batch[half:]]

    def _attempt(self, jobs: list[_Job]) -> list[Reply | Failure] | _Problem:
        where = f"hf:{self._checkpoint.name}"
        prepared = False
        try:
            model = self._loaded()
            inputs = model.encoded(jobs)
            prepared = True
            return model.outcomes(jobs, inputs)
        except GuerdonError as error:
            return _Problem(error, hopeless=True)
        except Exception as error:
            if _lacks_memory(error):
                what = f"the memory of {self._device} is too small for a single request"
                cure = "Use a smaller model, --hf.dtype bfloat16, smaller pictures (--tile) or fewer --hf.max-output-tokens."
                return _Problem(ProviderError(what, where=where, cure=cure), memory=True)
            if not prepared and len(jobs) == 1:
                return [Failure("bad_request", final=True, code=type(error).__name__)]
            what = f"the model cannot be run ({type(error).__name__})"
            cure = "Try --hf.device cpu, another --hf.dtype, or another version of transformers."
            return _Problem(ProviderError(what, where=where, cure=cure))

    def _loaded(self) -> _Model:
        if self._error is not None:
            raise self._error
        if self._model is None:
            try:
                self._model = _Model(self._checkpoint, self._config, self._device)
            except GuerdonError as error:
                self._error = error
                raise
        return self._model


@dataclass(frozen=True)
class _Problem:
    """Why a batch was not answered."""

    error: GuerdonError
    memory: bool = False
    hopeless: bool = False
    """A smaller batch would fail as well."""


def _free_memory(*, thoroughly: bool = True) -> None:
    """Gives unused memory back. What a failed batch has left behind takes a second to find."""
    import torch

    if thoroughly:
        gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
