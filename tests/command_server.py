"""Runs command lines, each in a process of its own that need not import anything anew.

Reads a JSON list on each line of standard input, the module's name first; answers with a JSON line
[exit code, standard output, standard error]. A job stops, with exit code 0, where it would compute.
"""

import importlib
import io
import json
import os
import sys
import tempfile
import traceback


def nothing(*_args: object, **_options: object) -> None:
    """Stands for what takes time."""
    sys.exit(0)


def start(module: str, arguments: list[str]) -> None:
    sys.argv = [module, *arguments]
    module = module.replace("icljax.preflight", "icljax.preflight.check")
    main = importlib.import_module(module)
    if module == "icljax.report":
        main.terminal.run(main.main)
    else:
        main.run()


def run(module: str, arguments: list[str]) -> list:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = io.TextIOWrapper(out), io.TextIOWrapper(err)
                start(module, arguments)
                code = 0
            except SystemExit as e:
                code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
            except BaseException:
                traceback.print_exc()
                code = 1
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        texts = [os.pread(f.fileno(), 1 << 20, 0).decode(errors="replace") for f in (out, err)]
    return [os.waitstatus_to_exitcode(status), *texts]


def main() -> None:
    for name in ("main", "preflight.check", "report", "reports.page"):
        importlib.import_module(f"icljax.{name}")
    from icljax import checkpoints
    from icljax.experiments import dual, pretrain, regression, sweep

    # All that comes before it is as it is: config, folder, model, data, prompts.
    checkpoints.load_params = nothing
    dual.demonstration_examples = dual.random_examples = regression.construction_errors = nothing
    pretrain.corpus.load = sweep._run_one = nothing
    import icljax.preflight.check

    icljax.preflight.check.examine = nothing
    for line in sys.stdin:
        module, *arguments = json.loads(line)
        print(json.dumps(run(module, arguments)), flush=True)


if __name__ == "__main__":
    main()
