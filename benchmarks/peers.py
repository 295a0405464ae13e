"""This engine, exact and int8, beside `transformers`, llama-cpp-python and vLLM: same prompts, token counts, threads.

One prompt at a time, greedy, every peer in turn for each prompt; time to the first token and tokens a second after it.
llama.cpp and vLLM run in processes of their own, which may belong to other virtual environments. A peer that cannot
run is named with the reason.

    python benchmarks/peers.py --prompts alpacaeval_dev.jsonl --limit 4 --threads 2 --llama-python llama/bin/python
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

WORKERS = ("llama", "vllm")
MAX_POSITIONS = 4096


def serve_llama(
    model: str, threads: int, plain_buffers: bool
) -> tuple[str, Callable[[list[int], int], dict[str, object]]]:
    """llama.cpp on a GGUF file, without reusing an earlier prompt's KV."""
    import llama_cpp

    if plain_buffers:
        bindings = llama_cpp.llama_cpp
        params = bindings.llama_model_default_params()
        params.use_extra_bufts = False
        bindings.llama_model_default_params = lambda: params  # `Llama` has no argument for it
    llama = llama_cpp.Llama(model, n_ctx=MAX_POSITIONS, n_threads=threads, n_threads_batch=threads, verbose=False)

    def decode(ids: list[int], num_tokens: int) -> dict[str, object]:
        llama.reset()
        tokens, times = [], [time.perf_counter()]
        for token in llama.generate(ids, temp=0.0, repeat_penalty=1.0):
            tokens.append(token)
            times.append(time.perf_counter())
            if len(tokens) == num_tokens:
                break
        return {"tokens": tokens, "ttft_s": times[1] - times[0], "decode_s": times[-1] - times[1]}

    return llama_cpp.__version__, decode


def serve_vllm(model: str, threads: int, _: bool) -> tuple[str, Callable[[list[int], int], dict[str, object]]]:
    """vLLM's offline interface gives no time of the first token: an answer of one token is timed instead."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import vllm

    settings = {"dtype": "float32", "max_model_len": MAX_POSITIONS, "enable_prefix_caching": False}
    llm = vllm.LLM(model, **settings)

    def answer(ids: list[int], num_tokens: int) -> tuple[list[int], float]:
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        start = time.perf_counter()
        (output,) = llm.generate([{"prompt_token_ids": ids}], sampling, use_tqdm=False)
        return list(output.outputs[0].token_ids), time.perf_counter() - start

    def decode(ids: list[int], num_tokens: int) -> dict[str, object]:
        _, ttft_s = answer(ids, 1)
        tokens, total_s = answer(ids, num_tokens)
        return {"tokens": tokens, "ttft_s": ttft_s, "decode_s": total_s - ttft_s}

    return vllm.__version__, decode


def work(kind: str, model: str, threads: int, plain_buffers: bool) -> None:
    """A peer's process: a line of JSON for each line of JSON, the first of them its version. What the peer itself
    prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        version, decode = {"llama": serve_llama, "vllm": serve_vllm}[kind](model, threads, plain_buffers)
    except ImportError as error:
        print(json.dumps({"error": f"not installed: {error}"}), file=replies, flush=True)
        return
    print(json.dumps({"version": version}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(decode(**json.loads(line))), file=replies, flush=True)


class PeerError(Exception):
    """A peer cannot run here, or has died."""


class Worker:
    """A peer in a process of its own, fed one request at a time."""

    def __init__(self, kind: str, python: str, model: str, options: Sequence[str], log: Path) -> None:
        self._log = log
        command = [python, __file__, "--worker", kind, "--worker-model", model, *options]
        pipe = subprocess.PIPE
        try:
            with log.open("w") as stderr:
                self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, text=True)
        except OSError as error:
            raise PeerError(f"{python}: {error.strerror}") from error
        hello = self._reply()
        if "error" in hello:
            raise PeerError(str(hello["error"]))
        self.version = str(hello["version"])

    def decode(self, ids: Sequence[int], num_tokens: int) -> dict[str, object]:
        assert self._process.stdin
        print(json.dumps({"ids": list(ids), "num_tokens": num_tokens}), file=self._process.stdin, flush=True)
        return self._reply()

    def _reply(self) -> dict[str, object]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise PeerError(" ".join([f"its process ended with status {self._process.wait()}", *said]))
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()


def find_gguf(given: Path | None, cache_dir: Path, temp: str) -> Path:
    """The file given, or the one that the default model was made from, out of its wheel in the cache."""
    from pasta_ray.engine.gguf import DEFAULT_GGUF, DEFAULT_WHEEL

    if given:
        if not given.is_file():
            raise PeerError(f"{given}: no such file")
        return given
    wheel = cache_dir / DEFAULT_WHEEL
    if not wheel.is_file():
        raise PeerError(f"no GGUF file: give --gguf, or put {DEFAULT_WHEEL} into {cache_dir}")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(DEFAULT_GGUF, temp))


