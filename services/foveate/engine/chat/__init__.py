"""The engine of vision-language models: continuous batching of answers on a key/value cache with slots."""
