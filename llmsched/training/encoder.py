"""A local Hugging Face sequence classifier as the ranker: one output per prompt, larger for shorter answers.

What vllm-ltr trains is such a model (OPT with one label, ListMLE). It is asked where texts are, that is while traces
are read, and its answer travels as `PromptText.score`; the live service asks no encoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmsched.errors import InvalidInput
from llmsched.model.prompt import LONGEST
from llmsched.workloads.prompts import Encoder


def load_encoder(directory: Path) -> Encoder:
    """The model of a folder, on this machine's processor; nothing is downloaded.

    Raises InvalidInput where transformers or torch are missing, or the folder has no such model.
    """
    try:
        import torch  # noqa: F401 (transformers has no models without it)
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ImportError as error:
        raise InvalidInput(f"--encoder needs {error.name}; pip install torch transformers") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{directory} holds no sequence classifier: {str(error).splitlines()[0]}") from None
    if model.config.num_labels != 1:
        raise InvalidInput(f"{directory} has {model.config.num_labels} outputs; a ranker has one")
    return _Classifier(tokenizer, model.eval())


class _Classifier:
    def __init__(self, tokenizer: Any, model: Any) -> None:
        self._tokenizer = tokenizer
        self._model = model

    def __call__(self, text: str) -> float:
        import torch

        inputs = self._tokenizer(text[:LONGEST], return_tensors="pt", truncation=True)
        with torch.inference_mode():
            return float(self._model(**inputs).logits[0, 0])