def start_workers(args: argparse.Namespace, threads: int, temp: str) -> tuple[dict[str, Worker], dict[str, str]]:
    """The peers that run, each tried on a prompt of a few tokens, and of the others why they do not."""
    from pasta_ray.engine import EngineConfig
    from pasta_ray.engine.weights import resolve_model

    config = EngineConfig(model=args.model)
    models = {"llama": lambda: find_gguf(args.gguf, config.cache_dir, temp), "vllm": lambda: resolve_model(config)}
    pythons = {"llama": args.llama_python, "vllm": args.vllm_python}
    workers, absent = {}, {}
    options = ["--threads", str(threads), *(["--llama-plain-buffers"] if args.llama_plain_buffers else [])]
    for kind in WORKERS:
        try:
            worker = Worker(kind, pythons[kind], str(models[kind]()), options, Path(temp) / f"{kind}.log")
            worker.decode(range(1, 33), 2)
            workers[kind] = worker
        except PeerError as error:
            absent[kind] = str(error)
    return workers, absent


def compare(args: argparse.Namespace, temp: str) -> dict[str, object]:
    """The result, printed as tables too."""
    from pasta_ray.engine import EngineConfig
    from pasta_ray.eval.bench.figures import Result, interleave
    from pasta_ray.eval.bench.machine import describe_machine
    from pasta_ray.eval.bench.reference import Reference
    from pasta_ray.eval.bench.tables import print_result
    from pasta_ray.eval.bench.workload import Decoded, decode, load_engines

    config = EngineConfig(model=args.model, num_threads=args.threads)
    engines = load_engines(config, (None, "int8"))
    reference = Reference(config)
    machine = describe_machine()
    workers, absent = start_workers(args, machine.threads, temp)
    peers = {f"ours, {label}": partial(decode, engine) for label, engine in engines.items()}
    peers["transformers, float32"] = reference.decode
    for kind, worker in workers.items():
        peers[f"{kind}, {worker.version}"] = lambda ids, num_tokens, worker=worker: Decoded(
            **worker.decode(ids, num_tokens)
        )
    prompts = read_prompts(args, engines["float32"])
    cases = {
        (name, number): partial(peer, ids, args.tokens)
        for number, ids in enumerate(prompts)
        for name, peer in peers.items()
    }
    say = partial(print, file=sys.stderr, flush=True)
    samples = interleave(cases, num_warmups=1, num_reps=args.reps, say=say)
    for worker in workers.values():
        worker.close()
    settings = {"model": args.model, "prompt_tokens": [len(ids) for ids in prompts], "tokens": args.tokens}
    settings |= {"llama_plain_buffers": args.llama_plain_buffers, "absent": absent}
    result = Result("peers", machine, settings)
    add_figures(result, {name: [d for (n, _), ds in samples.items() if n == name for d in ds] for name in peers})
    print_result(result)
    for kind, reason in absent.items():
        print(f"{kind} is not in the table: {reason}")
    return asdict(result)


def add_figures(result, decoded_by_peer) -> None:
    for name, decoded in decoded_by_peer.items():
        result.add(f"{name}: first token", "ms", [1000 * d.ttft_s for d in decoded])
        result.add(f"{name}: decode", "tokens/s", [d.tokens_per_s for d in decoded])
    ours, *others = decoded_by_peer
    for name in others:
        result.compare(f"first token: {name} / {ours}", f"{name}: first token", f"{ours}: first token")
        result.compare(f"decode: {name} / {ours}", f"{name}: decode", f"{ours}: decode")


def read_prompts(args: argparse.Namespace, engine) -> list[list[int]]:
    """Chats of the file's instructions, or one prompt of random tokens."""
    from pasta_ray.eval.bench.workload import random_prompts

    if not args.prompts:
        return random_prompts(1, args.context, engine.vocab_size)
    records = [json.loads(line) for line in args.prompts.open(encoding="utf-8")][: args.limit]
    return [engine.tokenizer.encode_chat([{"role": "user", "content": r["instruction"]}]) for r in records]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, help="JSONL with instruction; else one prompt of random tokens")
    parser.add_argument("--limit", type=int, default=4, help="prompts of the file")
    parser.add_argument("--context", type=int, default=300, help="random tokens where there is no file")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of every peer")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--gguf", type=Path, help="for llama.cpp; else the default model's")
    parser.add_argument("--llama-python", default=sys.executable, help="interpreter that has llama-cpp-python")
    parser.add_argument(
        "--llama-plain-buffers",
        action="store_true",
        help="no AMX and no repacked weights, which crash on some machines",
    )
    parser.add_argument("--vllm-python", default=sys.executable, help="interpreter that has vLLM")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--worker-model", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.worker_model, args.threads, args.llama_plain_buffers)
        return
    if args.out:
        args.out.touch()  # a place that cannot be written to shows now, not after the run
    with tempfile.TemporaryDirectory() as temp:
        result = compare(args, temp)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
