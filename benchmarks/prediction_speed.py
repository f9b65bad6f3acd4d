"""Predictions per second: of a compiled search space, and of single networks; seconds of one ONNX file and its parts.

    python -m benchmarks.prediction_speed --target cpu_onnxruntime_fp32

Scoring tokens is what a search does, and must reach 50,000 architectures a second on one core. The ONNX file is
ResNet-50 at 224×224 unless one is given. `cold_s` is the first prediction of a fresh process that has read table and
predictor and no network, on a machine that has seen none; it must stay within 50 ms. `seen_s` is repeated in a process
that has seen the file, so that whatever a call leaves behind serves the next; it must stay within 5 ms. `restarted_s`
is the first prediction of a process after another one that has seen the file. The exit code is 3 where a limit is not
met. `kernels_from` says whether rules or the runtime said what is executed; `runtime_cold_s` and `runtime_seen_s` are
the same predictions with the runtime asked each time.

Of the parts `structure_s` reads the file without its weights, `parse_s` with them, `rules_s` has the rules say what is
executed, `kernels_s` the engine (`rules_agree` says whether both say the same), and `costs_s` adds the kernels up. All
are medians. The target must have a latency table (`akd-deploy profile`, or a folder given by `--table`) that covers the
file's operators (`akd-deploy profile --onnx FILE --resume`) and the space's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, sleep, time

import numpy as np

from akd_deploy.engines.onnx_file import read_onnx
from akd_deploy.engines.onnx_structure import read_structure
from akd_deploy.errors import AkdError
from akd_deploy.fusion.onnxruntime_cpu import block_of, kernels_of
from akd_deploy.pipeline.kernels import AUTO, RULES, RUNTIME, SOURCES
from akd_deploy.pipeline.latency import TargetLatency, target_latency, write_model
from akd_deploy.pipeline.spaces import named_space
from akd_deploy.target import load_target
from benchmarks.networks import NETWORKS

REQUIRED_PER_S = 50_000
"""Architectures a second by their tokens, on one core."""
REQUIRED_COLD_S, REQUIRED_SEEN_S = 0.05, 0.005
"""Of ResNet-50's ONNX file on ONNX Runtime's CPU provider in fp32, on one core."""
SETTLED_S = 3.0
"""A file written to more recently than this is read again: it might have been written to twice at one time."""
TOKENS, ARCHITECTURES, SINGLES = 200_000, 20_000, 10
"""How many of each are scored in one go, or predicted one by one."""
REPEATS = 5
"""Calls a median is taken of; fresh processes for a cold prediction."""
PUBLISHED = "resnet50"


def seconds_of(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median seconds of one call, the first one left out."""
    call()
    return median(one_s(call) for _ in range(repeats))


def one_s(call: Callable[[], object]) -> float:
    """Seconds of a single call."""
    began = perf_counter()
    call()
    return perf_counter() - began


def space_speed(latency: TargetLatency, space_name: str) -> dict[str, float]:
    """Architectures a second of a compiled space, and seconds of its networks predicted one by one."""
    space, rng = named_space(space_name), np.random.default_rng(0)
    began = perf_counter()
    compiled = latency.compile(space)
    compile_s = perf_counter() - began
    tokens = space.sample_tokens(TOKENS, rng)
    architectures = [space.from_tokens(row) for row in tokens[:ARCHITECTURES]]
    few = architectures[:SINGLES]
    with tempfile.TemporaryDirectory() as scratch:
        models = [write_model(latency.target, architecture, Path(scratch)) for architecture in few]
        model_s = median(one_s(partial(latency.predict_model, path)) for path in models)
    return {
        "tokens_per_s": len(tokens) / seconds_of(lambda: compiled.latencies_s(tokens)),
        "architectures_per_s": len(architectures) / seconds_of(lambda: compiled.predict(architectures)),
        "compile_s": compile_s,
        "predict_architecture_s": median(one_s(partial(latency.predict_architecture, one)) for one in few),
        "predict_model_s": model_s,
    }


