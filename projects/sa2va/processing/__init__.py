"""How an image and a phrase become tensors: tokenizer, prompts, tiles, SAM2 input."""

from .processor import Sa2VAProcessor

__all__ = ["Sa2VAProcessor"]
