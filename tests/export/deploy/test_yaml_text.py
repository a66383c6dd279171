"""What PyYAML is told: shared values are repeated, scripts stay readable."""

from __future__ import annotations

import yaml
from optserve.export.deploy.yaml_text import yaml_text

LABELS = {"app": "opt"}
SCRIPT = "#!/bin/bash\nif true; then\n  echo 'a: b'\nfi\n"


def test_it_reads_back_in_order():
    document = {"z": 1, "a": ["yes", "1e3", "2024-01-01", "a: b", "", "null", None]}
    text = yaml_text(document)
    assert yaml.safe_load(text) == document
    assert text.index("z:") < text.index("a:")


def test_values_that_two_objects_share_are_written_twice():
    text = yaml_text({"metadata": LABELS, "selector": LABELS})
    assert "&" not in text and "*" not in text
    assert text.count("app: opt") == 2


def test_a_script_is_a_block_that_people_can_read():
    text = yaml_text({"script": SCRIPT})
    assert text.startswith("script: |\n  #!/bin/bash\n")
    assert yaml.safe_load(text)["script"] == SCRIPT


def test_long_lines_are_not_folded():
    command = " ".join(["word"] * 100)
    assert command in yaml_text({"command": command})


def test_several_documents():
    documents = [{"a": 1}, {"b": ["c"]}]
    assert list(yaml.safe_load_all(yaml_text(*documents))) == documents
