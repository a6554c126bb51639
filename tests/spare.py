"""Run `python …` as a new process would, but with the libraries imported: spares seconds each.

    python spare.py ADDRESS              serve: import the libraries, fork a child for each request
    python -IS spare.py ADDRESS …        ask for a child; be its standard streams and its exit code

A child has folder, environment, arguments and standard streams of whoever asks, and no module of
this project: it imports these itself. What a library says while it is imported is not to be seen
in a child, nor what an environment does at that moment.
"""

import contextlib
import json
import os
import socket
import sys
import time

LIBRARIES = """
    alembic jinja2 joblib keras matplotlib.backends.backend_svg mlflow mlflow.keras mlflow.pyfunc
    mlflow.store.tracking.sqlalchemy_store numpy pandas pyarrow.parquet rich.console rich.live
    sklearn.metrics scipy.stats sqlalchemy sqlalchemy.orm tensorflow
"""


def ask(address: str, words: list[str]) -> int:
    """Let a child run `python WORDS`; return its exit code."""
    with socket.socket(socket.AF_UNIX) as to:
        while to.connect_ex(address):  # the libraries are not imported yet
            time.sleep(0.05)
        request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(to, [len(request).to_bytes(4, "big")], [0, 1, 2])
        to.sendall(request)
        return int(to.recv(16) or b"1")


def serve(address: str) -> None:
    """Fork a child for each request, until this process is ended."""
    import importlib
    import signal

    for name in LIBRARIES.split():
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        signal.signal(signal.SIGCHLD, bury)
        while True:
            asking, _ = listening.accept()
            if not os.fork():
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(asking)
            asking.close()


def bury(*_: object) -> None:
    """Wait for children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def answer(asking: socket.socket) -> None:
    """Run what is asked for in a child of this process, and send its exit code."""
    size, streams, *_ = socket.recv_fds(asking, 4, 3)
    with asking.makefile("rb") as content:
        words, folder, environment = json.loads(content.read(int.from_bytes(size, "big")))
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        asking.sendall(str(code if code >= 0 else 128 - code).encode())
        os._exit(0)
    asking.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    become(words)


def become(words: list[str]) -> None:
    """Run `-c CODE …`, `-m MODULE …` or `FILE …` as Python does, and end this process."""
    import atexit
    import runpy
    import threading
    import traceback

    code = 0
    try:
        if words[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *words[2:]], ""
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv, sys.path[0] = words[1:], os.getcwd()
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = words, os.path.dirname(os.path.realpath(words[0]))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[2:]:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
    serve(sys.argv[1])
