"""Other packages add things by an entry point; a file name is a thing's name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from guerdon import discover
from guerdon.errors import UnknownName

PROVIDER = """
from guerdon.interfaces import Provider
from guerdon.records import Rater, Reply

class Praise(Provider):
    rater = Rater("praise", "")

    async def ask(self, request, *, repeat=0):
        return Reply(request.answer.render([10] * request.answer.n) if hasattr(request.answer, "render") else "good")
"""
METHOD = """
from guerdon.methods.rg_vlm import RgVlm
from guerdon.interfaces import Method

class Twice(Method):
    name, version, scale = "twice", "1", (0.0, 10.0)

    def __init__(self):
        self._inner = RgVlm()

    def next(self, sample, exchanges):
        return self._inner.next(sample, exchanges)

    def read(self, transcript):
        return self._inner.read(transcript)
"""


@pytest.fixture
def outside_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package beside ours that adds a provider and a method."""
    package = tmp_path / "outside"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "praise.py").write_text(PROVIDER)
    (package / "twice.py").write_text(METHOD)
    metadata = tmp_path / "outside-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[guerdon.providers]\npraise = outside.praise\n[guerdon.methods]\ntwice = outside.twice\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("outside", "outside.praise", "outside.twice"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("outside_package")
def test_an_outside_package_adds_a_provider_and_a_method(tmp_path: Path) -> None:
    import guerdon

    assert "praise" in discover.names("providers")
    assert "twice" in discover.names("methods")
    guerdon.collect_babyai(out=tmp_path / "data", tasks=1, demonstrations=1, lengths=(1, 1))
    labelled = guerdon.label(dataset=tmp_path / "data", run=tmp_path / "run", vlm=("praise",), method="twice", quiet=True)
    assert {label.value for label in labelled.labels.labels} == {10.0}
    assert labelled.labels.metadata["method"] == "twice"


def test_names_need_no_import_and_unknown_ones_list_the_rest() -> None:
    assert {"rg-vlm"} <= set(discover.names("methods"))
    assert {"scripted", "chat", "replay"} <= set(discover.names("providers"))
    with pytest.raises(UnknownName, match=r"no dataset 'hdf6'; there are: .*minari"):
        discover.load("datasets", "hdf6")


@pytest.mark.parametrize(("kind", "interface"), discover.KINDS.items())
def test_every_file_of_a_kind_defines_one_thing(kind: str, interface: type) -> None:
    for name in discover.names(kind):
        assert issubclass(discover.load(kind, name), interface)
