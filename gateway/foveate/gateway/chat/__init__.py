"""OpenAI's chat completions: requests in JSON, answers, and answers as server-sent events."""
