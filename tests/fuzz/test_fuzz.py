"""A short run of every fuzz target, the same each time; ``python -m tests.fuzz`` runs one for as long as wanted."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS, corpus

EXAMPLES = {"layer": 300, "layer_made": 500, "datagram": 300}
USUAL = 1000
targets = pytest.mark.parametrize("name", TARGETS)


@targets
def test_kept_inputs(name: str) -> None:
    """What was interesting once is taken without a finding."""
    kept = corpus(name)
    assert kept, f"the corpus has no input for {name}"
    for path in kept:
        TARGETS[name](path.read_bytes())


@targets
def test_short_run(name: str) -> None:
    """Neither mutated inputs of the corpus nor bytes out of nothing make a finding."""
    seeds = [path.read_bytes() for path in corpus(name)]
    mutations = st.binary(min_size=4, max_size=40)
    inputs = st.binary(max_size=300) | st.builds(mutated, st.sampled_from(seeds), mutations, st.sampled_from(seeds))

    @settings(
        max_examples=EXAMPLES.get(name, USUAL),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()
