import logging
import sys

import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.teacher.cache.ray_engine import check_ray, ray_session


def test_without_ray_the_message_is_one_line_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for use in (check_ray, lambda: ray_session().__enter__()):
        with pytest.raises(ConfigError) as raised:
            use()
        assert str(raised.value).endswith("Install it with: pip install 'bridgegarden[ray]'")
        assert "\n" not in str(raised.value)


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setattr("ray.init", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("long\nstory")))
    level, stdout = logging.getLogger("ray.data").level, sys.stdout
    with pytest.raises(ConfigError, match=r"no Ray answers at RAY_ADDRESS=127\.0\.0\.1:9\. .* or unset RAY_ADDRESS"):
        ray_session().__enter__()
    assert (logging.getLogger("ray.data").level, sys.stdout) == (level, stdout)


def test_what_ray_prints_goes_to_stderr_and_a_ray_in_use_is_left_running(monkeypatch, capsys):
    stopped = []
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False}])
    monkeypatch.setattr("ray.shutdown", lambda: stopped.append(True))
    with ray_session() as machines:
        print("an actor died")
    print("results")
    assert machines == [{"CPU": 2.0}]
    assert capsys.readouterr() == ("results\n", "an actor died\n")
    assert not stopped


def test_a_ray_of_our_own_is_started_without_a_dashboard_and_stopped_also_by_an_error(monkeypatch):
    done = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda address, **settings: done.append((address, settings["include_dashboard"])))
    monkeypatch.setattr("ray.nodes", lambda: [])
    monkeypatch.setattr("ray.shutdown", lambda: done.append("stopped"))
    with pytest.raises(KeyError), ray_session():
        raise KeyError
    assert done == [("local", False), "stopped"]
