"""What ``from warmroute import ...`` promises."""

from __future__ import annotations

import subprocess
import sys

import pytest

import warmroute


def test_every_public_name_can_be_imported() -> None:
    assert {name: getattr(warmroute, name) for name in warmroute.__all__}


def test_the_types_of_a_strategy_are_those_of_the_router() -> None:
    from warmroute.request.inference import InferenceRequest
    from warmroute.routing.strategies import Candidate

    assert (warmroute.Candidate, warmroute.InferenceRequest) == (Candidate, InferenceRequest)


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="Router"):
        _ = warmroute.Router


@pytest.mark.integration
def test_importing_the_package_imports_no_part_of_it() -> None:
    program = "import sys, warmroute; print(*sorted(name for name in sys.modules if name.startswith('warmroute.')))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
