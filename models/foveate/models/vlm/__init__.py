"""Vision-language models: a vision tower, a projector to visual tokens, and a language model."""
