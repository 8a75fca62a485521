"""Builds the compiled CPU kernels where a C++ compiler is at hand; everything else is declared in pyproject.toml.

CTLOSS_NATIVE=0 leaves them out. CTLOSS_SANITIZE=1 builds them to check every address and every undefined operation.
"""

import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# Through the link, so that a checkout and a source archive look alike.
FOLDER = "ctloss/kernels/native"
X86 = ("x86_64", "amd64")
AVX512 = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
INSTRUCTION_SETS = {"avx2": ["-march=x86-64-v3"], "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16"]}
FLAGS = ["-O3", "-std=gnu++17", "-fno-math-errno", "-fvisibility=hidden", "-pthread"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]


class BuildKernels(build_ext):
    """Compile one source once for every instruction set that the compiler knows."""

    def build_extension(self, extension):
        flags = FLAGS + (SANITIZERS if os.environ.get("CTLOSS_SANITIZE") == "1" else [])
        extension.extra_compile_args = flags
        extension.extra_link_args = [flag for flag in flags if flag.startswith(("-pthread", "-fsanitize"))]
        wanted = INSTRUCTION_SETS if platform.machine().lower() in X86 else {}
        for name, options in {"portable": [], **wanted}.items():
            try:
                extension.extra_objects += self.compiler.compile(
                    [f"{FOLDER}/isa.cpp"],
                    output_dir=os.path.join(self.build_temp, name),
                    macros=[("CTLOSS_ISA", name)],
                    extra_postargs=[*flags, *options],
                )
            except CompileError:
                if name == "portable":
                    raise
            else:
                extension.define_macros.append((f"CTLOSS_{name.upper()}", None))
        super().build_extension(extension)


kernels = Extension(
    "ctloss.kernels.native._kernels",
    [f"{FOLDER}/module.cpp", f"{FOLDER}/threads.cpp"],
    depends=sorted(path.as_posix() for path in Path(FOLDER).glob("*.h")) + [f"{FOLDER}/isa.cpp"],
    optional=True,
    py_limited_api=True,
)
with_kernels = os.environ.get("CTLOSS_NATIVE") != "0"
setup(
    ext_modules=[kernels] if with_kernels else [],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if with_kernels else {},
)
