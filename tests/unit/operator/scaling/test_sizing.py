import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.scaling.sizing import replicas_for


@pytest.mark.parametrize(
    ("load", "replicas"),
    [(0.001, 1), (0.44, 1), (0.46, 2), (1.36, 2), (1.4, 3), (2.34, 3), (2.4, 4), (9.3, 10), (9.35, 11), (50.0, 40)],
)
def test_worked_numbers(load: float, replicas: int):
    assert replicas_for(load, 0.1, 0.4, 0.05, 40) == replicas


@given(st.floats(0.001, 50), st.floats(0.001, 10), st.floats(0.001, 1), st.floats(0.001, 1), st.floats(0.01, 0.5))
def test_more_load_never_needs_fewer(load: float, more: float, service: float, longest: float, late: float):
    few, many = (replicas_for(each, service, longest, late, 100) for each in (load, load + more))
    assert few <= many
    assert few > load


@given(st.floats(0.001, 20), st.floats(0.001, 1), st.floats(0.001, 1))
def test_a_stricter_objective_never_needs_fewer(load: float, service: float, longest: float):
    counts = [replicas_for(load, service, longest, late, 100) for late in (0.5, 0.1, 0.01)]
    assert counts == sorted(counts)
