"""Extension modules, where they can be built; everything else is in pyproject.toml.

Each ``csrc/NAME.pyx`` becomes the module ``fastdl.NAME``. fastdl runs without them, so nothing here may stop an
installation: without Cython they are left out, and without a compiler that works setuptools says so and carries on.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup


def extensions():
    sources = sorted(Path("csrc").glob("*.pyx"))  # relative: setuptools accepts nothing else
    if not sources:
        return []
    try:
        from Cython.Build import cythonize
    except ImportError:
        print("fastdl: no Cython, so the extension modules are left out", file=sys.stderr)
        return []
    made = [
        Extension(
            f"fastdl.{source.stem}",
            [source.as_posix()],
            include_dirs=["csrc"],
            depends=[header.as_posix() for header in sorted(Path("csrc").glob("*.h"))],
            extra_compile_args=[] if sys.platform == "win32" else ["-O3"],
        )
        for source in sources
    ]
    made = cythonize(made, build_dir="build", language_level=3)
    for extension in made:
        extension.optional = True  # said here, as cythonize forgets it
    return made


setup(ext_modules=extensions())
