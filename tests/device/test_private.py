"""Where code that will be run may lie: nowhere that another user could change it."""

import os
from pathlib import Path

import pytest

from ncsn_fast.device.private import make_private_folder, why_not_private

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX has owners and modes")
OTHER = 54321  # a user that is not there

as_root = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away"
)


@pytest.fixture
def place(tmp_path):
    """A library in two folders."""
    path = tmp_path / "cache" / "native" / "library.so"
    make_private_folder(path.parent)
    path.touch(0o600)
    assert why_not_private(path) is None
    return path


def test_folders_are_made_for_this_user_alone(place):
    os.umask(before := os.umask(0))
    os.umask(0)
    try:
        make_private_folder(place.parent / "a" / "b")
        make_private_folder(place.parent / "a" / "b")
    finally:
        os.umask(before)
    for folder in ("a", "a/b"):
        assert (place.parent / folder).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o707, 0o1777, 0o702])
@pytest.mark.parametrize("level", [0, 1])
def test_what_all_may_write_to_is_not_private(place, level, mode):
    """Also on the way: whoever may write to a folder may put another in the place of this one."""
    changed = (place, place.parent)[level]
    changed.chmod(mode)
    if level == 1 and mode & 0o1000:
        assert why_not_private(place) is None  # as in /tmp: only what is his own
        place = changed
    assert why_not_private(place) == f"{changed} may be written to by everybody"


@as_root
@pytest.mark.parametrize("level", [0, 1, 2])
def test_what_belongs_to_another_is_not_private(place, level):
    changed = (place, place.parent, place.parent.parent)[level]
    os.chown(changed, OTHER, -1)
    assert why_not_private(place) == f"{changed} belongs to another user"


@as_root
def test_a_group_of_others_may_not_write(place):
    os.chown(place, -1, OTHER)
    place.chmod(0o660)
    assert why_not_private(place) == f"{place} may be written to by a group"
    place.chmod(0o640)
    assert why_not_private(place) is None


def test_the_group_of_this_user_alone_may_write(place, monkeypatch):
    grp, pwd = pytest.importorskip("grp"), pytest.importorskip("pwd")
    name = pwd.getpwuid(os.getuid()).pw_name
    place.chmod(0o660)
    for group, members, own in ((name, [], True), (name, ["eve"], False), ("users", [name], False)):
        entry = grp.struct_group((group, "x", place.stat().st_gid, members))
        monkeypatch.setattr(grp, "getgrgid", lambda gid, entry=entry: entry)
        assert (why_not_private(place) is None) == own


def test_links_of_this_user_are_followed_and_judged_by_where_they_lead(place, tmp_path):
    (tmp_path / "link").symlink_to(Path("cache", os.pardir, "cache", "native"))
    (tmp_path / "whole").symlink_to(tmp_path / "link")
    assert why_not_private(tmp_path / "whole" / place.name) is None
    place.parent.chmod(0o777)
    assert "everybody" in why_not_private(tmp_path / "whole" / place.name)


@as_root
def test_a_link_of_another_is_not_followed(place, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(place.parent)
    os.chown(link, OTHER, -1, follow_symlinks=False)
    assert why_not_private(link / place.name) == f"the link {link} belongs to another user"


def test_links_in_a_circle_are_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="links"):
        why_not_private(tmp_path / "a" / "library.so")


def test_what_is_not_there_yet_is_nobody_s(tmp_path):
    assert why_not_private(tmp_path / "later" / "library.so") is None
    assert why_not_private(Path("/")) is None


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        make_private_folder(tmp_path / "file" / "folder")
