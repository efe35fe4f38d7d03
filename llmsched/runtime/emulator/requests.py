"""The body of a completion request, checked as vLLM checks it, turned into a `Generation`.

Sampling parameters (temperature, top_p, stop, …) have no meaning for filler and are accepted and unused,
and so are unknown fields, as in vLLM. What would change the shape of the answer and is not emulated is
refused with a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random, getrandbits
from typing import Any
from zlib import crc32

import orjson

from llmsched.errors import InvalidInput
from llmsched.runtime.emulator.answers import Call
from llmsched.runtime.emulator.settings import EmulatorSettings
from llmsched.runtime.emulator.text import Output, free_text, json_text, said_text, token_ids

#: tokens that a chat template adds to each message
_MESSAGE_TOKENS, _MESSAGE_TOKEN = 4, 1
#: fields that are not emulated, with the values that ask for nothing
_NOT_EMULATED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "prompt_logprobs": (None,),
    "suffix": (None, ""),
    "use_beam_search": (None, False),
    "prompt_embeds": (None,),
    "truncate_prompt_tokens": (None,),
    "functions": (None, []),
}


class Refused(InvalidInput):
    """A request that vLLM would refuse, or that the emulator does not emulate; an OpenAI error object."""

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, type: str = "BadRequestError"
    ) -> None:
        super().__init__(message, field=param)
        self.status = status
        self.type = type


@dataclass(frozen=True, slots=True)
class Generation:
    """One call of the model, with its answer already decided."""

    id: str
    chat: bool
    #: token ids
    prompt: Sequence[int]
    output: Output
    priority: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    #: calls of tools that the model says are told as such
    tools: bool = False


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request body. Raises Refused."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(f"1 validation error: JSON decode error: {error}", type="Bad Request") from None
    if not isinstance(document, dict):
        raise Refused("1 validation error: the body must be a JSON object", type="Bad Request")
    return document


def parse_generation(body: bytes, settings: EmulatorSettings, *, chat: bool, id: str | None) -> Generation:
    """A body of POST /v1/completions or, with `chat`, /v1/chat/completions. Raises Refused.

    id: from the X-Request-Id header; wins over the body's request_id.
    """
    document = parse_object(body)
    check_model(document, settings)
    for field, idle in _NOT_EMULATED.items():
        if field in document and document[field] not in idle:
            raise Refused(f"the emulated engine does not support {field}={document[field]!r}", param=field)
    stream = _flag(document, "stream")
    options = document.get("stream_options")
    if options is not None and not stream:
        raise Refused("Stream options can only be defined when `stream=True`.", param="stream_options")
    if options is not None and not isinstance(options, dict):
        raise Refused(f"stream_options must be an object, not {options!r}", param="stream_options")
    priority = _integer(document, "priority", 0) or 0
    if priority and settings.scheduling_policy != "priority":
        # The answer of vLLM's documentation and v0 engine; the v1 engine forgot to give it (issue 22997).
        raise Refused(f"Got priority {priority} but Priority scheduling is not enabled.", param="priority")
    prompt, digest, said = _chat_prompt(document) if chat else (*_prompt(document), 0)
    low, high = _output_bounds(document, settings, len(prompt), chat=chat)
    draw = Random(f"{settings.seed}:{digest}:{_integer(document, 'seed', None)}")
    return Generation(
        id=f"{'chatcmpl' if chat else 'cmpl'}-{id or _text(document, 'request_id') or f'{getrandbits(128):032x}'}",
        chat=chat,
        prompt=prompt,
        output=_output(document, settings, draw, low, high, said),
        priority=priority,
        stream=stream,
        include_usage=options is not None and _flag(options, "include_usage"),
        continuous_usage=options is not None and _flag(options, "continuous_usage_stats"),
        return_token_ids=_flag(document, "return_token_ids"),
        tools=chat and bool(document.get("tools")) and document.get("tool_choice") != "none",
    )


def check_model(document: dict[str, Any], settings: EmulatorSettings) -> None:
    """Raises Refused (404) if the request wants another model."""
    model = _text(document, "model")
    if model and model != settings.model:
        raise Refused(f"The model `{model}` does not exist.", param="model", status=404, type="NotFoundError")


def prompt_text(document: dict[str, Any]) -> str:
    """All the text of a request to tokenize. Raises Refused."""
    if "messages" in document:
        return "".join(_message_text(message) for message in _messages(document))
    prompt = document.get("prompt")
    if not isinstance(prompt, str):
        raise Refused("prompt must be text", param="prompt")
    return prompt


def _prompt(document: dict[str, Any]) -> tuple[list[int], int]:
    """(token ids, digest) of a completion's prompt: text, token ids, or a list of one of them."""
    prompt = document.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], list | str):
        if len(prompt) != 1:
            raise Refused(f"the emulated engine takes one prompt per request, not {len(prompt)}", param="prompt")
        prompt = prompt[0]
    if isinstance(prompt, str):
        return token_ids(prompt), crc32(prompt.encode())
    if not isinstance(prompt, list) or not set(map(type, prompt)) <= {int}:
        raise Refused("prompt must be text or a list of token ids", param="prompt")
    if not prompt:
        raise Refused("The decoder prompt cannot be empty")
    if min(prompt) < 0:
        raise Refused("a token id must not be negative", param="prompt")
    return prompt, crc32(orjson.dumps(prompt))


