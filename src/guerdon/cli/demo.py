"""Do all of it once, small: demonstrations, labels, rewards, policies, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from guerdon import discover
from guerdon.cli import _show
from guerdon.cli._parse import all_chosen, parse
from guerdon.recipes import demo, label, raters

_NO_EVIDENCE = {
    "embedded": "the package's own small model, trained on simulator labels of other such worlds: no evidence about general models",
    "scripted": "a script that answers from the simulator's ground truth, with mistakes: no evidence about any real model",
}


def main(arguments: Sequence[str]) -> int:
    """`guerdon demo`, or `guerdon demo --vlm google:MODEL`."""
    specs = all_chosen("vlm", arguments, demo.Config.vlm)
    providers = dict.fromkeys(raters.provider_of(spec) for spec in specs)
    things = {name: discover.load("providers", name) for name in providers}
    sections = {"_settings": demo.Config} | {name: thing.Config for name, thing in things.items() if hasattr(thing, "Config")}
    parsed = parse("demo", __doc__ or "", sections, arguments)
    began = time.monotonic()
    rater_settings = label.chosen_settings({name: parsed[name] for name in providers if name in parsed})
    done = demo.demo.of(replace(parsed["_settings"], rater_settings=rater_settings))
    _show.returns(done.rows)
    print(f"rater: {done.labelled.labels.metadata['rater']}")
    for provider in sorted(_NO_EVIDENCE.keys() & providers.keys()):
        print(f"       ({_NO_EVIDENCE[provider]})")
    print(f"report: {done.report.resolve()}\ntotal:  {time.monotonic() - began:.0f} s")
    return 0
