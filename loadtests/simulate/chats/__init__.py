"""The simulator for chats: the chat engine's own scheduler, policy and caches on a virtual clock."""
