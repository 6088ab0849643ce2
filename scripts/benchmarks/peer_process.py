"""A contender of `peers.py` in a process of its own, which does as it is told line by line.

    python scripts/benchmarks/peer_process.py RUNTIME FOLDER WORDS [INSTRUCTIONS]

Loads what the folder holds, a model with so many words, then reads requests from stdin and answers
on stdout, a line of JSON each. A request is {"prompt": P}, P random tokens to be read into an empty
context, or {"context": C, "tokens": T}, T tokens to be decoded one by one behind C. Between
requests it waits for the next line and does nothing.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
import psutil
from numpy.typing import NDArray

from scripts.benchmarks.peer_files import IDS

FIRST_ID = 8  # behind those that mean something
CHUNK = 512
Ids = NDArray[np.int64]


class Runtime(Protocol):
    """A loaded model; `engine` says what computes."""

    engine: str

    def load(self, folder: Path) -> None:
        """Load what a folder holds."""

    def read(self, ids: Ids) -> None:
        """Read a prompt into an empty context and score its last token."""

    def fill(self, count: int) -> None:
        """Have a context of so many tokens, whatever they are."""

    def decode(self, token: int) -> None:
        """Take one token more and find the likeliest next one."""


class Ours:
    """Our model, from a converted folder, multiplied by the instructions that are asked for."""

    def __init__(self, instructions: str = "") -> None:
        from hlwq_mlx.folder import loading
        from hlwq_mlx.quant.backends.native.library import library, require_library

        self._load, self._library = loading.load, library
        if instructions and not require_library().use(instructions):
            raise SystemExit(f"error: this processor has no {instructions}")

    def load(self, folder: Path) -> None:
        self._model = self._load(folder / "model")
        self._widths = key_widths(folder / "model" / "config.json")
        self._cache = self._model.make_cache()
        native = self._library()
        self.engine = f"MLX {mx.__version__}" if native is None else native.instructions

    def read(self, ids: Ids) -> None:
        self._cache = self._model.make_cache()
        logits = self._model.prefill(mx.array(ids[None]), self._cache)
        mx.eval(mx.argmax(logits), [entry.state for entry in self._cache])

    def fill(self, count: int) -> None:
        self._cache = self._model.make_cache()
        fill_caches(self._cache, self._widths, count)

    def decode(self, token: int) -> None:
        mx.eval(mx.argmax(self._model.decode(mx.array([[token]]), self._cache)))


class Stock:
    """mlx-lm's model, from weights that `peer_files` wrote."""

    def __init__(self) -> None:
        from scripts.benchmarks.launches import unmade_stock_model

        self._make = unmade_stock_model

    def load(self, folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        self._widths = key_widths(folder / "config.json")
        self._model = self._make(settings, settings["bits"], mx.float32)
        self._model.load_weights(str(folder / "model.safetensors"))
        mx.eval(self._model.parameters())
        self._cache = self._model.make_cache()
        self.engine = f"MLX {mx.__version__}"

    def read(self, ids: Ids) -> None:
        # As mlx-lm generates: it scores the last token alone.
        self._cache = self._model.make_cache()
        self._model(mx.array(ids[None, :-1]), cache=self._cache)
        mx.eval([entry.state for entry in self._cache])
        self.decode(int(ids[-1]))

    def fill(self, count: int) -> None:
        self._cache = self._model.make_cache()
        fill_caches(self._cache, self._widths, count)

    def decode(self, token: int) -> None:
        mx.eval(mx.argmax(self._model(mx.array([[token]]), cache=self._cache)[:, -1]))


class Llama:
    """llama.cpp's model, through the functions of llama-cpp-python."""

    def __init__(self) -> None:
        import llama_cpp

        self._llama = llama_cpp

    def load(self, folder: Path) -> None:
        llama_cpp = self._llama
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        path = str(folder / "model.gguf").encode()
        model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch = 4096, CHUNK
        settings.n_threads = settings.n_threads_batch = thread_count()
        self._context = llama_cpp.llama_init_from_model(model, settings)
        if not self._context:
            raise SystemExit(f"error: llama.cpp cannot load {folder}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._held = 0
        kinds = llama_cpp.llama_print_system_info().decode().replace(" = 1", "")
        self.engine = f"llama-cpp-python {llama_cpp.__version__}: {kinds.strip(' |')}"

    def read(self, ids: Ids) -> None:
        self._llama.llama_memory_clear(self._memory, True)
        self._held = 0
        self._take(ids)

    def fill(self, count: int) -> None:
        if self._held > count:
            self._llama.llama_memory_seq_rm(self._memory, 0, count, -1)
            self._held = count
        while self._held < count:
            self._take(random_ids(min(CHUNK, count - self._held), self._words))

    def decode(self, token: int) -> None:
        self._take(np.array([token]))

    def _take(self, ids: Ids) -> None:
        tokens = (self._llama.llama_token * len(ids))(*ids.tolist())
        batch = self._llama.llama_batch_get_one(tokens, len(ids))
        if self._llama.llama_decode(self._context, batch):
            raise SystemExit("error: llama.cpp cannot decode")
        self._llama.llama_synchronize(self._context)
        logits = self._llama.llama_get_logits_ith(self._context, -1)
        np.ctypeslib.as_array(logits, (self._words,)).argmax()
        self._held += len(ids)


RUNTIMES: dict[str, type[Any]] = {"ours": Ours, "mlx-lm": Stock, "llama.cpp": Llama}


def thread_count() -> int:
    """Return how many threads this process may use at once."""
    return len(psutil.Process().cpu_affinity()) if sys.platform == "linux" else psutil.cpu_count()


def key_widths(path: Path) -> list[tuple[int, int]]:
    """Return heads and width of the keys of every layer, as a config.json has them."""
    text = json.loads(path.read_text())["text_config"]
    widths = {"sliding_attention": text["head_dim"], "full_attention": text["global_head_dim"]}
    return [(text["num_key_value_heads"], widths[kind]) for kind in text["layer_types"]]


def fill_caches(caches: Sequence[Any], widths: list[tuple[int, int]], count: int) -> None:
    """Put random keys and values of so many positions into MLX's caches."""
    for cache, (heads, width) in zip(caches, widths, strict=True):
        keys = mx.random.normal((1, heads, count, width))
        mx.eval(cache.update_and_fetch(keys, keys))


def random_ids(count: int, words: int) -> Ids:
    """Draw ids of words that every contender has."""
    return np.random.default_rng(count).integers(FIRST_ID, min(words, IDS), count)


def answer(runtime: Runtime, request: dict[str, int], words: int) -> Iterator[tuple[float, float]]:
    """Do what is asked; yield the seconds of each step, and those of the processors."""
    if "prompt" in request:
        steps = [lambda: runtime.read(random_ids(request["prompt"], words))]
    else:
        runtime.fill(request["context"])
        runtime.decode(FIRST_ID)
        ids = random_ids(request["tokens"], words)
        steps = [lambda token=token: runtime.decode(int(token)) for token in ids]
    for step in steps:
        begun, used = time.perf_counter(), time.process_time()
        step()
        yield time.perf_counter() - begun, time.process_time() - used


def peak_bytes() -> int:
    """Return the most memory that this process has had, files that it maps included."""
    status = Path("/proc/self/status")
    if status.exists():  # where getrusage counts the process that started this one, too
        (line,) = (each for each in status.read_text().splitlines() if each.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Load, then answer until stdin ends."""
    kind, folder, words, *instructions = sys.argv[1:]
    mx.set_default_device(mx.cpu)
    runtime = RUNTIMES[kind](*instructions)
    begun = time.perf_counter()
    runtime.load(Path(folder))
    loaded = {"load": time.perf_counter() - begun, "engine": runtime.engine}
    print(json.dumps(loaded), flush=True)
    for line in sys.stdin:
        steps = list(answer(runtime, json.loads(line), int(words)))
        print(json.dumps({"steps": steps, "peak": peak_bytes()}), flush=True)


if __name__ == "__main__":
    main()
