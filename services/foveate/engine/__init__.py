"""The engine of one model: admission, queue, batching loop and execution."""
