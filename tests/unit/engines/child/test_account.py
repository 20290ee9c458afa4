"""The user that a server runs as."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from worker.engines.child.account import account_of
from worker.errors import ConfigError


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """We are root, or believe so."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getegid", lambda: 0)


@pytest.mark.usefixtures("root")
def test_a_user_has_the_groups_of_a_login() -> None:
    """By name or number; the environment names it."""
    entry = pwd.getpwnam("daemon")
    account = account_of("daemon")
    assert account == account_of(str(entry.pw_uid))
    assert (account.uid, account.gid) == (entry.pw_uid, entry.pw_gid)
    assert account.variables == {"HOME": entry.pw_dir, "USER": "daemon", "LOGNAME": "daemon"}
    assert account.credentials == {
        "user": entry.pw_uid,
        "group": entry.pw_gid,
        "extra_groups": tuple(os.getgrouplist("daemon", entry.pw_gid)),
    }


@pytest.mark.usefixtures("root")
def test_a_group_that_is_named_is_the_only_one() -> None:
    """By name or number, and then the user may be one that the system does not know."""
    gid = grp.getgrnam("sys").gr_gid
    account = account_of("daemon:sys")
    assert (account.gid, account.groups) == (gid, (gid,))
    unknown = account_of("54321:12345")
    assert (unknown.uid, unknown.gid, unknown.home) == (54321, 12345, "/")


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("name", ["nosuch", "54321", "nosuch:sys", "daemon:nosuch", "99999999999"])
def test_who_does_not_exist_is_refused(name: str) -> None:
    """With the variable that names him."""
    with pytest.raises(ConfigError, match=r"WORKER_ENGINE_USER: there is no (user|group) "):
        account_of(name)


def test_only_root_may_become_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """But everybody may stay who he is."""
    entry = pwd.getpwnam("daemon")
    monkeypatch.setattr(os, "geteuid", lambda: entry.pw_uid)
    monkeypatch.setattr(os, "getegid", lambda: entry.pw_gid)
    assert account_of("daemon").credentials == {}
    with pytest.raises(ConfigError, match="WORKER_ENGINE_USER: only root may start a process as 'root'"):
        account_of("root")