def file_speed(latency: TargetLatency, table: Path | None, path: Path) -> dict[str, float | bool | str]:
    """Seconds of one ONNX file's prediction, cold and seen, by rules and by the runtime, and of its parts.

    Raises:
        AkdError: the file cannot be predicted, for example because of operators that the table does not cover.
    """
    target, engine = latency.target, latency.engine
    executed = engine.executed_kernels(path)
    with tempfile.TemporaryDirectory() as empty:
        cold = median(cold_s(target.name, table, path, AUTO, Path(empty, str(i))) for i in range(REPEATS))
        restarted = median(cold_s(target.name, table, path, AUTO, Path(empty, "0")) for _ in range(REPEATS))
        by_runtime = median(cold_s(target.name, table, path, RUNTIME, Path(empty, f"r{i}")) for i in range(REPEATS))
    result: dict[str, float | bool | str] = {
        "model": path.name,
        "kernels": len(executed),
        "kernels_from": str(latency.predict_model(path).kernels_from),
        "cold_s": cold,
        "required_cold_s": REQUIRED_COLD_S,
        "seen_s": seen_s(latency, path),
        "required_seen_s": REQUIRED_SEEN_S,
        "restarted_s": restarted,
        "runtime_cold_s": by_runtime,
        "runtime_seen_s": seconds_of(lambda: latency.predict_model(path, RUNTIME, remember=False)),
        "structure_s": seconds_of(lambda: read_structure(path, target.batch)),
        "parse_s": seconds_of(lambda: read_onnx(path, target.batch)),
        "kernels_s": seconds_of(lambda: engine.executed_kernels(path)),
        "costs_s": seconds_of(lambda: latency.predictor.predict(executed)),
    }
    if latency.reader.why_no_rules() is None:
        ruled = Counter(e.kernel for e in latency.reader.read(path, RULES, remember=False).executed)
        result["rules_agree"] = ruled == Counter(e.kernel for e in executed)
        structure, level = read_structure(path, target.batch), str(engine.option("graph_optimization"))
        block = block_of(latency.reader.device)
        result["rules_s"] = seconds_of(lambda: kernels_of(structure.model, level, nchwc_block=block))
    return result


def seen_s(latency: TargetLatency, path: Path) -> float:
    """Seconds of a prediction whose file this process has predicted, and that nobody has written to for a while."""
    sleep(max(0.0, path.stat().st_ctime + SETTLED_S - time()))
    return seconds_of(lambda: latency.predict_model(path))


def cold_s(target: str, table: Path | None, path: Path, kernels: str, home: Path) -> float:
    """Seconds of the first prediction in a process of its own, with what earlier ones left in `home`.

    Raises:
        CalledProcessError: it failed; what it said is on stderr.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-m", "benchmarks.prediction_speed", "--target", target, "--once", str(path)]
    command += ["--kernels", kernels, "--home", str(home), *(["--table", str(table)] if table else [])]
    return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def within_limits(result: Mapping[str, object]) -> bool:
    """Whether every number of a result is within its limit; of a space there may be none."""
    return (
        float(str(result.get("tokens_per_s", REQUIRED_PER_S))) >= REQUIRED_PER_S
        and float(str(result["cold_s"])) <= REQUIRED_COLD_S
        and float(str(result["seen_s"])) <= REQUIRED_SEEN_S
    )


def published_model(folder: Path) -> Path:
    """ResNet-50 as an ONNX file."""
    from benchmarks.networks.export import write_onnx

    return write_onnx(NETWORKS[PUBLISHED], folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="cpu_onnxruntime_fp32")
    parser.add_argument("--space", default="mobile", help="a space's name, or a run.toml that has one")
    parser.add_argument("--no-space", action="store_true", help="the file alone")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help=f"instead of {PUBLISHED}")
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="of the latency table to use")
    parser.add_argument("--once", type=Path, metavar="FILE", help="print the seconds of one prediction of it, no more")
    parser.add_argument("--kernels", choices=SOURCES, default=AUTO, help="with --once: who says what is executed")
    parser.add_argument("--home", type=Path, metavar="FOLDER", help="with --once: where kernels are remembered")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    try:
        latency = target_latency(load_target(given.target), given.table)
        latency.reader.directory = given.home  # what this machine remembers is left out of it
        if given.once:
            print(one_s(lambda: latency.predict_model(given.once, given.kernels)))
            return 0
        with tempfile.TemporaryDirectory() as scratch:
            file = file_speed(latency, given.table, given.onnx or published_model(Path(scratch)))
        space = {} if given.no_space else space_speed(latency, given.space)
    except AkdError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    result: dict[str, object] = {
        "target": given.target,
        **file,
        **({"space": given.space, **space, "required_tokens_per_s": REQUIRED_PER_S} if space else {}),
    }
    result["ok"] = within_limits(result)
    if given.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:24}", f"{value:,.0f}" if name.endswith("_per_s") else f"{value:.4g}"
                  if isinstance(value, float) else value)  # fmt: skip
    return 0 if result["ok"] else 3


if __name__ == "__main__":
    sys.exit(main())