def _chat_prompt(document: dict[str, Any]) -> tuple[list[int], int, int]:
    """(token ids, digest, tokens said) of a chat: with `continue_final_message` its last message is the reply so far.

    A reply so far changes nothing about what the whole is going to be, so it is not in the digest.
    """
    messages = _messages(document)
    said = ""
    if _flag(document, "continue_final_message"):
        if document.get("add_generation_prompt") is not False:
            raise Refused("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
        said = _message_text(messages[-1])
        messages = messages[:-1]
    text = "".join(map(_message_text, messages))
    prompt = [_MESSAGE_TOKEN] * (_MESSAGE_TOKENS * len(messages)) + token_ids(text)
    reply = token_ids(said) if said else []
    return prompt + reply, crc32(text.encode()), len(reply)


def _messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise Refused("messages must be a list of at least one message object", param="messages")
    return messages


def _message_text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [text for text in parts if isinstance(text, str)]
        if len(texts) == len(parts):
            return "".join(texts)
    raise Refused("the content of a message must be text", param="messages")


def _output_bounds(
    document: dict[str, Any], settings: EmulatorSettings, prompt_tokens: int, *, chat: bool
) -> tuple[int, int]:
    """(fewest, most) output tokens; vLLM cuts max_tokens to what the context has left."""
    context = settings.max_model_len
    field = "max_completion_tokens" if chat and document.get("max_completion_tokens") is not None else "max_tokens"
    wanted = _integer(document, field, None if chat else 16)
    if wanted is not None and wanted > context:
        raise Refused(
            f"{field}={wanted} cannot be greater than max_model_len={context}. Please request fewer output "
            f"tokens. (parameter={field}, value={wanted})",
            param=field,
        )
    if prompt_tokens > context:
        raise Refused(
            f"This model's maximum context length is {context} tokens. However, your prompt contains "
            f"{prompt_tokens} input tokens, which exceeds this limit even without any output tokens. Please "
            f"reduce the length of the input prompt. (parameter=input_tokens, value={prompt_tokens})",
            param="input_tokens",
        )
    high = context - prompt_tokens if wanted is None else min(wanted, context - prompt_tokens)
    low = _integer(document, "min_tokens", 0) or 0
    if high < 1:
        raise Refused(
            f"max_tokens must be at least 1, got {high}. (parameter=max_tokens, value={high})",
            param="max_tokens",
        )
    if low < 0:
        raise Refused(f"min_tokens must be greater than or equal to 0, got {low}.")
    if low > high:
        raise Refused(f"min_tokens must be less than or equal to max_tokens={high}, got {low}.")
    return low, high


def _output(
    document: dict[str, Any], settings: EmulatorSettings, draw: Random, low: int, high: int, said: int
) -> Output:
    ignore_eos = _flag(document, "ignore_eos")
    schema = _schema(document)
    if settings.answer is not None and not ignore_eos and (call := _call(document)) is not None:
        try:
            return said_text(settings.answer(call), high, said=said)
        except LookupError as error:
            raise Refused(f"the script has no answer: {error.args[0] if error.args else error}") from None
    if schema is None:
        return free_text(draw, low, high, ignore_eos=ignore_eos, said=said)
    try:
        return json_text(schema, draw, low, high, ignore_eos=ignore_eos)
    except InvalidInput as error:
        raise Refused(str(error), param="response_format") from None


def _call(document: dict[str, Any]) -> Call | None:
    """The request as a script sees it; None: its prompt is no text."""
    if "messages" in document:
        messages = _messages(document)
        if _flag(document, "continue_final_message"):
            messages = messages[:-1]
        listed = [{"role": str(m.get("role", "user")), "content": _message_text(m)} for m in messages]
    else:
        prompt = document.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if not isinstance(prompt, str):
            return None
        listed = [{"role": "user", "content": prompt}]
    return Call(listed, document.get("response_format"), _integer(document, "seed", None), document)


def _schema(document: dict[str, Any]) -> Any:
    """The schema that the reply must fit, or None."""
    if document.get("structured_outputs") is not None:
        raise Refused(
            "the emulated engine takes a schema in response_format, not in structured_outputs",
            param="structured_outputs",
        )
    wanted = document.get("response_format")
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    if kind != "json_schema":
        raise Refused(
            f"response_format must be of type text, json_object or json_schema, not {kind!r}",
            param="response_format",
        )
    inner = wanted.get("json_schema")
    if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict | bool):
        raise Refused(
            "When response_format type is 'json_schema', the 'json_schema' field must be provided.",
            param="response_format",
        )
    return inner["schema"]


def _integer(document: dict[str, Any], field: str, default: int | None) -> int | None:
    value = document.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused(f"{field} must be an integer, not {value!r}", param=field)
    return value


def _flag(document: dict[str, Any], field: str) -> bool:
    value = document.get(field)
    if value is not None and not isinstance(value, bool):
        raise Refused(f"{field} must be true or false, not {value!r}", param=field)
    return bool(value)


def _text(document: dict[str, Any], field: str) -> str | None:
    value = document.get(field)
    if value is not None and not isinstance(value, str):
        raise Refused(f"{field} must be text, not {value!r}", param=field)
    return value
