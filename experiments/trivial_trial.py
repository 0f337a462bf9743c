"""An evaluation that costs nothing, for benchmarks of what is around it. Imports little, so that workers start soon."""

from landscapes import Landscape

from nasplat.core.architecture import Architecture
from nasplat.search.records import OnProgress, Record, TrialSpec

SPACE = Landscape("wide", 0)


def trivial(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """Nothing but an answer."""
    return Record("complete", SPACE.mean(Architecture.from_json(spec.architecture)))
