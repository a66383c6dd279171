"""The YAML writer, read back by PyYAML."""

from __future__ import annotations

import yaml as pyyaml
from hypothesis import given
from hypothesis import strategies as st
from optserve.export.deploy import yaml

_TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["yes", "null", "~", "1e3", "0x1", "2024-01-01", "a: b", "- a"]),
    st.lists(st.text("ab #:-", max_size=6), max_size=4).map(
        lambda x: "\n".join(x) + "\n"
    ),
)
_VALUES = st.recursive(
    st.one_of(_TEXT, st.integers(), st.booleans(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(_TEXT, inner, max_size=3)
    ),
    max_leaves=12,
)


@given(_VALUES)
def test_yaml_reads_back(value):
    assert pyyaml.safe_load(yaml.dump(value)) == value


def test_several_documents():
    documents = [{"a": 1}, {"b": ["c", {"d": "e\nf\n"}]}]
    assert list(pyyaml.safe_load_all(yaml.dump_all(documents))) == documents
