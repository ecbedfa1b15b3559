"""The kernel that notebooks run in: of this very Python, and deaf to what shell, Jupyter, IPython and matplotlib are set to here, so
that a notebook gives the same bytes for everybody. JupyterLab starts its own kernels, with all that their user has."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

PACKAGE = str(Path(__file__).resolve().parents[2])  # the folder that holds this package
# this package, wherever another is installed; but no other file beside it is taken for a library
START = "import sys; sys.path.insert(0, {0!r}); import apm; sys.path.append(sys.path.pop(0)); "
START += "from apm.project.kernel import main; main()"
# variables that change what these libraries compute, show or import; TORCH_HOME says where weights are
FOREIGN = ("PYTHON", "IPYTHON", "TORCH_", "NVIDIA_TF32", "PANDAS_", "NPY_", "NUMPY_", "SCIPY_", "SKLEARN_", "PYDEVD_")


def environment() -> dict[str, str]:
    """The environment of a kernel: this one, without what could change a result."""
    own = {name: value for name, value in os.environ.items() if name == "TORCH_HOME" or not name.startswith(FOREIGN)}
    own |= {"PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}
    own |= {"MATPLOTLIBRC": os.devnull, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    return own | {"APM_RUN": "1", "APM_PROGRESS": os.environ.get("APM_PROGRESS", _terminal())}


def _terminal() -> str:
    """A path through which a kernel can write to the standard error of this process; "" where there is none."""
    if sys.stderr.isatty():
        return os.ttyname(sys.stderr.fileno())
    own = Path(f"/proc/{os.getpid()}/fd/2")
    return str(own) if own.exists() else ""


class Manager(AsyncKernelManager):
    """Starts `main` whatever kernels Jupyter knows."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-c", START.format(PACKAGE), "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3 (ipykernel)", language="python")

    async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
        handle, self.connection_file = tempfile.mkstemp(prefix="apm-kernel-", suffix=".json")
        os.close(handle)
        await super().start_kernel(**options, env=environment())


def main() -> None:
    """Be the kernel."""
    from ipykernel.kernelapp import IPKernelApp

    # no settings and startup files: not the user's, nor the machine's
    IPKernelApp.load_config_file = IPKernelApp._run_startup_files = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    # jupyter_client interrupts a kernel before it ends it, also one that has done all its work
    logging.getLogger("IPKernelApp").addFilter(lambda line: "KeyboardInterrupt" not in line.getMessage())
    with tempfile.TemporaryDirectory(prefix="apm-kernel-") as folder:
        os.environ["IPYTHONDIR"] = folder
        with contextlib.chdir(folder):  # at its import matplotlib reads settings, those in the working directory first
            import matplotlib  # noqa: F401
        IPKernelApp.launch_instance()
