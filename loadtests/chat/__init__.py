"""The bench of chats: the served engine beside transformers' `generate` and beside simpler servers."""
