"""Tests in two processes: how they start and how they end."""

import os
import pathlib
import subprocess
import sys
import time

import torch.distributed


def leave() -> None:
    """Ends this process once all have come here, without taking the process group down: on a busy
    machine gloo's threads now and then abort the interpreter as it ends."""
    torch.distributed.barrier()
    sys.stdout.flush()
    time.sleep(0.5)  # the others may still be reading the last message
    os._exit(0)


def run_two(code: str, folder: pathlib.Path) -> None:
    """Runs the code twice at once, with this directory, the rank and a file to meet in as
    arguments; each must print "alike" and leave()."""
    command = [sys.executable, "-c", code, os.path.dirname(__file__)]
    started = [
        subprocess.Popen([*command, str(rank), str(folder / "meet")], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    outputs = [p.communicate(timeout=240)[0].decode() for p in started]
    assert [p.returncode for p in started] == [0, 0] and all("alike" in o for o in outputs)
