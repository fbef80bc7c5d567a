"""The report: a thin view of what a run recorded.

`guerdon.report` is this package and also the command of the same name: once the package has been imported, Python finds it where the
command was. So calling the package carries out the command.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from guerdon.report.build import build

__all__ = ["build"]


class _Callable(ModuleType):
    def __call__(self, **settings: Any) -> Any:
        return import_module("guerdon").__getattr__("report")(**settings)


sys.modules[__name__].__class__ = _Callable
