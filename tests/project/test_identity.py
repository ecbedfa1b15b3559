"""What code a key stands for: definitions, not their layout, wherever they stand."""

import pytest

from apm.project.identity import code_version


def test_code_version_ignores_comments_docstrings_and_layout(tmp_path):
    def version(text: str) -> str:
        (tmp_path / "m.py").write_text(text)
        code_version.cache_clear()
        return code_version(("m",), tmp_path)

    plain = version('"""A."""\n\n\ndef f(x):\n    """B."""\n    return x + 1\n')
    assert version('"""Another."""\ndef f( x ):\n    # why\n\n    return (x + 1)\n') == plain
    assert version("def f(x):\n    return x + 2\n") != plain
    assert version("def f(x):\n    y = 'text'\n    return x + 1\n") != plain
    with pytest.raises(FileNotFoundError, match="no module 'gone'"):
        code_version(("gone",), tmp_path)
