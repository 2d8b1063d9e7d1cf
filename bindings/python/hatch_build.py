"""Names a wheel's platform where it holds the library; without it, the wheel is for all. Builds nothing."""

import os
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class LibraryHook(BuildHookInterface):
    def initialize(self, version, build_data):
        if not (Path(self.root) / "libapa/lib/libapa.so").exists():
            return
        platform = os.environ.get("APA_WHEEL_PLATFORM") or sysconfig.get_platform()
        build_data["pure_python"] = False
        # Any Python: the library is loaded by ctypes and knows nothing of it.
        build_data["tag"] = f"py3-none-{platform.replace('-', '_').replace('.', '_')}"
