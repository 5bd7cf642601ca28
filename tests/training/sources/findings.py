"""What is found in a set, as the tests of sources ask for it."""

from training.evaluation.inspection import inspect
from training.sources import open_source
from training.sources.checks import Finding, Kind

WATCHED = (Kind.ALIKE, Kind.BEYOND, Kind.GROUP, Kind.NO_OBJECTS)  # remarks


def found(spec: str) -> dict[Kind, list[str]]:
    """Inspect a set; return the names of what is found, by kind."""
    inspection = inspect(lambda report: open_source(spec, report))
    kinds: dict[Kind, list[str]] = {}
    for (_, kind), ones in inspection.findings.items():
        kinds.setdefault(kind, []).extend(one.name for one in ones)
    return {kind: names for kind, names in kinds.items() if kind.fault or kind in WATCHED}


def read(spec: str) -> dict:
    source = open_source(spec, lambda finding: None)
    return {record.image_id: record for split in source.splits for record in source.records(split)}


def said(spec: str) -> list[str]:
    """Read a set; return what a run says of its faults and duplicates, in a line each."""
    findings: list[Finding] = []
    source = open_source(spec, findings.append)
    for split in source.splits:
        for _ in source.records(split):
            pass
    return [str(one) for one in findings if one.kind.fault or one.kind is Kind.DUPLICATE]
