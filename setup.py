"""Drives the CMake build; everything else is in pyproject.toml."""

import os
import pathlib
import shutil
import subprocess
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "tools"))
import progress  # noqa: E402


def jobs() -> int:
    """One for each core, as long as each has 3 GiB of memory."""
    free = 3
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) >> 20
    return max(1, int(os.environ.get("MAX_JOBS", min(os.cpu_count() or 1, free // 3))))


class CMakeBuild(build_ext):
    """Builds with CMake, then installs into the package: the source's own where editable."""

    def run(self) -> None:
        # setuptools clears inplace while it builds, and copies to the source afterwards.
        self.into_source = bool(self.inplace or getattr(self, "editable_mode", False))
        super().run()

    def build_extension(self, ext: Extension) -> None:
        cmake = shutil.which("cmake") or "cmake"
        build = pathlib.Path(os.environ.get("BITPARE_BUILD_DIR", ROOT / "build" / "package"))
        target = ROOT / "python" if self.into_source else pathlib.Path(self.build_lib).resolve()
        configure = [cmake, "-S", ROOT, "-B", build, f"-DBITPARE_PYTHON={sys.executable}"]
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        configure.append(f"-DBITPARE_CUDA={os.environ.get('BITPARE_CUDA', 'AUTO')}")
        said = subprocess.run(configure, check=True, stdout=subprocess.PIPE, text=True).stdout
        for line in said.splitlines():
            if line.startswith("-- bitpare:"):
                print(line.removeprefix("-- "), flush=True)
        if status := progress.build(cmake, build, jobs()):
            sys.exit(status)
        install = [cmake, "--install", build, "--prefix", target / "bitpare"]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)

    def copy_extensions_to_source(self) -> None:
        """Nothing to copy: an editable build was installed into the source by CMake."""

    def get_outputs(self) -> list[str]:
        package = pathlib.Path(self.build_lib) / "bitpare"
        return [str(p) for p in (*package.glob("*.so"), package / "_build_info.py")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(ext_modules=[Extension("bitpare._C", [])], cmdclass={"build_ext": CMakeBuild})
