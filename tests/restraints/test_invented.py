"""Both evaluators agree on restraints of any kind, in any crystal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bxmesh.restraints import TERMS, Evaluator, Status
from tests.restraints.backends import TorchEvaluator
from tests.restraints.invented import GROUPS, invented


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    atoms=st.integers(10, 30),
    group=st.sampled_from(sorted(GROUPS)),
    special=st.booleans(),
    isolated=st.booleans(),
    single=st.booleans(),
)
def test_evaluators_agree(
    seed: int, atoms: int, group: str, special: bool, isolated: bool, single: bool
) -> None:
    restraints, sites = invented(seed, atoms, group, special=special)
    batch = sites + np.random.default_rng(seed).normal(0, 0.5, (3, *sites.shape))
    if single:
        batch = batch.astype(np.float32)
    ours = Evaluator(restraints, isolated=isolated, threads=1)(batch, per_term=True)
    theirs = TorchEvaluator(restraints, isolated=isolated)(batch, per_term=True)
    assert theirs.statuses == ours.statuses == (Status.OK,) * 3
    digits = 1e-4 if single else 1e-9
    np.testing.assert_allclose(theirs.energies, ours.energies, rtol=digits)
    for name in TERMS:
        energies, gradients = ours.terms[name], ours.term_gradients[name]
        few = digits * max(1.0, energies.max())
        np.testing.assert_allclose(
            theirs.terms[name], energies, rtol=digits, atol=few, err_msg=name
        )
        # A plane nearly in line turns with the last digits of its atoms.
        loss = 500 if single and name == "parallelity" else 10
        few = loss * digits * max(1.0, np.abs(gradients).max())
        np.testing.assert_allclose(
            theirs.term_gradients[name], gradients, rtol=0, atol=few, err_msg=name
        )


@pytest.mark.parametrize("name", TERMS)
def test_every_term_is_there(name: str) -> None:
    restraints, sites = invented(0)
    assert Evaluator(restraints)(sites).terms[name][0] > 0
