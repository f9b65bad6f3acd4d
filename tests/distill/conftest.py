"""What every test of distillation starts from."""

import pytest
from small_bed import small_split

from akd_deploy.data import ViewBank, ViewSettings


@pytest.fixture
def views() -> ViewBank:
    return ViewBank(small_split(), ViewSettings(views=2, noise=0.3, shift=1), seed=0)
