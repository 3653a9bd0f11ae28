"""Show the progress of a long command: in one changing line on a terminal, or in a line every ten
seconds in a log. setup.py compiles with it.

python tools/progress.py build FOLDER JOBS     compiles a folder that CMake configured
python tools/progress.py run TITLE COMMAND...  shows the progress of pip or another command
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
from collections.abc import Iterator

# Seconds to compile a file on one core, measured with GCC 12 and nvcc 13. Other files take one
# second.
SECONDS = {
    "cmake_pch": 24, "csrc/ops": 11, "csrc/kernels/cuda": 8, "csrc/module": 8, "csrc/integer": 7,
    "csrc/kernels/cpu": 2,
}  # fmt: skip


def spoken(seconds: float) -> str:
    """Format a duration for people."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


class Display:
    """A status line. A log gets a new one from time to time."""

    every = 10.0  # seconds

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.start = self.last = time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def state(self, text: str) -> None:
        if self.terminal:
            print(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        elif time.monotonic() - self.last >= self.every:
            self.line(text)
            self.last = time.monotonic()

    def line(self, text: str) -> None:
        """Print a line that stays."""
        print(f"\r\x1b[K{text}" if self.terminal else text, flush=True)


def lines_of(command: list[str], ended: list[int]) -> Iterator[str | None]:
    """Yield the lines that a command prints, and None each second. `ended` gets its exit status."""
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
        except KeyboardInterrupt:
            process.wait()  # it was interrupted too
            raise SystemExit("\nstopped; run the same command to continue") from None
    ended.append(process.wait())


def build(cmake: str, folder: pathlib.Path, jobs: int) -> int:
    """Compile a folder that CMake configured, and return CMake's exit status. Show warnings and
    errors at once."""
    display, ended, state = Display(), list[int](), ""
    expected = missing(folder)
    whole = sum(expected.values())
    if whole / jobs > 30:
        files = f"compiling {len(expected)} files, {jobs} at a time"
        display.line(f"{files}: about {spoken(whole / jobs)}, less where a compiler cache has them")
    for line in lines_of([cmake, "--build", str(folder), "-j", str(jobs)], ended):
        step = re.match(r"\[([1-9]\d*)/(\d+)\] .*?(\S+)$", line or "")
        if step:
            expected.pop(step[3], None)
            left = sum(expected.values()) or int(step[2]) - int(step[1])
            seconds = left * display.elapsed() / max(whole - left, int(step[1]))
            source = "/".join(pathlib.Path(step[3]).with_suffix("").parts[-2:])
            done = f"compiled {step[1]} of {step[2]} files"
            state = f"{done}, about {spoken(seconds)} left ({source})"
        elif line and not line.startswith(("ninja: ", "[")):
            display.line(line.rstrip("\n"))
        if state:
            display.state(state)
    if state and not ended[0]:
        display.line(f"compiled in {spoken(display.elapsed())}")
    return ended[0]


def missing(folder: pathlib.Path) -> dict[str, float]:
    """Return the missing object files, as ninja names them, each with its compile time in
    seconds."""
    found = {}
    commands = folder / "compile_commands.json"
    for command in json.loads(commands.read_text()) if commands.exists() else []:
        output = pathlib.Path(command["directory"], command["output"])
        if not output.exists():
            name = output.relative_to(folder.resolve()).as_posix()
            found[name] = next((s for part, s in SECONDS.items() if part in name), 1.0)
    return found


WORTH_SAYING = re.compile(r"\s*(Downloading|Installing|Setting up|Unpacking) ")


def several(match: re.Match[str]) -> str:
    return f"unpacking {match[1].count(',') + 1} packages"


def run(title: str, command: list[str]) -> int:
    """Show the last meaningful line of a command, and its whole output if it fails."""
    display, ended, printed, state = Display(), list[int](), list[str](), ""
    display.line(title)
    for line in lines_of(command, ended):
        if line is not None:
            printed.append(line)
            if WORTH_SAYING.match(line):
                state = re.sub(r"Installing .*: (.*)", several, line.strip())
        if state:
            display.state(f"  {state} ({spoken(display.elapsed())} so far)")
    if ended[0]:
        display.line("".join(printed))
    elif display.terminal or display.elapsed() > 10:
        display.line(f"  done in {spoken(display.elapsed())}")
    return ended[0]


def main(kind: str, first: str, *rest: str) -> int:
    if kind == "build":
        return build(shutil.which("cmake") or "cmake", pathlib.Path(first), int(rest[0]))
    return run(first, list(rest))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
