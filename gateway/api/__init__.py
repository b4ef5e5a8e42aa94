"""The data plane's HTTP surface: OpenAI's chat completions and models."""
