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
import socket
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

    def start(self, *arguments: str | Path, folder: Path | None = None, **variables: str) -> "Fork":
        """Start what `python` with these arguments would start, in a folder.

        `variables` are of the environment, beside those of this process.
        """
        if self.server is None:
            command = [sys.executable, __file__, *self.modules]
            pipe = subprocess.PIPE
            self.server = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0)
            atexit.register(self.close)
        self.end_last()
        environment = os.environ | variables
        self.last = Fork(
            self.server, *map(str, arguments), folder=folder or Path.cwd(), environment=environment
        )
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
        self, *arguments: str | Path, folder: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the same to its end; `stdout` is what it wrote on standard output and error."""
        fork = self.start(*arguments, folder=folder, **variables)
        return subprocess.CompletedProcess(arguments, fork.wait(), fork.output)


class Fork:
    """A running command; `output` is what it has written at its end."""

    def __init__(
        self,
        server: subprocess.Popen[bytes],
        *arguments: str,
        folder: Path,
        environment: dict[str, str],
    ):
        self.server, self.returncode = server, None
        with tempfile.TemporaryDirectory() as temporary:
            pipe = f"{temporary}/pipe"
            os.mkfifo(pipe)
            request = [arguments, str(folder), environment, pipe]
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


STAGE_MODULES = (
    "torch",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "peft",
    "sklearn.feature_extraction.text",
)
STAGE_FORKS = Forks(*STAGE_MODULES)
SNAKEMAKE_FORKS = Forks("snakemake.cli", "pandas")


READ_ON_IMPORT = {name: os.environ.get(name) for name in ("HF_ENDPOINT", "HF_HUB_CACHE")}
"""Variables that modules read when they are imported, as they were when the tests began."""


class JobForks:
    """Lets jobs of Snakemake be forks of a process that has imported `modules`, several at once."""

    def __init__(self, *modules: str):
        self.modules = modules
        self.server: subprocess.Popen[bytes] | None = None

    def variables(self) -> dict[str, str]:
        """What makes `python` in scripts of bash start such a fork, and wait for it.

        Nothing if modules would have been imported in another way now.
        """
        if any(os.environ.get(name) != value for name, value in READ_ON_IMPORT.items()):
            return {}
        if self.server is None:
            self.folder = tempfile.TemporaryDirectory()
            address, client = f"{self.folder.name}/socket", Path(self.folder.name, "python")
            # -I and -S: it starts at once.
            client.write_text(f"#!{sys.executable} -IS\n{CLIENT.format(address=address)}")
            client.chmod(0o755)
            Path(self.folder.name, "bash").write_text(f'python() {{ {client} "$@"; }}\n')
            command = [sys.executable, __file__, f"--socket={address}", *self.modules]
            self.server = subprocess.Popen(command, stdout=subprocess.PIPE)
            self.server.stdout.readline()  # it listens
            atexit.register(self.close)
        return {"BASH_ENV": f"{self.folder.name}/bash"}

    def close(self) -> None:
        self.server.terminate()
        self.server.wait()
        self.folder.cleanup()


CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [request + b"\\n"], [0, 1, 2])
    status = server.recv(8)
sys.exit(int(status) if status else 1)
"""
JOB_FORKS = JobForks(*STAGE_MODULES)


def listen(address: str) -> list[str]:
    """Fork for each connection; return a fork's arguments in the fork."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print(flush=True)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, files, *_ = socket.recv_fds(connection, 1 << 20, 3)
    while not request.endswith(b"\n"):
        request += connection.recv(1 << 20)
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    connection.close()
    arguments, folder, environment = json.loads(request)
    take_place(folder, environment, files)
    return arguments


def take_place(folder: str, environment: dict[str, str], files: list[int]) -> None:
    """Have the working folder, the environment and the standard files of what a fork stands for."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    first = [] if "PYTHONSAFEPATH" in environment else [""]
    sys.path[:1] = [*first, *filter(None, environment.get("PYTHONPATH", "").split(":"))]


def serve() -> list[str]:
    """Fork for each request, and say when the fork ends; return a fork's arguments in the fork."""
    for request in sys.stdin:
        pid = os.fork()
        if pid == 0:
            arguments, folder, environment, pipe = json.loads(request)
            output = os.open(pipe, os.O_WRONLY)
            take_place(folder, environment, [os.open(os.devnull, os.O_RDONLY), output, output])
            return arguments
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    sys.exit()


def run(option: str, command: str, *arguments: str) -> int:
    """Run a module or code with these arguments, as `python` would; return the exit status."""
    sys.argv[1:] = arguments
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
    address = sys.argv[1].removeprefix("--socket=")
    is_local = address != sys.argv[1]
    for name in sys.argv[1 + is_local :]:
        importlib.import_module(name)
    status = run(*(listen(address) if is_local else serve()))
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # without freeing all modules, which takes half a second
