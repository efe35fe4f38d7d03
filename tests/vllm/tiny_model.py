"""Make a model directory that a real vLLM serves in seconds: a two-layer Llama with random weights.

Run with the interpreter that has vLLM (it brings torch, transformers and tokenizers); prints the
directory:

    .venv-vllm/bin/python tests/vllm/tiny_model.py

The weights are random but seeded, the tokenizer is a byte-level BPE trained on a few sentences, so any
text has a tokenization and any token has a text. The directory is kept in a cache under a name that hashes
the parameters and this file: the second call costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

CORPUS = [
    "The quick brown fox jumps over the lazy dog while the scheduler orders the work that is left.",
    "Sort the list of numbers: 3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9.",
    'Answer with a JSON object: {"tools": [{"name": "search", "arguments": {"query": "x"}}], "done": true}',
    "def add(a, b):\n    return a + b\n\nassert add(1, 2) == 3\n",
    "user assistant system: plan, reflect, merge, improve, score, join.",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

SPECIAL_TOKENS = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]


@dataclass(frozen=True)
class TinyModel:
    """The parameters of the model; sizes are numbers of units, lengths are tokens."""

    layers: int = 2
    hidden: int = 128
    heads: int = 4
    vocabulary: int = 512
    max_position_embeddings: int = 12_288
    seed: int = 0

    def digest(self) -> str:
        """Name of this model in the cache: its parameters and the program that makes it."""
        source = Path(__file__).read_bytes()
        return hashlib.sha256(json.dumps(asdict(self)).encode() + source).hexdigest()[:16]


def build(model: TinyModel, directory: Path) -> None:
    """Write weights, configuration and tokenizer of `model` into the existing `directory`."""
    # Only the interpreter that has vLLM has these three; pytest, which looks into every module, has not.
    import torch  # type: ignore[import-not-found]
    from tokenizers import (  # type: ignore[import-not-found]
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        trainers,
    )
    from transformers import (  # type: ignore[import-not-found]
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=model.vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        model_max_length=model.max_position_embeddings,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)

    torch.manual_seed(model.seed)
    config = LlamaConfig(
        vocab_size=model.vocabulary,
        hidden_size=model.hidden,
        intermediate_size=2 * model.hidden,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.heads,
        max_position_embeddings=model.max_position_embeddings,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def cached(model: TinyModel, cache: Path) -> Path:
    """The directory of `model` under `cache`, made if it is not there; two builders may race."""
    target = cache / f"tiny-llama-{model.digest()}"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        fresh = Path(scratch) / "model"
        fresh.mkdir()
        build(model, fresh)
        try:
            fresh.rename(target)
        except OSError:
            if not target.exists():  # any other reason than that somebody was faster
                raise
    return target


def default_cache() -> Path:
    """Where model directories are kept: `LLMSCHED_TEST_MODEL_CACHE`, else a folder of the temporary directory."""
    named = os.environ.get("LLMSCHED_TEST_MODEL_CACHE")
    return Path(named) if named else Path(tempfile.gettempdir()) / f"llmsched-models-{os.getuid()}"


if __name__ == "__main__":
    sys.stdout.write(f"{cached(TinyModel(), default_cache())}\n")
