"""Start and end tests that run in two processes."""

import os
import pathlib
import subprocess
import sys
import time

import torch.distributed


def leave() -> None:
    """End this process once all have arrived, without destroying the process group. On a busy
    machine gloo's threads sometimes abort the interpreter at its end."""
    torch.distributed.barrier()
    sys.stdout.flush()
    time.sleep(0.5)  # the others may still be reading the last message
    os._exit(0)


def run_two(code: str, folder: pathlib.Path) -> None:
    """Run the code in two processes, with this directory, the rank and a rendezvous file as
    arguments. Each must print "alike" and call leave()."""
    command = [sys.executable, "-c", code, os.path.dirname(__file__)]
    started = [
        subprocess.Popen([*command, str(rank), str(folder / "meet")], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    outputs = [p.communicate(timeout=240)[0].decode() for p in started]
    assert [p.returncode for p in started] == [0, 0] and all("alike" in o for o in outputs)
