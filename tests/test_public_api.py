from __future__ import annotations

import pytest

import akd_deploy


def test_every_public_name_is_there() -> None:
    for name in akd_deploy.__all__:
        assert getattr(akd_deploy, name) is not None


def test_public_names_are_told_in_one_way_only() -> None:
    assert sorted([*akd_deploy._HOME_OF, "__version__"]) == sorted(akd_deploy.__all__) == sorted(dir(akd_deploy))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        akd_deploy.nonsense  # noqa: B018
