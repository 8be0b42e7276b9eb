"""Files of training: whole or not at all."""

import pytest

from evaluation.files import replaced, write_text


class Killed(BaseException):
    """The process is gone."""


def test_a_file_is_what_it_was_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "folder" / "plans.json"
    write_text(path, "before ä")

    def half(part):
        part.write_text("af")
        assert path.read_text(encoding="utf-8") == "before ä"
        raise Killed

    with pytest.raises(Killed):
        replaced(path, half)
    assert path.read_text(encoding="utf-8") == "before ä"
    write_text(path, "after")
    assert path.read_text() == "after" and [p.name for p in path.parent.iterdir()] == ["plans.json"]
