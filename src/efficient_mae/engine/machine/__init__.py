"""The machine: processes, memory, and how a model is spread over them."""
