"""The models' page says of every option what becomes of it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from optserve import models
from optserve.models.config import HUB_OPTIONS
from optserve.models.generation.config import GenerationConfig
from optserve.models.generation.plan import NEEDLESS as NEEDLESS_IN_GENERATE
from optserve.models.generation.plan import NOT_FOLLOWED
from optserve.models.pretrained import NEEDLESS

PAGE = Path(models.__file__).with_name("README.md").read_text()
FIELDS = [f.name for f in fields(GenerationConfig) if f.name != "extra"]


@pytest.mark.parametrize(
    "names",
    [NEEDLESS, HUB_OPTIONS, FIELDS, NOT_FOLLOWED, NEEDLESS_IN_GENERATE],
    ids=["from_pretrained, ignored", "hub", "generation", "refused", "needless"],
)
def test_the_page_names_every_option(names):
    assert [name for name in names if f"`{name}`" not in PAGE] == []
