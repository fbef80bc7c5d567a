"""Tiny vision-language models with random weights, written to disk without a network, for tests of local raters.

They look at pictures and write nonsense, which is what a test of the way around a model needs: whatever comes out right does not come out
right because the model is good.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

TEMPLATE = """{%- for message in messages -%}
<|{{ message['role'] }}|>{% if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] -%}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{%- endfor -%}
{% endif %}<|end|>
{%- endfor -%}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
"""A chat template with a system turn, pictures and turns of both sides."""
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
_SENTENCES = (
    "The picture shows observations of the agent in order of time.",
    "Score each of the actions by how far it serves the instruction.",
    'Answer with JSON only: {"scores": [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]}',
    "go to the red door, pick up the blue ball and open the box",
) * 8

Kind = Literal["llava", "idefics3"]
Tokens = Literal["bytes", "words"]


def write(
    folder: Path, kind: Kind = "llava", *, tokens: Tokens = "bytes", seed: int = 0, template: str | None = TEMPLATE, **text: Any
) -> Path:
    """A model with half a million parameters, its processor and its tokenizer in `folder`.

    Args:
        folder: written to; made if it is not there.
        kind: LLaVA (one grid of tokens a picture) or Idefics3 (pictures are cut up, so they take more tokens the larger they are).
        tokens: byte-level BPE (as GPT-2, Qwen, Llama 3) or BPE of words behind "▁" with bytes to fall back on (as Llama 2, Mistral, Gemma).
        seed: of the weights.
        template: the chat template; None for none.
        text: changes to the config of the language model, e.g. `max_position_embeddings`.
    """
    import torch
    import transformers

    tokenizer = _tokenizer(tokens)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in (("image", "<image>"), ("eos", "<|end|>"), ("pad", "<|pad|>"))}
    language = {
        "vocab_size": len(tokenizer) + 3,  # as in many real models, a few more than there are tokens
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 2048, "pad_token_id": ids["pad"], "eos_token_id": ids["eos"], "bos_token_id": None,
        # random weights of the usual size make a model that says the same whatever it sees
        "initializer_range": 0.3,
    } | text  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
        "initializer_range": 0.3,
    }  # fmt: skip
    model: Any
    processor: Any
    torch.manual_seed(seed)
    if kind == "llava":
        config = transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**vision, projection_dim=32),
            text_config=transformers.LlamaConfig(**language),
            image_token_index=ids["image"],
            vision_feature_select_strategy="default",
            vision_feature_layer=-1,
        )
        model = transformers.LlavaForConditionalGeneration(config)
        images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
        processor = transformers.LlavaProcessor(
            images,
            tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=template,
        )
    else:
        config = transformers.Idefics3Config(
            vision_config=vision, text_config=transformers.LlamaConfig(**language), image_token_id=ids["image"], scale_factor=2,
            tie_word_embeddings=False,
        )  # fmt: skip
        model = transformers.Idefics3ForConditionalGeneration(config)
        images = transformers.Idefics3ImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
        processor = transformers.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template)
    _make_it_stop(model, tokenizer, ids["eos"])
    model.generation_config.eos_token_id = ids["eos"]
    model.generation_config.pad_token_id = ids["pad"]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _make_it_stop(model: Any, tokenizer: Any, end: int) -> None:
    """Random weights would ramble on for ever: replies get to have some visible tokens and an end, after a few dozen tokens at most."""
    import torch

    head = model.get_output_embeddings().weight
    begun = model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("<|assistant|>")]
    with torch.no_grad():
        head[len(tokenizer) :] = 0
        head[[number for number in tokenizer.added_tokens_decoder if number != end]] = 0
        # the end is likely in many a state, but never right after the beginning
        head[end] -= (head[end] @ begun / (begun @ begun) + 3) * begun


def _tokenizer(kind: Tokens) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = [
        "<|pad|>",
        "<|end|>",
        "<|unknown|>",
        *ROLES,
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        "<end_of_utterance>",
        *rows,
    ]
    if kind == "bytes":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<|unknown|>"))
        inner.normalizer = normalizers.Replace(" ", "▁")
        inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]  # type: ignore[list-item]
        )
        alphabet = []
        special = special[:3] + [f"<0x{byte:02X}>" for byte in range(256)] + special[3:]
    trainer = trainers.BpeTrainer(vocab_size=len(special) + 420, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(_SENTENCES, trainer)
    if kind == "words":
        inner = _with_plain_bytes(inner)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>", unk_token="<|unknown|>", extra_special_tokens=[*ROLES, "<image>"]
    )


def _with_plain_bytes(inner: Any) -> Any:
    """`inner` with byte tokens as models trained with SentencePiece have them: in the vocabulary, but not special."""
    import json

    from tokenizers import Tokenizer

    content = json.loads(inner.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(content))
