"""Builds the compiled CPU kernels where a C++ compiler is at hand; everything else is declared in pyproject.toml.

Environment variables that it reads:

- CTLOSS_NATIVE: 0 leaves the kernels out; 1 makes a build that fails an error, which else leaves them out.
- CTLOSS_SANITIZE: 1 builds them to check every address and every operation that C++ leaves undefined.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# Through the link, so that a checkout and a source archive look alike.
FOLDER = "ctloss/kernels/native"
SOURCES = f"{FOLDER}/src"
FLAGS = ["-O3", "-std=gnu++17", "-fno-math-errno", "-fvisibility=hidden", "-pthread"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-DCTLOSS_SANITIZE"]
SANITIZERS += ["-O1", "-g", "-fno-omit-frame-pointer"]
# One by one, not as -march: these are what module.cpp asks the processor for.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
AVX512BF16 = [*AVX512, "-mavx512bf16"]


class BuildKernels(build_ext):
    """Compile one source once for every instruction set that the compiler knows."""

    def run(self) -> None:
        """Remove what an earlier build left behind: it would be installed if this one fails."""
        places = [Path(self.build_lib), Path()] if self.inplace else [Path(self.build_lib)]
        for place in places:
            for library in (place / FOLDER).glob("_kernels*.so"):
                library.unlink()
        super().run()

    def build_extension(self, extension: Extension) -> None:
        """Compile isa.cpp for each set, then the module around them, which is told which there are."""
        # Flags come from the environment, which no time stamp shows.
        self.force = True
        flags = FLAGS + (SANITIZERS if os.environ.get("CTLOSS_SANITIZE") == "1" else ["-g0"])
        sets: dict[str, list[str]] = {"portable": []}
        if self.plat_name.endswith(("x86_64", "amd64")):
            sets |= {"avx2": AVX2, "avx512": AVX512, "avx512bf16": AVX512BF16}

        def compiled(name: str) -> list[str]:
            return self.compiler.compile(
                [f"{SOURCES}/isa.cpp"],
                output_dir=os.path.join(self.build_temp, name),
                macros=[("CTLOSS_ISA", name)],
                extra_postargs=[*flags, *sets[name]],
            )

        objects: list[str] = []
        found: list[tuple[str, str | None]] = []
        # The compiler is a process, so threads suffice to run as many as there are processors.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            pending = {name: pool.submit(compiled, name) for name in sets}
        for name, outcome in pending.items():
            try:
                objects += outcome.result()
            except CompileError as error:
                if name == "portable":
                    raise
                self.warn(f"built without {name}, which the compiler does not know: {error}")
            else:
                found.append((f"CTLOSS_{name.upper()}", None))
        extension.extra_objects = objects
        extension.define_macros = found
        extension.extra_compile_args = flags
        extension.extra_link_args = [flag for flag in flags if flag.startswith(("-pthread", "-fsanitize"))]
        super().build_extension(extension)


# The kernels are written in the vector types of GCC and Clang, and for the stable ABI, which Python without a global
# lock does not have yet.
possible = sys.platform != "win32" and not sysconfig.get_config_var("Py_GIL_DISABLED")
wanted = os.environ.get("CTLOSS_NATIVE")
with_kernels = possible and wanted != "0"
kernels = Extension(
    "ctloss.kernels.native._kernels",
    [f"{SOURCES}/module.cpp", f"{SOURCES}/threads.cpp"],
    depends=[f"{SOURCES}/isa.cpp", *sorted(path.as_posix() for path in Path(SOURCES).glob("*.h"))],
    optional=wanted != "1",
    py_limited_api=True,
)
setup(
    ext_modules=[kernels] if with_kernels else [],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if with_kernels else {},
)
