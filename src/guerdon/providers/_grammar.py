"""Which tokens a model may write next so that its reply is the answer asked for, whatever the model would rather say.

The JSON schema of an answer specification becomes a grammar without optional white space; `llguidance` says for every state of it which
tokens of a vocabulary lead on, at the level of bytes, so that tokens which begin or end in the middle of a character or of a number are
dealt with. Knows nothing of models and of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.answers import AnswerSpec
from guerdon.errors import MissingExtra, ProviderError

_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as Python writes it: a model that likes spaces could fill its whole allowance with them."""


class Vocabulary:
    """The tokens of a model, and what they spell."""

    def __init__(self, tokenizer: Any, size: int, ends: Sequence[int], *, name: str = "") -> None:
        """
        Args:
            tokenizer: of the `transformers` library, backed by `tokenizers`.
            size: number of logits of the model; a few more than tokens in many models.
            ends: ids of the tokens that end a reply.
            name: of the model, for errors.

        Raises:
            MissingExtra: without llguidance.
            ProviderError: for a tokenizer of another make.
        """
        llguidance = _llguidance()
        self.size, self.name = size, name
        self._words = max(size, len(tokenizer))  # a tokenizer may also know more tokens than the model
        try:
            inner = _without_padding(tokenizer.backend_tokenizer)
            self._tokens = llguidance.LLTokenizer(inner, n_vocab=self._words, eos_token=list(ends))
        except (AttributeError, ValueError) as error:
            cure = "Use a model whose folder holds a tokenizer.json of bytes, or of words with bytes to fall back on."
            what = f"its tokenizer cannot be held to a form of answer ({type(error).__name__})"
            raise ProviderError(what, where=name, cure=cure) from None
        self._beginnings: dict[AnswerSpec, Any] = {}

    def constraint(self, answer: AnswerSpec) -> Constraint | None:
        """What a reply of that kind may consist of; None for free text. Raises ProviderError if there is no grammar for it."""
        schema = answer.schema()
        if schema is None:
            return None
        if answer not in self._beginnings:
            llguidance = _llguidance()
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_COMPACT)
            self._beginnings[answer] = llguidance.LLMatcher(self._tokens, grammar, log_level=0)
        return Constraint(self._beginnings[answer].deep_copy(), self)

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens spell, byte for byte. A tokenizer's own decoder may tidy up spaces."""
        return bytes(self._tokens.decode_bytes(list(tokens))).decode("utf-8", "replace")


class Constraint:
    """Where one reply stands in its grammar."""

    def __init__(self, matcher: Any, vocabulary: Vocabulary) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._bits = np.zeros((vocabulary._words + 31) // 32, dtype=np.int32)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether nothing but an end may follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next: (size of the vocabulary,).

        Raises:
            ProviderError: if there is none, because the vocabulary cannot spell the answer.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocabulary.size].astype(bool)
        if not allowed.any():
            raise self._cannot("has no tokens that spell it")
        return allowed

    def advance(self, token: int) -> None:
        """Takes note of the token that was written. Raises ProviderError if it was not allowed."""
        if not self._matcher.consume_token(token):
            raise self._cannot("wrote something else")

    def _check(self) -> None:
        if self._matcher.is_error():
            raise self._cannot("has no grammar for it")

    def _cannot(self, why: str) -> ProviderError:
        cure = "Use another model, or serve this one yourself and name it as openai-compatible:MODEL@URL."
        return ProviderError(f"the model cannot be held to the form of the answer: it {why}", where=self._vocabulary.name, cure=cure)


def _llguidance() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError:
        raise MissingExtra("llguidance", "local") from None
    return llguidance


def _without_padding(inner: Any) -> str:
    """A tokenizer as JSON. Padding and truncation concern prompts."""
    from tokenizers import Tokenizer

    copied = Tokenizer.from_str(inner.to_str())
    copied.no_padding()
    copied.no_truncation()
    return str(copied.to_str())
