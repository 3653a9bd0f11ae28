import json
import os
import pathlib
import threading
import time
from collections import Counter

# The cache of compiled graphs does not notice that an op was rebuilt.
os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = "0"
os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"

import pytest
import torch

# Processor seconds per file; `pytest --store-seconds` rewrites them.
SECONDS = pathlib.Path(__file__).with_name("seconds.json")


@pytest.fixture(autouse=True)
def fixed_threads():
    torch.set_num_threads(2)
    torch.manual_seed(0)


def pytest_addoption(parser):
    parser.addoption("--store-seconds", action="store_true", help="write tests/python/seconds.json")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    """Run quick files first, and show progress."""
    if not torch.cuda.is_available():
        no_gpu = pytest.mark.skip(reason="needs a GPU, and this machine has none")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(no_gpu)
    expected = json.loads(SECONDS.read_text())
    items.sort(key=lambda item: order_of(item, expected))
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not config.option.collectonly:
        config.pluginmanager.register(Progress(reporter, items, expected), "progress")


def processor_seconds():
    """Return the processor time of this process and its finished children, which a busy machine
    hardly affects."""
    return sum(os.times()[:4])


def order_of(item, expected):
    """Return what tests are sorted by: accuracies last, then the seconds of their file."""
    return "accuracy" in item.keywords, expected.get(item.path.name, 10), item.path.name


class Progress:
    """Prints each file as it begins, the time so far and left, and tests that take long."""

    def __init__(self, reporter, items, expected):
        self.reporter, self.expected = reporter, expected
        self.tests = Counter(item.path.name for item in items)
        self.order = list(self.tests)
        self.start, self.began = time.monotonic(), processor_seconds()
        self.file, self.test, self.seconds = "", "", Counter()
        self.out = open(os.dup(1), "w")  # noqa: SIM115  (while a test runs, 1 is captured)
        self.ended = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def say(self, text):
        if len(self.order) > 1:  # for a run of several files
            self.reporter.ensure_newline()
            self.reporter.write_line(text)
            self.reporter.currentfspath = -2  # makes ensure_newline notice the dots that follow

    def pytest_runtest_logstart(self, nodeid, location):
        path, _, self.test = nodeid.partition("::")
        file = pathlib.Path(path).name
        if file != self.file:
            self.end_file(file)
            number = self.order.index(file)
            done, left = (
                sum(self.expected.get(name, 10) for name in part)
                for part in (self.order[:number], self.order[number:])
            )
            times, passed = "", (time.monotonic() - self.start) / 60
            if passed > 0.2:
                rest = passed * left / max(done, 1)
                times = f"; {passed:.0f} min so far, about {rest:.0f} min left"
            self.say(f"[{number + 1}/{len(self.order)}] {file}, {self.tests[file]} tests{times}")

    def end_file(self, following):
        now = processor_seconds()
        self.seconds[self.file] = now - self.began
        self.file, self.began = following, now

    def watch(self):
        """Print the name of a test that has run for half a minute."""
        before = ""
        while not self.ended.wait(30):
            if self.test == before and len(self.order) > 1:
                print(f"\n  at {self.file}::{self.test}", file=self.out, flush=True)
            before = self.test

    def pytest_sessionfinish(self, session):
        self.ended.set()
        self.out.close()
        self.end_file("")
        if session.config.option.store_seconds:
            known = self.expected | {k: round(v, 1) for k, v in self.seconds.items() if k}
            SECONDS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
