"""Run Python commands in forks of a process that has imported what makes them slow to start.

Torch and transformers take five seconds to import, what Snakemake needs one. Each command still
runs in a process of its own, as `python -m` or `python -c` would run it.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path


class Forks:
    """Starts commands, one at a time, in forks of a process that has imported `modules`."""

    def __init__(self, *modules: str):
        self.modules = modules
        self.server: subprocess.Popen[bytes] | None = None
        self.last: Fork | None = None

    def start(self, *arguments: str | Path, folder: Path | None = None) -> "Fork":
        """Start what `python` with these arguments would start, in a folder."""
        if self.server is None:
            command = [sys.executable, __file__, *self.modules]
            pipe = subprocess.PIPE
            self.server = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0)
            atexit.register(self.close)
        self.end_last()
        self.last = Fork(self.server, *map(str, arguments), folder=folder or Path.cwd())
        return self.last

    def end_last(self) -> None:
        """End the last command, which a test that failed may have left."""
        if self.last is not None:
            self.last.send_signal(signal.SIGKILL)
            self.last.wait()

    def close(self) -> None:
        self.end_last()
        self.server.communicate()

    def run(
        self, *arguments: str | Path, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the same to its end; `stdout` is what it wrote on standard output and error."""
        fork = self.start(*arguments, folder=folder)
        return subprocess.CompletedProcess(arguments, fork.wait(), fork.output)


class Fork:
    """A running command; `output` is what it has written at its end."""

    def __init__(self, server: subprocess.Popen[bytes], *arguments: str, folder: Path):
        self.server, self.returncode = server, None
        with tempfile.TemporaryDirectory() as temporary:
            pipe = f"{temporary}/pipe"
            os.mkfifo(pipe)
            request = [arguments, str(folder), dict(os.environ), pipe]
            self.server.stdin.write(json.dumps(request).encode() + b"\n")
            self.pid = int(self.server.stdout.readline())
            self.pipe = open(pipe)  # noqa: SIM115

    def is_running(self) -> bool:
        has_ended = select.select([self.server.stdout], [], [], 0)[0]
        return self.returncode is None and not has_ended

    def send_signal(self, number: int) -> None:
        if self.is_running():
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for the end of the command and of all that write to its output."""
        if self.returncode is None:
            with self.pipe:
                self.output = self.pipe.read()
            self.returncode = int(self.server.stdout.readline())
        return self.returncode


STAGE_FORKS = Forks(
    "torch",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "peft",
    "sklearn.feature_extraction.text",
)
SNAKEMAKE_FORKS = Forks("snakemake.cli", "pandas")


def serve() -> list[str]:
    """Fork for each request, and say when the fork ends; return a fork's arguments in the fork."""
    for request in sys.stdin:
        pid = os.fork()
        if pid == 0:
            arguments, folder, environment, pipe = json.loads(request)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(pipe, os.O_WRONLY), 1)
            os.dup2(1, 2)
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
            return arguments
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    sys.exit()


def run(option: str, command: str, *arguments: str) -> int:
    """Run a module or code with these arguments, as `python` would; return the exit status."""
    sys.path[0], sys.argv[1:] = "", arguments
    try:
        if option == "-m":
            runpy.run_module(command, run_name="__main__", alter_sys=True)
        else:
            exec(compile(command, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as stop:
        if isinstance(stop.code, int | None):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    status = run(*serve())
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # without freeing all modules, which takes half a second
