"""Modules by the names that users know."""

import pytest

from legibility.lightning_plugins.foundation._names import match_names, plain_name


def test_names_of_wrappers_are_not_the_users_business() -> None:
    assert plain_name("net._orig_mod.blocks.0._checkpoint_wrapped_module.up") == "net.blocks.0.up"
    assert plain_name("net._orig_mod") == "net"
    assert plain_name("") == ""


def test_patterns_keep_order_and_each_must_match() -> None:
    assert match_names(["b*", "a"], ["a", "b1", "b2"], "taps") == ["a", "b1", "b2"]
    with pytest.raises(ValueError, match="'z'"):
        match_names(["a", "z"], ["a", "b1"], "taps")
