"""Says how far a long command is while it runs: in one line that changes on a terminal, in a line
every ten seconds in a log. setup.py compiles through it, and:

python tools/progress.py build FOLDER JOBS     compiles a folder that CMake configured
python tools/progress.py run TITLE COMMAND...  shows what pip or another command is at
"""

import json
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

# Seconds that a file takes on one core, measured with GCC 12 and nvcc 13; others take a second.
SECONDS = {
    "cmake_pch": 24, "csrc/ops": 11, "csrc/kernels/cuda": 8, "csrc/module": 8, "csrc/integer": 7,
    "csrc/kernels/cpu": 2,
}  # fmt: skip


def spoken(seconds: float) -> str:
    """A duration as one says it."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


class Display:
    """One line of state. A log gets it when ten seconds have passed since the last."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.start = self.last = time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def state(self, text: str) -> None:
        if self.terminal:
            print(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        elif time.monotonic() - self.last >= 10:
            self.line(text)
            self.last = time.monotonic()

    def line(self, text: str) -> None:
        """Print a line that stays."""
        print(f"\r\x1b[K{text}" if self.terminal else text, flush=True)


def lines_of(command: list[str], ended: list[int]) -> Iterator[str | None]:
    """Yield the lines that a command prints, and None each second; its exit status goes to `ended`."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=lambda: [*map(lines.put, process.stdout)], daemon=True)
    reader.start()
    while reader.is_alive() or not lines.empty():
        try:
            yield lines.get(timeout=1)
        except queue.Empty:
            yield None
    ended.append(process.wait())


def build(cmake: str, folder: pathlib.Path, jobs: int) -> int:
    """Compile; returns CMake's exit status. Warnings and errors are shown as they come."""
    display, ended = Display(), list[int]()
    weights = missing(folder)
    whole, state = sum(weights.values()), ""
    if whole > 60:
        about = spoken(whole / jobs)
        display.line(f"compiling {len(weights)} files, {jobs} at a time: about {about}, less where "
                     "a compiler cache has them")  # fmt: skip
    for line in lines_of([cmake, "--build", str(folder), "-j", str(jobs)], ended):
        step = re.match(r"\[(\d+)/(\d+)\] (.*)", line or "")
        if step:
            done, total = int(step[1]), int(step[2])
            name = step[3].rsplit(" ", 1)[-1].rstrip("\n")
            weights.pop(name, None)
            left = sum(weights.values()) if whole else (total - done) * 1.0
            passed = (whole - left) if whole else done * 1.0
            rest = left * display.elapsed() / max(passed, 1e-3)
            source = "/".join(pathlib.Path(name).with_suffix("").parts[-2:])
            state = f"compiled {done} of {total} files, about {spoken(rest)} left ({source})"
        elif line is not None and not line.startswith(("ninja: ", "[")):
            display.line(line.rstrip("\n"))
        if state:
            display.state(state)
    if state and not ended[0]:
        display.line(f"compiled {total} files in {spoken(display.elapsed())}")
    return ended[0]


def missing(folder: pathlib.Path) -> dict[str, float]:
    """Return the object files that are not there yet, as ninja names them, each with the seconds
    that it takes."""
    found = {}
    commands = folder / "compile_commands.json"
    for command in json.loads(commands.read_text()) if commands.exists() else []:
        output = pathlib.Path(command["directory"], command["output"])
        if not output.exists():
            name = output.relative_to(folder.resolve()).as_posix()
            found[name] = next((s for part, s in SECONDS.items() if part in name), 1.0)
    return found


def several(match: re.Match[str]) -> str:
    return f"unpacking {match[1].count(',') + 1} packages"


def run(title: str, command: list[str], shown: Callable[[str], bool]) -> int:
    """Show the last line of a command that matters; all it printed where it fails."""
    display, ended, printed, state = Display(), list[int](), list[str](), ""
    display.line(title)
    for line in lines_of(command, ended):
        if line is not None:
            printed.append(line)
            state = line.strip() if shown(line) else state
            state = re.sub(r"Installing .*: (.*)", several, state)
        if state:
            display.state(f"  {state} ({spoken(display.elapsed())} so far)")
    if ended[0]:
        display.line("".join(printed))
    elif display.terminal or display.elapsed() > 10:
        display.line(f"  done in {spoken(display.elapsed())}")
    return ended[0]


def main(arguments: list[str]) -> int:
    kind, first, *rest = arguments
    try:
        if kind == "build":
            return build(shutil.which("cmake") or "cmake", pathlib.Path(first), int(rest[0]))
        return run(
            first, rest, re.compile(r"\s*(Downloading|Installing|Setting up|Unpacking)").match
        )
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
