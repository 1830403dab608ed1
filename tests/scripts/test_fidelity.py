# SPDX-License-Identifier: GPL-2.0-only
"""The list of simplifications is complete and current."""

from virtmm.scripts import fidelity

TAG = "SIMPLIFIED: "


def test_the_list_is_current():
    assert fidelity.OUTPUT.read_text() == fidelity.render()


def test_no_simplification_is_missed():
    """Every line of the sources with the tag is in the list, but for strings of the program."""
    sources = [
        path
        for room in fidelity.ROOMS
        for path in (fidelity.TOP / room).rglob("*")
        if path.suffix in (".py", ".c", ".h", ".def") and not path.is_symlink()
    ]
    tagged = [line for path in sources for line in path.read_text().splitlines() if TAG in line]
    prose = [line for line in tagged if not set(line.partition(TAG)[0]) & set("\"'")]
    assert len(prose) >= 7
    assert fidelity.render().count("\n- `") == len(prose)


def test_a_paragraph_ends_where_its_text_does(tmp_path):
    source = tmp_path / "a.py"
    source.write_text(
        '"""\nWhat it is.\n\nSIMPLIFIED: one\ntwo.\n\nMore.\n"""\n'
        "    # Some words. SIMPLIFIED: three\n    # four.\n    code = 1\n"
        'TEXT = "SIMPLIFIED: not this"\n'
    )
    assert fidelity.paragraphs(source) == ["one two.", "three four."]
